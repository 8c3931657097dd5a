//! A mount, from its beginning to its end.

use std::path::Path;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::pools::PoolList;
use archipelago_protocol::{Error, ErrorCode, Name};
use fuser::{MountOption, Session};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};

use crate::filesystem::VolumeFiles;

/// The type in the table of mounts, behind `fuse.`.
pub const SUBTYPE: &str = "archipelago";

/// How to mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// Writes are refused.
    pub read_only: bool,
    /// Other users have access; files still belong to this process's user.
    pub allow_other: bool,
    /// If set, only this file is shown.
    pub only: Option<Name>,
    /// How long requests on an open file wait for a node that is away, before they fail.
    pub wait_max: Duration,
}

/// Mounts the node behind `client` at `directory`, calls `ready`, serves until the directory is unmounted or a signal (SIGTERM, SIGINT,
/// SIGHUP) comes, and closes the open files. To be called before other threads are started: they inherit which signals are blocked.
///
/// # Errors
/// [`ErrorCode::Unavailable`] if the node does not answer; otherwise the kernel's error.
pub fn mount(
    client: Client,
    directory: &Path,
    options: MountOptions,
    ready: impl FnOnce(),
) -> Result<(), Error> {
    let _serves: PoolList = client.get("/v1/pools")?;
    let failed = |error: std::io::Error| mount_error(directory, &error);
    let signals = block_signals().map_err(|errno| failed(errno.into()))?;
    let kernel_options = kernel_options(&options);
    let files = VolumeFiles::new(client, options.only, options.wait_max).map_err(failed)?;
    let mut session = Session::new(files, directory, &kernel_options).map_err(failed)?;
    let at = std::path::absolute(directory).map_err(failed)?;
    let ending = std::thread::Builder::new().name("signals".to_owned());
    ending
        .spawn(move || end_on_signal(&signals, &at))
        .map_err(failed)?;
    ready();
    session.run().map_err(failed)
}

fn kernel_options(options: &MountOptions) -> Vec<MountOption> {
    let mut all = vec![
        MountOption::FSName(SUBTYPE.to_owned()),
        MountOption::Subtype(SUBTYPE.to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    if options.read_only {
        all.push(MountOption::RO);
    }
    if options.allow_other {
        all.push(MountOption::AllowOther);
    }
    all
}

fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}

/// Unmounts at the first signal: programs with open files go on until they close them.
fn end_on_signal(signals: &SigSet, directory: &Path) {
    while let Ok(signal) = signals.wait() {
        tracing::info!("{signal}: unmounting {}", directory.display());
        if let Err(errno) = umount2(directory, MntFlags::MNT_DETACH) {
            tracing::error!("unmounting {}: {errno}", directory.display());
        }
    }
}

fn mount_error(directory: &Path, error: &std::io::Error) -> Error {
    let message = format!("mounting {}: {error}", directory.display());
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV) if !Path::new("/dev/fuse").exists() => {
            Error::new(ErrorCode::Unsupported, message)
                .with_hint("this kernel has no FUSE: modprobe fuse")
        }
        Some(libc::ENOENT) => Error::new(ErrorCode::NotFound, message),
        Some(libc::ENOTDIR) => Error::new(ErrorCode::Invalid, message),
        Some(libc::ENOTCONN) => Error::new(ErrorCode::InUse, message)
            .with_hint("a mount whose process has ended is there: archipelago umount DIR"),
        Some(libc::EPERM | libc::EACCES) => Error::new(ErrorCode::Denied, message)
            .with_hint("be root, or install fusermount3 (package fuse3)"),
        _ => Error::new(ErrorCode::Io, message),
    }
}
