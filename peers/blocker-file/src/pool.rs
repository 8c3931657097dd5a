//! A pool's directory: made once, opened by one process at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Calls, Clock, Durability, Source};
use nix::errno::Errno;
use nix::fcntl::{FlockArg, OFlag};
use nix::poll::PollTimeout;
use nix::sys::statfs::{FUSE_SUPER_MAGIC, TMPFS_MAGIC, statfs};

use crate::layout::Layout;

/// The one version of the format so far.
const MARKER: &str =
    "# A pool of Archipelago. See docs/pool-format.md before you touch anything.\nversion = 1\n";
/// How often a held lock is tried again.
const LOCK_RETRY_MS: u16 = 5;

fn failed(what: &str, path: &Path, error: &std::io::Error) -> Error {
    Error::new(
        crate::errors::code_of(error),
        format!("{what} `{}`: {error}", path.display()),
    )
}

/// Makes `directory` a pool. One that is a pool already is left as it is.
///
/// # Errors
/// [`ErrorCode::Exists`] if the directory holds something else, or what the file system says.
pub fn create(directory: &Path) -> Result<(), Error> {
    let layout = Layout::new(directory);
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory);
    made.map_err(|error| failed("make the directory", directory, &error))?;
    if layout.marker().exists() {
        return check_marker(&layout);
    }
    let mut entries = fs::read_dir(directory).map_err(|error| failed("read", directory, &error))?;
    if entries.next().is_some() {
        let message = format!("`{}` is not empty and not a pool", directory.display());
        return Err(Error::new(ErrorCode::Exists, message)
            .with_hint("choose an empty directory for the pool"));
    }
    let marker = layout.marker();
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&marker);
    let mut file = made.map_err(|error| failed("make", &marker, &error))?;
    let mut write = || -> std::io::Result<()> {
        file.write_all(MARKER.as_bytes())?;
        file.sync_all()?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| {
        // Half a marker would be refused for ever, as one of an unknown version.
        let _gone = fs::remove_file(&marker);
        failed("write", &marker, &error)
    })
}

/// Refuses a directory that is no pool, or one of an unknown version.
pub(crate) fn check_marker(layout: &Layout) -> Result<(), Error> {
    let path = layout.marker();
    let text = fs::read_to_string(&path).map_err(|error| {
        failed("read", &path, &error)
            .with_hint("`archipelago init` makes a pool; is the right directory configured?")
    })?;
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("version = "));
    if version == Some("1") {
        return Ok(());
    }
    let message = format!(
        "`{}` has version {}, this program knows 1",
        path.display(),
        version.unwrap_or("none")
    );
    Err(Error::new(ErrorCode::Damaged, message)
        .with_hint("use the program that wrote the pool, or a newer one"))
}

/// Locks the pool for this process, waiting until `deadline` for a dead predecessor's last writes.
pub(crate) fn lock(
    layout: &Layout,
    clock: &dyn Clock,
    deadline: Duration,
) -> Result<OwnedFd, Error> {
    let path = layout.lock();
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = open.map_err(|error| failed("open", &path, &error))?;
    loop {
        // The lock lives as long as the open file does; it is not to fall when a guard is dropped.
        #[expect(
            deprecated,
            reason = "the guard of the newer call unlocks when it is dropped"
        )]
        let locked = nix::fcntl::flock(
            std::os::fd::AsRawFd::as_raw_fd(&file),
            FlockArg::LockExclusiveNonblock,
        );
        match locked {
            Ok(()) => break,
            Err(Errno::EWOULDBLOCK) if clock.now() < deadline => {
                let _interrupted = nix::poll::poll(&mut [], PollTimeout::from(LOCK_RETRY_MS));
            }
            Err(Errno::EWOULDBLOCK) => {
                let mut holder = String::new();
                // A holder that cannot be named is still a holder.
                let _unreadable = file.read_to_string(&mut holder);
                let message = format!(
                    "pool `{}` is in use by process {}",
                    layout.directory().display(),
                    holder.trim()
                );
                return Err(Error::new(ErrorCode::InUse, message).with_hint(
                    "stop the node that serves it; if that has ended, its last call on the file system has not returned: \
                     try again when the storage answers",
                ));
            }
            Err(errno) => return Err(failed("lock", &path, &errno.into())),
        }
    }
    let write_pid = |file: &mut File| -> std::io::Result<()> {
        file.set_len(0)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes())
    };
    write_pid(&mut file).map_err(|error| failed("write", &path, &error))?;
    Ok(file.into())
}

/// How files of the pool can be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Past the page cache, by io_uring; offsets, lengths and addresses are multiples of this.
    Direct { alignment: u32 },
    /// Through the page cache, by plain calls.
    Cached,
}

/// What is below the page cache, and so how calls on the file system are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Below {
    /// Memory: calls only copy, and io_uring would hand them to its workers.
    Memory,
    /// Something that a call does not wait for if it is asked not to, or that io_uring knows not to ask.
    Device,
    /// Another process (FUSE): its kernel side waits, for a lock of the file at least, also if it is asked not to.
    Process,
}

impl Below {
    pub(crate) fn of(layout: &Layout) -> Below {
        match statfs(layout.directory()).map(|found| found.filesystem_type()) {
            Ok(TMPFS_MAGIC) => Below::Memory,
            Ok(FUSE_SUPER_MAGIC) => Below::Process,
            _ => Below::Device,
        }
    }

    /// Who makes the calls that the ring is asked for.
    pub(crate) fn calls(self) -> Calls {
        match self {
            Below::Memory | Below::Device => Calls::First,
            Below::Process => Calls::Workers,
        }
    }
}

/// Finds out what the file system takes, by trying it.
pub(crate) fn probe(layout: &Layout, source: &Source) -> Result<Access, Error> {
    let path = layout.directory().join("probe");
    let try_all = || -> std::io::Result<Access> {
        let memory = xseg::Region::anonymous(4096)?;
        let direct = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(OFlag::O_DIRECT.bits())
            .open(&path);
        let file: archipelago_runtime::File = match direct {
            Ok(file) => file.into(),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(Access::Cached),
            Err(error) => return Err(error),
        };
        for alignment in [512_u32, 4096] {
            let span = memory
                .span(0, u64::from(alignment))
                .map_err(std::io::Error::other)?;
            match source.write_now(&file, &[span], 0, Durability::Later) {
                Ok(_) => return Ok(Access::Direct { alignment }),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Access::Cached)
    };
    let found = try_all();
    // Left behind it would be a foreign file, nothing worse.
    let _gone = fs::remove_file(&path);
    let found = found.map_err(|error| failed("try direct I/O in", layout.directory(), &error))?;
    tracing::info!("pool {}: {found:?}", layout.directory().display());
    Ok(found)
}
