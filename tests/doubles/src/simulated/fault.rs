//! What can go wrong with a call.

use archipelago_protocol::error::ErrorCode;

/// A fault of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this code. What a failed write leaves, or a failed swap, is for the seed to say; a failed sync
    /// drops what was not durable, as file systems do.
    Fail(ErrorCode),
    /// It is never answered and never has an effect, but for what a power cut makes of it.
    Hang,
}
