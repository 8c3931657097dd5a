//! `mount` and `umount`: a process of its own serves a mount, the program `archipelago-fuse`.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use archipelago_api::layout::{LOG_LEN_MAX, Layout, former_log, path_error};
use archipelago_protocol::{Error, ErrorCode, last_words};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::program;
use crate::options::Mount;
use crate::output::Output;

/// How long a mount may take: one request to the node, and the kernel's reply.
const READY_TIMEOUT_MS: u16 = 30_000;
/// What the process writes to its standard output when its mount is there.
const READY: &[u8; 6] = b"ready\n";
/// Source of our mounts in the kernel's table.
const MOUNT_SOURCE: &[u8] = b"archipelago";
/// Types of our mounts: made by the kernel's own call, and by `fusermount3`.
const MOUNT_TYPES: [&[u8]; 2] = [b"fuse", b"fuse.archipelago"];
/// The kernel's table of mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// The JSON object that `mount` and `umount` print.
#[derive(Debug, Serialize)]
struct Mounted<'a> {
    directory: &'a Path,
    mounted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

pub(super) fn mount(options: &Mount, layout: &Layout, output: Output) -> Result<(), Error> {
    let directory = resolve(&options.directory)?;
    if is_mounted(&directory)? {
        let at = directory.display();
        let message = format!("{at} is already an Archipelago mount");
        let hint = format!("if its process has died: {} umount {at}", layout.command());
        return Err(Error::new(ErrorCode::Exists, message).with_hint(hint));
    }
    let mut command = program::named("archipelago-fuse");
    if let Some(root) = layout.root() {
        command.arg("--root").arg(root);
    }
    if options.read_only {
        command.arg("--read-only");
    }
    if options.allow_other {
        command.arg("--allow-other");
    }
    let mut child = command
        .arg("--background")
        .arg("--")
        .arg(&directory)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(open_log(layout)?)
        .spawn()
        .map_err(|error| {
            let message = format!("starting archipelago-fuse: {error}");
            Error::new(ErrorCode::Unavailable, message)
        })?;
    await_ready(&mut child, layout)?;
    let mounted = Mounted {
        directory: &directory,
        mounted: true,
        pid: Some(child.id()),
    };
    output.print(&mounted, |_quiet| String::new())
}

pub(super) fn umount(directory: &Path, output: Output) -> Result<(), Error> {
    let directory = resolve(directory)?;
    let at = directory.display();
    if !is_mounted(&directory)? {
        let message = format!("{at} is not an Archipelago mount");
        return Err(Error::new(ErrorCode::NotFound, message));
    }
    match umount2(&directory, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => {}
        Err(Errno::EBUSY) => {
            let message =
                format!("{at} is in use: a program has a file open or its working directory there");
            return Err(Error::new(ErrorCode::InUse, message).with_hint(format!(
                "end it (fuser -vm {at}), or detach its loop device"
            )));
        }
        // Only root may call the kernel; other users have a program with the right to.
        Err(Errno::EPERM) => unmount_by_program(&directory)?,
        Err(errno) => {
            return Err(Error::new(
                ErrorCode::Io,
                format!("unmounting {at}: {errno}"),
            ));
        }
    }
    let mounted = Mounted {
        directory: &directory,
        mounted: false,
        pid: None,
    };
    output.print(&mounted, |_quiet| String::new())
}

fn unmount_by_program(directory: &Path) -> Result<(), Error> {
    let mut command = std::process::Command::new("fusermount3");
    let ended = command.arg("-u").arg("--").arg(directory).output();
    let why = match ended {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => format!("fusermount3: {error}"),
    };
    let message = format!("unmounting {}: {why}", directory.display());
    Err(Error::new(ErrorCode::Denied, message)
        .with_hint("run the command as root or as the user who mounted it"))
}

/// The directory as the kernel's table names it. A mount whose process has died does not answer, so only its parent is looked up.
fn resolve(directory: &Path) -> Result<PathBuf, Error> {
    let failed = |error: std::io::Error| {
        let code = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorCode::NotFound,
            _ => ErrorCode::Io,
        };
        Error::new(code, format!("{}: {error}", directory.display()))
    };
    match std::fs::canonicalize(directory) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOTCONN as i32) => {}
        resolved => return resolved.map_err(failed),
    }
    let absolute = std::path::absolute(directory).map_err(failed)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(above), Some(name)) => Ok(std::fs::canonicalize(above).map_err(failed)?.join(name)),
        _ => Ok(absolute),
    }
}

