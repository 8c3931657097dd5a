//! What all clients share: exports, certificates, the count of them, and whether the server ends.

use std::cell::Cell;

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::exports::Exports;

/// Clients that use exports at a time: each can have 32 MiB of replies waiting, so these 2 GiB.
pub(crate) const CLIENTS_MAX: usize = 64;

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) exports: Exports,
    /// `None`: nothing is encrypted.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Whether the server is about to end.
    pub(crate) ending: watch::Receiver<bool>,
    /// Clients that use exports.
    clients: Cell<usize>,
}

impl Shared {
    pub(crate) fn new(
        exports: Exports,
        tls: Option<TlsAcceptor>,
        ending: watch::Receiver<bool>,
    ) -> Self {
        Shared {
            exports,
            tls,
            ending,
            clients: Cell::new(0),
        }
    }

    /// Whether another client may use an export.
    pub(crate) fn has_room(&self) -> bool {
        self.clients.get() < CLIENTS_MAX
    }

    /// Counts a client that uses an export, until the result is dropped.
    pub(crate) fn count_client(&self) -> Counted<'_> {
        self.clients.set(self.clients.get() + 1);
        Counted(self)
    }
}

/// A client that is counted.
pub(crate) struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.clients.set(self.0.clients.get() - 1);
    }
}
