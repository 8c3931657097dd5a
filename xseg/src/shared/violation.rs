//! Violations of the protocol by a peer; each ends its channel.

/// The reason why a channel was broken. It is a fault of the other side; other channels are not affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A cursor that a correct peer never stores: more entries than the ring holds, or less than before.
    #[error("a ring cursor that cannot be")]
    Cursor,
    /// A request whose tag has a slot beyond the ring's size, or one in flight.
    #[error("a request under a tag that is not free")]
    Tag,
    /// A completion for a request that is not in flight.
    #[error("a completion of nothing in flight")]
    Completion,
    /// A header that contradicts the hello or its own checksum.
    #[error("a segment header that is not what was agreed")]
    Header,
    /// Memory without its seals, or of another size than announced.
    #[error("memory without its seals or of another size")]
    Memory,
    /// A message that is not allowed in this state.
    #[error("a message that does not belong here")]
    Message,
    /// A process of another user.
    #[error("a process of a user who is not admitted")]
    Credentials,
    /// A process of a user who is admitted, but not in the role that it claims.
    #[error("a role that its user is not admitted in")]
    Role,
    /// The layer above found requests that a correct client never sends.
    #[error("refused by the layer above")]
    Protocol,
}
