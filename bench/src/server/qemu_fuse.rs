//! `qemu-storage-daemon` with a FUSE export of the container of the filled volume.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::archipelago::Volumes;
use super::qemu_storage_daemon::START_TIMEOUT;
use super::{SERVER_CPU, Server};
use crate::program::Guarded;
use crate::waiting::wait_until;

/// The peer; its process runs while it serves.
#[derive(Debug)]
pub struct QemuFuse {
    file: PathBuf,
    volumes: Volumes,
    serving: Option<Guarded>,
}

impl QemuFuse {
    /// Will serve `volumes` as a file in `dir`.
    #[must_use]
    pub fn new(dir: &Path, volumes: &Volumes) -> Self {
        QemuFuse {
            file: dir.join("qemu-fuse"),
            volumes: volumes.clone(),
            serving: None,
        }
    }

    fn end(&mut self) {
        self.serving = None;
        // The mount of a process that was killed is left.
        Command::new("umount")
            .arg("--lazy")
            .arg(&self.file)
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

impl Server for QemuFuse {
    fn name(&self) -> &'static str {
        "qemu-fuse"
    }

    fn filled(&mut self) -> Result<PathBuf> {
        self.end();
        fs::write(&self.file, "")?;
        // In a session of its own, as the others. Nothing is discarded: the pool believes that its blocks stay where they are.
        let mut command = Command::new("setsid");
        command.args(["taskset", "-c", SERVER_CPU, "qemu-storage-daemon"]);
        command.arg("--blockdev").arg(format!(
            "driver=file,filename={},node-name=f,aio=io_uring,cache.direct=on,locking=off,discard=ignore",
            self.volumes.filled.display()
        ));
        command.arg("--blockdev").arg(format!(
            "driver=raw,file=f,node-name=n,offset=0,size={}",
            self.volumes.size
        ));
        command.arg("--export").arg(format!(
            "type=fuse,id=e,node-name=n,writable=on,mountpoint={}",
            self.file.display()
        ));
        let child = command.stdin(Stdio::null()).spawn();
        let mut child = Guarded(child.context("start qemu-storage-daemon")?);
        let silent = || format!("nothing is mounted at {}", self.file.display());
        wait_until(START_TIMEOUT, silent, || {
            if fs::metadata(&self.file).is_ok_and(|found| found.len() == self.volumes.size) {
                return Ok(Some(()));
            }
            if let Some(status) = child.0.try_wait()? {
                bail!("the server ended before it had mounted: {status}");
            }
            Ok(None)
        })?;
        self.serving = Some(child);
        Ok(self.file.clone())
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        bail!("the FUSE export serves the filled volume only")
    }

    fn pids(&self) -> Result<Vec<u32>> {
        Ok(self.serving.iter().map(|child| child.0.id()).collect())
    }

    fn release(&mut self) -> Result<()> {
        // Its client has waited for all requests: none is left in the kernel.
        self.end();
        Ok(())
    }
}

impl Drop for QemuFuse {
    fn drop(&mut self) {
        if self.serving.is_some() {
            self.end();
        }
    }
}
