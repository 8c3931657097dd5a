//! What all clients share: exports, certificates, and whether the server ends.

use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use crate::exports::Exports;

/// The state that all clients share.
pub(crate) struct Shared {
    pub(crate) exports: Exports,
    /// `None`: connections are not encrypted.
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
