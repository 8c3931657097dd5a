//! Opens a pool: once for a process, whose data threads have a backend each.
//!
//! Invariants
//! - The pool's lock is one open file, which each backend's ring keeps: it is released when the last ring has ended.
//! - All backends share the findings of the open, and the reserve.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::control::PoolAccess;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, Source};

use crate::access::{self, Access, Found};
use crate::errors::{code_of, failed_for_pool};
use crate::layout::Layout;
use crate::owner::{self, Claimant, Owner};
use crate::reserve::Reserve;
use crate::siblings::{Sibling, Siblings};
use crate::{lock, pool};

/// How a pool is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The pool's directory.
    pub directory: PathBuf,
    /// Whether to use `O_DIRECT` if the file system supports it.
    pub direct: bool,
    /// Whether to reserve space for metadata; an existing reserve is used in any case.
    pub reserve: bool,
    /// Timeout for the pool's lock, which a dead predecessor's ring may hold for some milliseconds.
    pub lock_timeout: Duration,
    /// The process that opens it.
    pub claimant: Claimant,
    /// Number of backends that the process will have for the pool: at least 1.
    pub backends: usize,
}

/// A pool that this process has open, for one more backend.
#[derive(Debug, Clone)]
pub struct JoinedPool {
    layout: Layout,
    lock: Arc<File>,
    found: Found,
    /// The writes of a predecessor are durable.
    is_synced: bool,
    reserve: Arc<Reserve>,
    siblings: Arc<Siblings>,
}

/// The pool's reserve, which begins to grow if `wanted`.
fn open_reserve(layout: &Layout, wanted: bool) -> Result<Arc<Reserve>, Error> {
    let reserve = Reserve::open(layout);
    let reserve =
        reserve.map_err(|error| failed_for_pool("open the reserve", layout.directory(), &error))?;
    if wanted {
        reserve.grow();
        reserve.report_start();
    }
    Ok(Arc::new(reserve))
}

impl JoinedPool {
    /// Opens the pool for this process. Returns the pool, the place of its first backend, which is on the ring of `source`, and the owner.
    pub(crate) fn open(
        options: &Options,
        source: &Source,
        clock: &dyn Clock,
    ) -> Result<(JoinedPool, Sibling, Option<Owner>), Error> {
        let layout = Layout::new(&options.directory);
        pool::check_marker(&layout)?;
        let lock = lock::take(&layout, clock, clock.now() + options.lock_timeout)?;
        // First of all calls on the ring.
        keep_lock(&lock, source, &options.directory)?;
        let owner = owner::claim(&layout, &options.claimant, clock)?;
        let found = match options.direct {
            true => access::find(&layout, source)?,
            false => access::configured_cached(),
        };
        let synced = File::open(&options.directory).and_then(|dir| Ok(nix::unistd::syncfs(dir)?));
        if let Err(error) = &synced {
            let error = failed_for_pool("sync the file system", &options.directory, error);
            tracing::error!("{}: what was not flushed may be lost", error.message);
        }
        let joined = JoinedPool {
            reserve: open_reserve(&layout, options.reserve)?,
            lock: Arc::new(lock),
            found,
            is_synced: synced.is_ok(),
            siblings: Siblings::new(options.backends.max(1)),
            layout,
        };
        let first = joined.take_place()?;
        Ok((joined, first, owner))
    }

    /// The place of a further backend, on the ring of `source`, which keeps the pool's lock from then on.
    pub(crate) fn enter(&self, source: &Source) -> Result<Sibling, Error> {
        keep_lock(&self.lock, source, self.layout.directory())?;
        self.take_place()
    }

    fn take_place(&self) -> Result<Sibling, Error> {
        self.siblings.join().ok_or_else(|| {
            let text = format!(
                "pool `{}` was opened for {} backends",
                self.layout.directory().display(),
                self.backends()
            );
            Error::new(ErrorCode::Internal, text)
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn access(&self) -> Access {
        self.found.access
    }

    /// How its files are accessed, with the reason.
    pub(crate) fn report(&self) -> PoolAccess {
        self.found.report.clone()
    }

    pub(crate) fn is_synced(&self) -> bool {
        self.is_synced
    }

    pub(crate) fn reserve(&self) -> &Arc<Reserve> {
        &self.reserve
    }

    /// Number of backends that the process has for the pool.
    pub(crate) fn backends(&self) -> usize {
        self.siblings.count()
    }
}

/// Makes the lock outlive this process until the kernel has finished all calls of the ring of `source`.
fn keep_lock(lock: &File, source: &Source, directory: &Path) -> Result<(), Error> {
    let same = lock
        .try_clone()
        .map_err(|error| failed_for_pool("keep the lock", directory, &error))?;
    source.keep_until_ring_ends(same.into()).map_err(|error| {
        let hint = error.hint();
        let what = format!("keep the lock by io_uring: {error}: {}", error.cause());
        let text = format!("pool `{}`: {what}", directory.display());
        Error::new(code_of(error.cause()), text).with_hint(hint)
    })
}
