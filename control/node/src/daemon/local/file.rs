//! A volume as a file of this host: a mount that contains only this file, served by `archipelago-fuse`.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use archipelago_api::layout::{Layout, path_error};
use archipelago_protocol::{Error, ErrorCode, Name, last_words};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};

use super::super::looks::Looks;
use super::mounts::is_mounted;
use super::tool::run;

/// How long a mount may take.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// The line that the process writes to its standard output once its file is mounted.
const READY: &[u8] = b"ready\n";

/// A file, and the mount that contains it.
#[derive(Debug)]
pub(super) struct VolumeFile<'a> {
    file: &'a Path,
    directory: PathBuf,
    looks: &'a Looks,
}

/// The state of the process that serves a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProcessState {
    /// There is neither a process nor a mount.
    None,
    /// It answers a request for the file's attributes.
    Answers,
    /// It has ended, but its mount remains.
    Dead,
    /// It does not answer: the node is slow, or the process is stopped. Programs may be able to use the file later.
    Silent,
}

/// A process that has not reported its mount yet. It is killed when its starter stops waiting, so that it does not mount later.
struct Starting(Option<Child>);

impl Starting {
    /// The file is mounted. The process outlives the daemon, and the next daemon finds its mount.
    fn succeed(mut self) {
        if let Some(mut child) = self.0.take() {
            // Reaps the process when it ends.
            tokio::spawn(async move {
                let _ended = child.wait().await;
            });
        }
    }

    /// Kills the process, so that it cannot mount any more.
    async fn fail(mut self) {
        if let Some(mut child) = self.0.take() {
            let _ended = tokio::time::timeout(KILL_TIMEOUT, child.kill()).await;
        }
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ended = child.start_kill();
        }
    }
}

fn stat(file: &Path) -> io::Result<()> {
    fs::metadata(file).map(drop)
}

impl<'a> VolumeFile<'a> {
    /// The file at `file`, the only one in its directory.
    pub(super) fn new(file: &'a Path, looks: &'a Looks) -> VolumeFile<'a> {
        VolumeFile {
            file,
            directory: file.parent().unwrap_or(Path::new("/")).to_owned(),
            looks,
        }
    }

    /// Whether the mount is in the kernel's table; its process may be dead.
    fn is_mounted(&self) -> bool {
        is_mounted(&self.directory)
    }

    /// The state of its process. A stat of the file passes through the node, which may be slow: the process counts as dead only if the
    /// kernel reports that the mount is not served.
    pub(super) async fn process_state(&self) -> ProcessState {
        if !self.is_mounted() {
            return ProcessState::None;
        }
        match self.looks.ask(self.file, stat).await {
            Some(Ok(())) => ProcessState::Answers,
            Some(Err(io::ErrorKind::NotConnected)) => ProcessState::Dead,
            Some(Err(_)) | None => ProcessState::Silent,
        }
    }

    /// The error of [`ProcessState::Silent`].
    pub(super) fn silence(&self, layout: &Layout) -> Error {
        let message = format!("what serves {} does not answer", self.file.display());
        Error::new(ErrorCode::Unavailable, message).with_hint(format!(
            "`{} node status` shows whether the storage hangs",
            layout.command()
        ))
    }

    /// Mounts the file, unless it is mounted and its process answers.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if its process does not answer; otherwise the error of `archipelago-fuse`.
    pub(super) async fn serve(
        &self,
        layout: &Layout,
        name: &Name,
        read_only: bool,
    ) -> Result<(), Error> {
        match self.process_state().await {
            ProcessState::None => {}
            ProcessState::Answers => return Ok(()),
            ProcessState::Silent => return Err(self.silence(layout)),
            // The mount is not served any more; programs keep their open files.
            ProcessState::Dead => self.unmount_all(MntFlags::MNT_DETACH).await?,
        }
        let mut directory = fs::DirBuilder::new();
        directory
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(|error| path_error(&self.directory, &error))?;
        let started = self.start(layout, name, read_only).await;
        if started.is_err() {
            // A killed process may have mounted before.
            self.unmount_all(MntFlags::MNT_DETACH).await?;
            self.remove_directory();
        }
        started
    }

    async fn start(&self, layout: &Layout, name: &Name, read_only: bool) -> Result<(), Error> {
        let failed = |error: io::Error| {
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
        let child = command
            .args(["--background", "--only", name.as_str(), "--"])
            .arg(&self.directory)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log_file.map_err(|error| path_error(&log, &error))?)
            .spawn()
            .map_err(failed)?;
        let mut starting = Starting(Some(child));
        let stdout = starting.0.as_mut().and_then(|child| child.stdout.take());
        let mut text = Vec::new();
        if let Some(stdout) = stdout {
            let mut stdout = stdout.take(last_words::LEN_MAX);
            let read = async {
                while text.len() < READY.len() && stdout.read_buf(&mut text).await? > 0 {}
                if text != READY {
                    stdout.read_to_end(&mut text).await?;
                }
                Ok::<(), io::Error>(())
            };
            let _late = tokio::time::timeout(READY_TIMEOUT, read).await;
        }
        if text == READY {
            starting.succeed();
            return Ok(());
        }
        starting.fail().await;
        Err(last_words::decode(&text).unwrap_or_else(|| {
            let message = "the file is not there: its process ended or did not answer";
            Error::new(ErrorCode::Unavailable, message)
                .with_hint(format!("its log: {}", log.display()))
        }))
    }

    /// Removes the mount and the process. It does not matter if the process has died.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a program has it open.
    pub(super) async fn end(&self) -> Result<(), Error> {
        let flags = match self.process_state().await {
            ProcessState::Dead => MntFlags::MNT_DETACH,
            // The kernel knows whether a program has the file open.
            ProcessState::None | ProcessState::Answers | ProcessState::Silent => MntFlags::empty(),
        };
        self.unmount_all(flags).await?;
        self.remove_directory();
        Ok(())
    }

    /// Unmounts everything that is mounted there, also several mounts on top of each other.
    async fn unmount_all(&self, flags: MntFlags) -> Result<(), Error> {
        while self.is_mounted() {
            self.unmount(flags).await?;
        }
        Ok(())
    }

    async fn unmount(&self, flags: MntFlags) -> Result<(), Error> {
        let failed = |why: &str| {
            let message = format!("unmounting {}: {why}", self.directory.display());
            Error::new(ErrorCode::Io, message)
        };
        match umount2(&self.directory, flags | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(self.in_use()),
            // The kernel permits it only to root; other users need a helper program.
            Err(Errno::EPERM) => {
                let is_lazy = flags.contains(MntFlags::MNT_DETACH);
                let options: &[&str] = if is_lazy { &["-u", "-z"] } else { &["-u"] };
                let directory = self.directory.to_string_lossy();
                let arguments = [options, &["--", &*directory]].concat();
                let ended = run("fusermount3", &arguments).await;
                ended.map(drop).map_err(|error| match error.code {
                    ErrorCode::Io if error.message.contains("busy") => self.in_use(),
                    _ => failed(&error.message),
                })
            }
            Err(errno) => Err(failed(errno.desc())),
        }
    }

    fn in_use(&self) -> Error {
        let message = format!("a program has {} open", self.file.display());
        let at = self.directory.display();
        Error::new(ErrorCode::InUse, message)
            .with_hint(format!("end it: `fuser -vm {at}` shows it"))
    }

    fn remove_directory(&self) {
        // If it does not exist or is not empty, the next start handles it.
        let _left = fs::remove_dir(&self.directory);
    }
}
