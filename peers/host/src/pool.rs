//! The pool of a data process, whatever its kind: how its backend is opened.

use std::path::Path;

use archipelago_blocker::Backend;
use archipelago_mapper::Sharing;
use archipelago_protocol::Error;
use archipelago_protocol::check::Report;
use archipelago_runtime::Reactor;

/// What a pool is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be served by this many data threads, each with a backend of its own: room is set aside for metadata.
    Serve {
        /// At least 1.
        threads: usize,
    },
    /// To be looked at.
    Check,
}

/// A pool of one kind, as the settings of a process name it.
///
/// The binary of a backend implements it for its own pool; this crate names no backend.
pub trait Pool {
    /// What serves the pool.
    type Backend: Backend + 'static;
    /// The opened pool, for the backend of another data thread.
    type Joined: Clone + Send;

    /// The directories in which the backend makes, reads and writes files: the confined process keeps them.
    fn directories(&self) -> Vec<&Path>;

    /// What the backend reads outside of them: the confined process may read these files, and what is below these directories.
    fn reads(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Whether the backend speaks to other hosts: the confined process may.
    fn uses_network(&self) -> bool {
        false
    }

    /// File descriptors that the backend needs for itself, in a process that may have `limit`.
    fn descriptors(&self, limit: u64) -> u64;

    /// The pool of `backend`, for one more data thread; `None`: this kind of pool is served by one thread.
    fn join(backend: &Self::Backend) -> Option<Self::Joined>;

    /// One more backend of an opened pool, with sources of `reactor`.
    ///
    /// # Errors
    /// Why there cannot be one.
    fn open_joined(joined: Self::Joined, reactor: &Reactor) -> Result<Self::Backend, Error>;

    /// Opens the pool for this process alone, with sources of `reactor`; `node` is the node's directory of sockets, for people.
    ///
    /// # Errors
    /// Why the pool cannot be opened.
    fn open(
        &self,
        reactor: &Reactor,
        purpose: Purpose,
        node: &Path,
    ) -> Result<Self::Backend, Error>;

    /// Who else may serve the pool while this process does.
    fn sharing(&self) -> Sharing;

    /// Adds to `report` what lies in the pool and is not part of it, as far as only this kind of pool can see.
    fn look_for_foreign(&self, report: &mut Report);
}