fn is_mounted(directory: &Path) -> Result<bool, Error> {
    let failed = |error: std::io::Error| Error::new(ErrorCode::Io, format!("{MOUNTS}: {error}"));
    let table = std::fs::read(MOUNTS).map_err(failed)?;
    Ok(is_in_table(&table, directory))
}

/// Whether the kernel's table of mounts has one of ours at `directory`: proc(5).
fn is_in_table(table: &[u8], directory: &Path) -> bool {
    table.split(|byte| *byte == b'\n').any(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let at = fields.nth(4).map(unescape);
        let mut rest = fields.skip_while(|field| *field != b"-");
        let (kind, source) = (rest.nth(1), rest.next());
        at.as_deref() == Some(directory)
            && kind.is_some_and(|kind| MOUNT_TYPES.contains(&kind))
            && source == Some(MOUNT_SOURCE)
    })
}

/// A path in which blanks and the like stand as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let octal = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(octal.unwrap_or(byte));
        rest = if octal.is_some() { &after[3..] } else { after };
    }
    PathBuf::from(OsString::from_vec(path))
}

fn open_log(layout: &Layout) -> Result<File, Error> {
    let path = layout.mount_log();
    let failed = |error: std::io::Error| path_error(&path, &error);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LEN_MAX) {
        std::fs::rename(&path, former_log(&path)).map_err(failed)?;
    }
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).open(&path);
    file.map_err(|error| match error.kind() {
        // The run directory comes with the node's first start.
        std::io::ErrorKind::NotFound => Error::new(
            ErrorCode::Unavailable,
            format!("no node daemon serves {}", layout.api_socket().display()),
        )
        .with_hint(format!("start it: {} node start", layout.command())),
        _ => failed(error),
    })
}

/// Waits until the mount is there, or its process reports why it failed.
fn await_ready(child: &mut Child, layout: &Layout) -> Result<(), Error> {
    let log = layout.mount_log();
    let unknown = |what: &str| {
        let message = format!("the mount is not there: {what}");
        Error::new(ErrorCode::Unavailable, message).with_hint(format!("its log: {}", log.display()))
    };
    let Some(mut stdout) = child.stdout.take() else {
        return Err(unknown("nothing is heard of its process"));
    };
    let mut descriptors = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    if !matches!(
        poll(&mut descriptors, PollTimeout::from(READY_TIMEOUT_MS)),
        Ok(1..)
    ) {
        let _gone = child.kill();
        let _reaped = child.wait();
        return Err(unknown("its process did not answer within 30 s"));
    }
    let mut text = vec![0; READY.len()];
    if stdout.read_exact(&mut text).is_ok() {
        if text == READY {
            return Ok(());
        }
        // A failed read leaves `text` as it is: then the reason is unknown.
        let _rest = stdout.take(last_words::LEN_MAX).read_to_end(&mut text);
    }
    let _reaped = child.wait();
    Err(last_words::decode(&text).unwrap_or_else(|| unknown("its process ended")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_of_ours_are_found_in_the_table() {
        let table = b"22 1 0:20 / /proc rw shared:5 - proc proc rw\n\
            90 22 0:50 / /mnt/a\\040b\\134 rw,nosuid - fuse.archipelago archipelago rw,user_id=0\n\
            92 22 0:52 / /mnt/root rw,nosuid - fuse archipelago rw,user_id=0\n\
            91 22 0:51 / /mnt/other rw shared:1 master:2 - fuse.sshfs host rw\n";
        assert!(is_in_table(table, Path::new("/mnt/a b\\")));
        assert!(is_in_table(table, Path::new("/mnt/root")));
        for absent in ["/mnt/other", "/proc", "/mnt", "/mnt/a"] {
            assert!(!is_in_table(table, Path::new(absent)), "{absent}");
        }
        assert!(!is_in_table(b"", Path::new("/")));
    }
}
