//! A volume as a file of this host: a mount of its own with the one file in it, served by `archipelago-fuse`.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use archipelago_api::layout::{Layout, path_error};
use archipelago_protocol::{Error, ErrorCode, Name, last_words};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use super::mounts::is_mounted;

/// How long a mount may take, and a look at its file.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// What the process says when its mount is there.
const READY: &[u8] = b"ready\n";

/// A file, and the mount in which it is.
#[derive(Debug)]
pub(super) struct VolumeFile {
    file: PathBuf,
    directory: PathBuf,
}

impl VolumeFile {
    /// The file at `file`, which is alone in its directory.
    pub(super) fn new(file: &Path) -> VolumeFile {
        VolumeFile {
            file: file.to_owned(),
            directory: file.parent().unwrap_or(Path::new("/")).to_owned(),
        }
    }

    /// Whether its mount is there, and its process answers.
    pub(super) async fn is_served(&self) -> bool {
        self.is_mounted() && self.answers().await
    }

    /// Whether its mount is in the kernel's table; its process may be dead.
    fn is_mounted(&self) -> bool {
        is_mounted(&self.directory)
    }

    /// Mounts it, unless it is there and its process answers.
    ///
    /// # Errors
    /// What `archipelago-fuse` says.
    pub(super) async fn serve(
        &self,
        layout: &Layout,
        name: &Name,
        read_only: bool,
    ) -> Result<(), Error> {
        if self.is_mounted() {
            if self.answers().await {
                return Ok(());
            }
            // Its process has died: nobody gets anything from it any more, and open files stay with whoever has them.
            self.unmount(MntFlags::MNT_DETACH)?;
        }
        let mut directory = fs::DirBuilder::new();
        directory
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| path_error(&self.directory, &error))?;
        let started = self.start(layout, name, read_only).await;
        if started.is_err() {
            self.remove_directory();
        }
        started
    }

    /// Whether its process says what the file is.
    async fn answers(&self) -> bool {
        let file = self.file.clone();
        let looked = tokio::task::spawn_blocking(move || fs::metadata(file).is_ok());
        matches!(
            tokio::time::timeout(LOOK_TIMEOUT, looked).await,
            Ok(Ok(true))
        )
    }

    async fn start(&self, layout: &Layout, name: &Name, read_only: bool) -> Result<(), Error> {
        let failed = |error: std::io::Error| {
            let message = format!("starting archipelago-fuse: {error}");
            Error::new(ErrorCode::Unavailable, message)
        };
        let program = std::env::current_exe().map_err(failed)?;
        let log = layout.mount_log();
        let mut log_file = fs::OpenOptions::new();
        let log_file = log_file.append(true).create(true).open(&log);
        let mut command = Command::new(program.with_file_name("archipelago-fuse"));
        if let Some(root) = layout.root() {
            command.arg("--root").arg(root);
        }
        if read_only {
            command.arg("--read-only");
        }
        let mut child = command
            .args(["--background", "--only", name.as_str(), "--"])
            .arg(&self.directory)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file.map_err(|error| path_error(&log, &error))?)
            .spawn()
            .map_err(failed)?;
        let stdout = child.stdout.take();
        // Reaped when it ends; it outlives the daemon, and the next one finds its mount.
        tokio::spawn(async move {
            let _ended = child.wait().await;
        });
        let mut said = Vec::new();
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(last_words::LEN_MAX);
            let read = async {
                while said.len() < READY.len() && stdout.read_buf(&mut said).await? > 0 {}
                if said != READY {
                    stdout.read_to_end(&mut said).await?;
                }
                Ok::<(), std::io::Error>(())
            };
            let _late = tokio::time::timeout(READY_TIMEOUT, read).await;
        }
        match said == READY {
            true => Ok(()),
            false => Err(last_words::decode(&said).unwrap_or_else(|| {
                let message = "the file is not there: its process ended or did not answer";
                Error::new(ErrorCode::Unavailable, message)
                    .with_hint(format!("its log: {}", log.display()))
            })),
        }
    }

    /// Takes it away. A process that has died is no obstacle.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a program has it open.
    pub(super) async fn end(&self) -> Result<(), Error> {
        if self.is_mounted() {
            let flags = match self.answers().await {
                true => MntFlags::empty(),
                false => MntFlags::MNT_DETACH,
            };
            self.unmount(flags)?;
        }
        self.remove_directory();
        Ok(())
    }

    fn unmount(&self, flags: MntFlags) -> Result<(), Error> {
        let at = self.directory.display();
        match umount2(&self.directory, flags | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) | Err(Errno::EINVAL) => Ok(()),
            Err(Errno::EBUSY) => {
                let message = format!("a program has {} open", self.file.display());
                Err(Error::new(ErrorCode::InUse, message)
                    .with_hint(format!("end it: `fuser -vm {at}` shows it")))
            }
            Err(errno) => Err(Error::new(
                ErrorCode::Io,
                format!("unmounting {at}: {errno}"),
            )),
        }
    }

    fn remove_directory(&self) {
        // One that is not there, or not empty, is the next one's.
        let _left = fs::remove_dir(&self.directory);
    }
}
