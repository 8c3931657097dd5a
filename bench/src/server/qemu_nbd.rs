//! `qemu-nbd` on the container of the filled volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archipelago::Volumes;
use super::qemu_storage_daemon::wait_for_socket;
use super::{SERVER_CPU, Server};
use crate::program::Guarded;

/// The peer; its process runs while it serves.
#[derive(Debug)]
pub struct QemuNbd {
    socket: PathBuf,
    volumes: Volumes,
    serving: Option<Guarded>,
}

impl QemuNbd {
    /// Will serve `volumes` at a socket in `dir`.
    #[must_use]
    pub fn new(dir: &Path, volumes: &Volumes) -> Self {
        QemuNbd {
            socket: dir.join("qemu-nbd.sock"),
            volumes: volumes.clone(),
            serving: None,
        }
    }
}

impl Server for QemuNbd {
    fn name(&self) -> &'static str {
        "qemu-nbd"
    }

    fn filled(&mut self) -> Result<PathBuf> {
        self.serving = None;
        fs::remove_file(&self.socket).ok();
        // In a session of its own, as qemu-storage-daemon. Nothing is discarded: the pool believes that its blocks stay where they are.
        let mut command = Command::new("setsid");
        command.args(["taskset", "-c", SERVER_CPU, "qemu-nbd", "--persistent"]);
        command.args([
            "--cache=none",
            "--aio=io_uring",
            "--discard=ignore",
            "--shared=16",
        ]);
        command.arg("--socket").arg(&self.socket);
        command.arg("--image-opts").arg(format!(
            "driver=raw,offset=0,size={},file.driver=file,file.filename={},file.locking=off",
            self.volumes.size,
            self.volumes.filled.display()
        ));
        let child = command.stdin(Stdio::null()).spawn();
        let mut child = Guarded(child.context("start qemu-nbd")?);
        wait_for_socket(&self.socket, &mut child.0)?;
        self.serving = Some(child);
        Ok(self.socket.clone())
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        bail!("qemu-nbd serves the filled volume only")
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
