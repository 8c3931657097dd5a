//! Whether a state has sent its request.

/// The one request of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// To be sent as soon as a credit is free.
    Due,
    /// Sent; the answer is awaited.
    Sent,
}
