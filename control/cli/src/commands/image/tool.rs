//! Programs of other projects that read and write formats, or download (`qemu-nbd`, `qemu-img`, `curl`), each confined by `archipelagod
//! tool`.
//!
//! A program gets the files of its task as descriptors, dies with this process, and is waited for when the task ends.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, ExitStatus, Stdio};

use archipelago_protocol::{Error, ErrorCode, last_words};
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::interrupt::Interrupt;
use crate::commands::program;

/// Inherited files get descriptors from this number on: lower ones may belong to the parent of this process.
const DESCRIPTOR_MIN: RawFd = 10;
/// Bytes of a program's error output that are kept; a program that writes more is ended.
const WORDS_LEN_MAX: u64 = 64 << 10;
/// How often the end of a program is checked for: a program ends within a few milliseconds, unless it writes.
const END_STEP_MS: u16 = 2;

/// Path of the program `name`.
///
/// # Errors
/// [`ErrorCode::Unavailable`], naming the package to install.
pub(super) fn find(name: &str, package: &str, without: &str) -> Result<PathBuf, Error> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let mut candidates = std::env::split_paths(&directories).map(|directory| directory.join(name));
    candidates.find(|path| path.is_file()).ok_or_else(|| {
        let message = format!("the program {name} is not installed");
        let hint = format!("install it (Debian, Ubuntu: the package {package}); {without}");
        Error::new(ErrorCode::Unavailable, message).with_hint(hint)
    })
}

/// A file that a program inherits; it opens [`Inherited::path`].
#[derive(Debug)]
pub(super) struct Inherited(RawFd);

impl Inherited {
    /// A second descriptor of `file`, which programs started from now on inherit.
    pub(super) fn new(file: &File) -> Result<Inherited, Error> {
        fcntl(file, FcntlArg::F_DUPFD(DESCRIPTOR_MIN))
            .map(Inherited)
            .map_err(|errno| Error::new(ErrorCode::NoDescriptors, format!("a descriptor: {errno}")))
    }

    /// The path by which the program opens it.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.0)
    }
}

impl Drop for Inherited {
    fn drop(&mut self) {
        // The program wrote through a descriptor of its own, so a failed close loses nothing.
        let _closed = nix::unistd::close(self.0);
    }
}

/// What a program may use.
#[derive(Debug, Default)]
pub(super) struct Permissions<'a> {
    pub(super) read: Vec<&'a Inherited>,
    pub(super) write: Vec<&'a Inherited>,
    /// The socket that it serves.
    pub(super) listen: Option<OwnedFd>,
    pub(super) network: bool,
    /// Seconds of CPU time.
    pub(super) cpu: Option<u64>,
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Tool {
    name: String,
    child: Child,
    words: File,
    is_reaped: bool,
}

impl Tool {
    /// Starts `program` with `arguments`.
    pub(super) fn start(
        program: &Path,
        arguments: &[String],
        permissions: Permissions<'_>,
    ) -> Result<Tool, Error> {
        let name = program.file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        let words = memfd_create("words", MFdFlags::MFD_CLOEXEC)
            .map(File::from)
            .map_err(|errno| Error::new(ErrorCode::NoMemory, format!("memory: {errno}")))?;
        let failed = |error: std::io::Error| {
            let message = format!("starting {name}: {error}");
            Error::new(ErrorCode::Unavailable, message)
        };
        let mut command = program::command();
        command
            .args(["tool", "--parent", &std::process::id().to_string()])
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(words.try_clone().map_err(failed)?);
        for file in &permissions.read {
            command.args(["--read", &file.0.to_string()]);
        }
        for file in &permissions.write {
            command.args(["--write", &file.0.to_string()]);
        }
        if permissions.write.is_empty() {
            command.args(["--file-size", &WORDS_LEN_MAX.to_string()]);
        }
        if permissions.network {
            command.arg("--network");
        }
        if let Some(seconds) = permissions.cpu {
            command.args(["--cpu", &seconds.to_string()]);
        }
        match permissions.listen {
            Some(socket) => command.arg("--listen").stdin(socket),
            None => command.stdin(Stdio::null()),
        };
        let child = command.arg("--").arg(program).args(arguments).spawn();
        Ok(Tool {
            child: child.map_err(failed)?,
            words,
            name,
            is_reaped: false,
        })
    }

    /// The program's standard output; may be taken once.
    pub(super) fn stdout(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("piped, and taken once")
    }

    /// Waits until the program ends.
    ///
    /// # Errors
    /// When interrupted.
    pub(super) fn wait(&mut self, interrupt: &Interrupt) -> Result<ExitStatus, Error> {
        loop {
            let ended = self.child.try_wait().map_err(|error| {
                Error::new(
                    ErrorCode::Internal,
                    format!("waiting for {}: {error}", self.name),
                )
            })?;
            if let Some(status) = ended {
                self.is_reaped = true;
                return Ok(status);
            }
            interrupt.pause(END_STEP_MS)?;
        }
    }

    /// Waits until the program ends, and checks that it succeeded.
    pub(super) fn finish(mut self, interrupt: &Interrupt) -> Result<(), Error> {
        match self.wait(interrupt)? {
            status if status.success() => Ok(()),
            status => Err(self.failure(ErrorCode::Unavailable, &format!("ended ({status})"))),
        }
    }

    /// Why the program failed: from its own output, else `what` happened to it.
    pub(super) fn failure(&mut self, code: ErrorCode, what: &str) -> Error {
        let text = self.output();
        if let Some(error) = last_words::decode(text.as_bytes()) {
            return error;
        }
        let last = text.lines().rev().find(|line| !line.trim().is_empty());
        match last {
            Some(line) => Error::new(code, line.trim().to_owned()),
            None => Error::new(code, format!("{} {what}", self.name)),
        }
    }

    /// The error output of a program that failed, and the rest of its standard output.
    pub(super) fn output(&mut self) -> String {
        let mut out = Vec::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            // `archipelagod` reports here why it cannot start the program.
            let _read = stdout
                .by_ref()
                .take(last_words::LEN_MAX)
                .read_to_end(&mut out);
        }
        let len = self.words.seek(std::io::SeekFrom::End(0)).unwrap_or(0);
        let mut words = vec![0; usize::try_from(len.min(WORDS_LEN_MAX)).unwrap_or(0)];
        let _read = self.words.read_exact_at(&mut words, 0);
        words.extend(out);
        String::from_utf8_lossy(&words).into_owned()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        if !self.is_reaped {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}
