//! Why a ring is not served any more.

use crate::chain::ChainError;

/// How a guest has broken its ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Broken {
    #[error("avail index {avail} is more than the ring's {size} entries ahead of {taken}")]
    AvailIndex { avail: u16, taken: u16, size: u16 },
    #[error("head {head} is not below the ring's size {size}")]
    HeadOutside { head: u16, size: u16 },
    #[error("head {head} was made available again while in flight")]
    HeadTwice { head: u16 },
    #[error("the chain at head {head} has no end that can be found")]
    Chain { head: u16, source: ChainError },
    #[error("the chain at head {head} does not end in a writable status byte in guest memory")]
    NoStatus { head: u16 },
    #[error("the file of the guest's memory was truncated")]
    Truncated,
}
