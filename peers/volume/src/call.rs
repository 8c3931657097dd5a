//! Whether a state has sent what it calls for.

/// A request that a state calls for, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    /// To be sent as soon as there is a credit.
    Due,
    /// The answer is waited for.
    Sent,
}
