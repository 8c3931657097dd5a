//! What all clients share: exports, certificates, and whether the server ends.

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::exports::Exports;

/// What all clients share.
pub(crate) struct Shared {
    pub(crate) exports: Exports,
    /// `None`: nothing is encrypted.
    pub(crate) tls: Option<TlsAcceptor>,
    /// Whether the server is about to end.
    pub(crate) ending: watch::Receiver<bool>,
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
        }
    }
}
