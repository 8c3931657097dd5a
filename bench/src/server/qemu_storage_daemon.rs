//! `qemu-storage-daemon` on the containers of the pool: as a raw image, and as the base of qcow2 overlays.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::archipelago::Volumes;
use super::{SERVER_CPU, Server};
use crate::program::{Guarded, stdout_of};
use crate::waiting::wait_until;

/// Longest time until it listens, on a loaded machine, too.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// The peer; its process runs while it serves.
#[derive(Debug)]
pub struct QemuStorageDaemon {
    dir: PathBuf,
    volumes: Volumes,
    serving: Option<Guarded>,
    clones: u32,
}

impl QemuStorageDaemon {
    /// Will serve `volumes`, with overlays and sockets in a directory below `dir`.
    ///
    /// # Errors
    /// If the directory cannot be made.
    pub fn new(dir: &Path, volumes: &Volumes) -> Result<Self> {
        let dir = dir.join("qemu-storage-daemon");
        fs::create_dir_all(&dir)?;
        Ok(QemuStorageDaemon {
            dir,
            volumes: volumes.clone(),
            serving: None,
            clones: 0,
        })
    }

    /// Block devices `file` and, upon it, `node`: the first bytes of a container, as many as the volume has. Nothing is
    /// discarded: the pool believes that its blocks stay where they are.
    fn raw(&self, container: &Path, file: &str, node: &str, read_only: &str) -> [String; 2] {
        [
            format!(
                "{},discard=ignore,read-only={read_only}",
                protocol(container, file)
            ),
            format!(
                "driver=raw,file={file},node-name={node},offset=0,size={},read-only={read_only}",
                self.volumes.size
            ),
        ]
    }

    fn serve(&mut self, devices: &[String]) -> Result<PathBuf> {
        self.serving = None;
        let socket = self.dir.join("volume.sock");
        fs::remove_file(&socket).ok();
        // In a session of its own, like a node's daemon: the scheduler shares a CPU among sessions (autogroup), and the session of
        // the client, or of this terminal, has another share.
        let mut command = Command::new("setsid");
        command.args(["taskset", "-c", SERVER_CPU, "qemu-storage-daemon"]);
        command.args(["--object", "iothread,id=iot0"]);
        for device in devices {
            command.args(["--blockdev", device]);
        }
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=e,node-name=n,writable=on,num-queues=1,addr.type=unix,addr.path={},iothread=iot0",
            socket.display()
        ));
        let child = command.stdin(Stdio::null()).spawn();
        let mut child = Guarded(child.context("start qemu-storage-daemon")?);
        wait_for_socket(&socket, &mut child.0)?;
        self.serving = Some(child);
        Ok(socket)
    }
}

fn protocol(file: &Path, node: &str) -> String {
    format!(
        "driver=file,filename={},node-name={node},aio=io_uring,cache.direct=on,locking=off",
        file.display()
    )
}

impl Server for QemuStorageDaemon {
    fn name(&self) -> &'static str {
        "qemu-storage-daemon"
    }

    fn filled(&mut self) -> Result<PathBuf> {
        self.serve(&self.raw(&self.volumes.filled, "f", "n", "off"))
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        self.clones += 1;
        let overlay = self.dir.join(format!("clone-{}.qcow2", self.clones));
        let mut create = Command::new("qemu-img");
        create
            .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
            .args([&self.volumes.base, &overlay])
            .arg(self.volumes.size.to_string());
        stdout_of(&mut create)?;
        let [file, base] = self.raw(&self.volumes.base, "bf", "b", "on");
        self.serve(&[
            format!("{},discard=unmap", protocol(&overlay, "f")),
            file,
            base,
            "driver=qcow2,file=f,node-name=n,discard=unmap,backing=b".to_owned(),
        ])
    }

    fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.serving.iter().map(|child| child.0.id()).collect())
    }

    fn release(&mut self) -> Result<()> {
        // Its client has waited for all requests: none is left in the kernel.
        self.serving = None;
        Ok(())
    }
}

/// Waits until `child` listens on `path`.
///
/// # Errors
/// If it ends instead, or does not listen in time.
pub(super) fn wait_for_socket(path: &Path, child: &mut Child) -> Result<()> {
    let silent = || format!("no server listens on {}", path.display());
    wait_until(START_TIMEOUT, silent, || {
        if fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            return Ok(Some(()));
        }
        if let Some(status) = child.try_wait()? {
            bail!("the server ended before it listened: {status}");
        }
        Ok(None)
    })
}
