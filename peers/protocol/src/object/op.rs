//! The operations of the contract.

/// Operations of the contract. The numbers are those of the ring entries; retired numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectOp {
    /// Reads `len` bytes at `offset`. Result: `len`; a shorter count never happens. Bytes that were never written: zeros.
    Read = 1,
    /// Writes `len` bytes at `offset`; creates the object if it does not exist. Result: `len`; a shorter count never happens.
    Write = 2,
    /// Makes all completed writes to `id` durable, its name included.
    Sync = 3,
    /// Makes all completed writes to the pool durable. It fails if another sync, of any object, fails while it is under way: the failed one
    /// may have dropped data that this one covers.
    SyncPool = 4,
    /// Replaces the content of a small object (at most [`SWAP_LEN_MAX`](crate::object::SWAP_LEN_MAX) bytes) if its version is `offset`;
    /// version 0: it does not exist yet. Value 0 of the reply: the version after the call. If the version is another one:
    /// [`Stale`](crate::ErrorCode::Stale) with that version as value 0. A repetition of the swap that succeeded last succeeds if the
    /// content is the same.
    CompareAndSwap = 5,
    /// Reads a small object that was written by compare-and-swap. Result: its length; value 0: its version.
    ReadSwapped = 6,
    /// Deletes the object, in steps if it is large; its space is free when this completes. Succeeds if the object does not exist.
    Delete = 7,
    /// Deletes every object of the lineage but its head, then the head.
    DeleteLineage = 8,
    /// Gives the space of `[offset, offset + len)` back; it reads as zeros afterwards. Durable after a later sync of the pool.
    Punch = 9,
    /// Result 0; values: bytes that the object occupies, and its length. The cost does not depend on other objects. For data: all that the
    /// lineage wrote in the epoch, at a cost that grows with the lineage.
    Stat = 10,
    /// Result 0; values: bytes free and bytes in all of the pool. Both 0: unknown.
    StatPool = 11,
    /// Lists objects with (lineage, kind, number) above the given id as [`ObjectId`](crate::object::ObjectId)s of 32 bytes into the memory.
    /// Result: bytes filled; 0: no more. If there is no room for one id: [`Invalid`](crate::ErrorCode::Invalid).
    List = 12,
    // Retired: 13, a barrier. It had no other effect than to complete after all earlier requests of its channel.
    /// Appends `len` bytes, the sectors of one batch of [`crate::log_sector`], to the log `id`, durably. Result: `len`. They are written
    /// only if `offset` is the log's end and `token` is not below the log's; otherwise the log is unchanged, and the reply is
    /// [`Stale`](crate::ErrorCode::Stale) with the end as value 0. A repetition of the append that landed last, with equal bytes, succeeds.
    /// Bytes that would cross the end of the circle, or are not a batch of this position and token: [`Invalid`](crate::ErrorCode::Invalid).
    Append = 14,
    /// Raises the token of the log `id` to `token`, durably, and waits for the appends in flight: from its completion on each append with a
    /// lower token is [`Stale`](crate::ErrorCode::Stale), whatever dies. Needs no space. Result 0. For a token below the log's:
    /// [`Stale`](crate::ErrorCode::Stale) with the log's token as value 0. A repetition succeeds.
    Seal = 15,
    /// Makes an empty object, durably: [`Exists`](crate::ErrorCode::Exists) if it exists. Not for heads, which are made by a swap of
    /// version 0, nor for data, whose objects share files.
    Create = 16,
    /// Value 0: the [`Capabilities`](crate::capabilities::Capabilities) of the backend. `id` is not used. Answered at once, before all
    /// later requests.
    Capabilities = 17,
}

impl ObjectOp {
    /// Whether it concerns the pool, or a lineage of it: then its entry contains an id. All others contain a handle.
    #[must_use]
    pub fn is_about_pool(self) -> bool {
        use ObjectOp::{Capabilities, DeleteLineage, List, StatPool, SyncPool};
        matches!(
            self,
            SyncPool | DeleteLineage | StatPool | List | Capabilities
        )
    }

    pub(super) fn from_bits(bits: u8) -> Option<Self> {
        use ObjectOp::{
            Append, Capabilities, CompareAndSwap, Create, Delete, DeleteLineage, List, Punch, Read,
            ReadSwapped, Seal, Stat, StatPool, Sync, SyncPool, Write,
        };
        [
            Read,
            Write,
            Sync,
            SyncPool,
            CompareAndSwap,
            ReadSwapped,
            Delete,
            DeleteLineage,
            Punch,
            Stat,
            StatPool,
            List,
            Append,
            Seal,
            Create,
            Capabilities,
        ]
        .into_iter()
        .find(|op| *op as u8 == bits)
    }
}
