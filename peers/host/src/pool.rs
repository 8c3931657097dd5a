//! The pool of a data process, of any kind: how its backend is opened.

use std::path::Path;

use archipelago_blocker::Backend;
use archipelago_mapper::Sharing;
use archipelago_protocol::Error;
use archipelago_protocol::check::Report;
use archipelago_runtime::Reactor;

/// The purpose of opening a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To serve it by this many data threads, each with a backend of its own: space is reserved for metadata.
    Serve {
        /// At least 1.
        threads: usize,
    },
    /// To check it.
    Check,
}

/// A pool of one kind, from the settings of a process.
///
/// The binary of a backend implements it for its own pool; this crate names no backend.
pub trait Pool {
    /// The backend of this kind of pool.
    type Backend: Backend + 'static;
    /// The opened pool, for the backend of another data thread.
    type Joined: Clone + Send;

    /// The directories in which the backend makes, reads and writes files: the confined process keeps access to them.
    fn directories(&self) -> Vec<&Path>;

    /// Further files and directories that the backend reads: the confined process may read them.
    fn reads(&self) -> Vec<&Path> {
        Vec::new()
    }

    /// Whether the backend uses the network: the confined process keeps access to it.
    fn uses_network(&self) -> bool {
        false
    }

    /// File descriptors that the backend needs for itself, in a process with a limit of `limit`.
    fn descriptors(&self, limit: u64) -> u64;

    /// The pool of `backend`, for a further data thread; `None`: this kind of pool is served by one thread.
    fn join(backend: &Self::Backend) -> Option<Self::Joined>;

    /// Opens a further backend of an opened pool, with sources of `reactor`.
    ///
    /// # Errors
    /// Why there cannot be one.
    fn open_joined(joined: Self::Joined, reactor: &Reactor) -> Result<Self::Backend, Error>;

    /// Opens the pool for this process alone, with sources of `reactor`; `node` is the node's directory of sockets, for messages.
    ///
    /// # Errors
    /// Why the pool cannot be opened.
    fn open(
        &self,
        reactor: &Reactor,
        purpose: Purpose,
        node: &Path,
    ) -> Result<Self::Backend, Error>;

    /// Which other nodes or threads may serve the pool at the same time.
    fn sharing(&self) -> Sharing;

    /// Adds foreign files in the pool to `report`, which only this kind of pool can find.
    fn look_for_foreign(&self, report: &mut Report);
}
