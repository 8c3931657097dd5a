//! The battery itself, on a server that is known to be good: when this fails, the harness is wrong.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use archipelago_vm_tests::deadline::{Deadline, MONITOR};
use archipelago_vm_tests::guest::{Disk, Guest};

/// qemu-storage-daemon with a raw file.
struct StorageDaemon(Child);

impl StorageDaemon {
    fn start(dir: &Path, file: &Path) -> Result<(Self, PathBuf)> {
        let socket = dir.join("disk.sock");
        let child = Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,discard=unmap,filename={}", file.display()))
            .args(["--blockdev", "driver=raw,node-name=disk,discard=unmap,file=file"])
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stdin(Stdio::null())
            .spawn()
            .context("starting qemu-storage-daemon")?;
        let daemon = StorageDaemon(child);
        let deadline = Deadline::after(MONITOR);
        while !socket.exists() {
            ensure!(
                deadline.left().is_some(),
                "qemu-storage-daemon opens no socket"
            );
            std::thread::yield_now();
        }
        Ok((daemon, socket))
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn the_battery_passes_on_a_good_server() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("harness-").tempdir()?;
    let file = dir.path().join("disk.raw");
    std::fs::File::create(&file)?.set_len(256 << 20)?;
    let (_daemon, socket) = StorageDaemon::start(dir.path(), &file)?;
    let guest = Guest::builder()
        .processors(2)
        .disk(Disk::new(&socket).queues(2))
        .boot()?;
    guest.run("battery vda")?;
    let error = guest
        .run("fail on purpose")
        .expect_err("a failure in the guest is one here");
    ensure!(error.to_string().contains("FAILED: on purpose"), "{error}");
    Ok(())
}
