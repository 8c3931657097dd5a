//! The operations of the contract.

/// Operations of the contract. The numbers are the wire's; retired numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectOp {
    /// Reads `len` bytes at `offset`. Result: `len`; a shorter count never happens. Beyond what was written: zeros.
    Read = 1,
    /// Writes `len` bytes at `offset`, creating the object if need be. Result: `len`; a shorter count never happens.
    Write = 2,
    /// Makes all completed writes to `id` durable, its name included.
    Sync = 3,
    /// Makes all completed writes to the pool durable. It fails if another sync, of whatever, fails while it is under way: what that
    /// one dropped, this one may not have made durable.
    SyncPool = 4,
    /// Replaces the content of a small object (at most [`SWAP_LEN_MAX`](crate::object::SWAP_LEN_MAX) bytes) if its version is `offset`; version 0:
    /// it does not exist yet. Value 0 of the reply: the version after the call. Another version there:
    /// [`Stale`](crate::ErrorCode::Stale) with that version as value 0. A repetition of the swap that won succeeds if the content
    /// is the same.
    CompareAndSwap = 5,
    /// Reads a small object that compare-and-swap wrote. Result: its length; value 0: its version.
    ReadSwapped = 6,
    /// Deletes the object, in steps if it is large; its space is free when this completes. Deleting nothing succeeds.
    Delete = 7,
    /// Deletes every object of the lineage but its head, then the head.
    DeleteLineage = 8,
    /// Gives the space of `[offset, offset + len)` back; it reads as zeros afterwards. Durable after a later sync of the pool.
    Punch = 9,
    /// Result 0; values: bytes that the object occupies, and its length. Looks at this object and no other, so its cost does not
    /// grow with what else there is. For data: all that the lineage wrote in the epoch, at a cost that grows with the lineage.
    Stat = 10,
    /// Result 0; values: bytes free and bytes in all of the pool. Both 0: nobody knows.
    StatPool = 11,
    /// Lists objects with (lineage, kind, number) above the given id as [`ObjectId`](crate::object::ObjectId)s of 32 bytes into the memory.
    /// Result: bytes filled; 0: no more. No room for one id:
    /// [`Invalid`](crate::ErrorCode::Invalid).
    List = 12,
    // Retired: 13, a barrier. It did nothing, and completed when all earlier requests of its channel had.
    /// Appends `len` bytes, the sectors of one batch of [`crate::log_sector`], to the log `id`, durably. Result: `len`. They land
    /// only if `offset` is the log's end and `token` is not below the log's; otherwise the log stays as it is, and the reply is
    /// [`Stale`](crate::ErrorCode::Stale) with the end as value 0. A repetition of the append that landed last, with equal bytes, succeeds.
    /// Bytes that would cross the end of the circle, or are no batch of this position and token: [`Invalid`](crate::ErrorCode::Invalid).
    Append = 14,
    /// Raises the token of the log `id` to `token`, durably, and waits for the appends in flight: from its completion on each append
    /// with a lower token is [`Stale`](crate::ErrorCode::Stale), whatever dies. Needs no room. Result 0. A token below the log's:
    /// [`Stale`](crate::ErrorCode::Stale) with that one as value 0; the same again succeeds.
    Seal = 15,
    /// Makes an empty object, durably, which nobody has made before: [`Exists`](crate::ErrorCode::Exists) if it is there. Not for heads, which a
    /// swap of version 0 makes, nor for data, whose objects share files.
    Create = 16,
    /// Value 0: the [`Capabilities`](crate::capabilities::Capabilities) of the backend. `id` names nothing. Answered at once: before
    /// whatever is asked behind it.
    Capabilities = 17,
}

impl ObjectOp {
    /// Whether it is about the pool, or a lineage of it: its entry carries an id. All others carry a handle.
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
