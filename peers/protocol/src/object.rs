//! The object contract: what a blocker does for volume peers and mappers.
//!
//! An object is addressed by structured numbers. Data lies in an address space of its own for each (lineage, epoch):
//! byte `offset` of it is byte `offset` of the volume, so object `i` is `offset / object_size == i`, and each backend
//! places it as suits it: the file blocker by arithmetic in a container, RADOS as one RADOS object.
//!
//! Guarantees
//! - Requests in flight at the same time are not ordered. What was completed before another was submitted precedes it.
//! - A completed [`ObjectOp::Write`] is seen by every later read, and is durable after a later completed
//!   [`ObjectOp::Sync`] of its object or pool. Until then any subset of its sectors may survive a power cut. With
//!   [`FLAG_DURABLE`] it is durable when completed.
//! - [`ObjectOp::CompareAndSwap`] is atomic and durable when completed: after a crash the object is old or new.
//! - What was never written reads as zeros, in objects that exist; an object that does not exist is
//!   [`ErrorCode::NotFound`] to read (data and metadata alike), and is created by its first write.
//! - Every request may be repeated: the same write, swap, append, seal, punch or delete again leaves the same state. After a
//!   [`ObjectOp::Create`] whose answer was lost, the repetition says [`ErrorCode::Exists`].
//!
//! Logs
//! - A log is made by plain writes of blank sectors ([`crate::log_sector`]), and has the length that these gave it. It changes by
//!   appends from then on: after the first one a plain write is [`ErrorCode::Stale`].
//! - Position `p` of a log stands at `p` modulo its length. Its **end** is the position behind the last append that landed whole.
//! - Its **token** is the generation whose session may append. A seal raises it and nothing lowers it.

mod id;

use xseg::{Completion, Submission};

use crate::error::ErrorCode;
use crate::ids::{Generation, Lineage, ObjectSize};

pub use id::{OBJECT_ID_LEN, ObjectId, ObjectKind};

/// Operations of the contract. The numbers are the wire's; retired numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectOp {
    /// Reads `len` bytes at `offset`. Result: `len`; a shorter count never happens. Beyond what was written: zeros.
    Read = 1,
    /// Writes `len` bytes at `offset`, creating the object if need be. Result: `len`; a shorter count never happens.
    Write = 2,
    /// Makes all completed writes to `id` durable, its name included. For data: the 64 GiB around `offset`.
    Sync = 3,
    /// Makes all completed writes to the pool durable. It fails if another sync, of whatever, fails while it is under way: what that
    /// one dropped, this one may not have made durable.
    SyncPool = 4,
    /// Replaces the content of a small object (at most [`SWAP_LEN_MAX`] bytes) if its version is `offset`; version 0:
    /// it does not exist yet. Value 0 of the reply: the version after the call. Another version there:
    /// [`ErrorCode::Stale`] with that version as value 0. A repetition of the swap that won succeeds if the content
    /// is the same.
    CompareAndSwap = 5,
    /// Reads a small object that compare-and-swap wrote. Result: its length; value 0: its version.
    ReadSwapped = 6,
    /// Deletes the object, in steps if it is large; its space is free when this completes. Deleting nothing succeeds.
    Delete = 7,
    /// Deletes every object of the lineage but its head, then the head.
    DeleteLineage = 8,
    /// Gives the space of `[offset, offset + len)` back; it reads as zeros afterwards.
    Punch = 9,
    /// Result 0; values: bytes that the object occupies, and its length. Looks at this object and no other, so its cost does not
    /// grow with what else there is. For data: all that the lineage wrote in the epoch, at a cost that grows with the lineage.
    Stat = 10,
    /// Result 0; values: bytes free and bytes in all of the pool. Both 0: nobody knows.
    StatPool = 11,
    /// Lists objects with (lineage, kind, number) above the given id as [`ObjectId`]s of 32 bytes into the memory.
    /// Result: bytes filled; 0: no more. No room for one id:
    /// [`ErrorCode::Invalid`].
    List = 12,
    // Retired: 13, a barrier. It did nothing, and completed when all earlier requests of its channel had.
    /// Appends `len` bytes, the sectors of one batch of [`crate::log_sector`], to the log `id`, durably. Result: `len`. They land
    /// only if `offset` is the log's end and `token` is not below the log's; otherwise the log stays as it is, and the reply is
    /// [`ErrorCode::Stale`] with the end as value 0. A repetition of the append that landed last, with equal bytes, succeeds.
    /// Bytes that would cross the end of the circle, or are no batch of this position and token: [`ErrorCode::Invalid`].
    Append = 14,
    /// Raises the token of the log `id` to `token`, durably, and waits for the appends in flight: from its completion on each append
    /// with a lower token is [`ErrorCode::Stale`], whatever dies. Needs no room. Result 0. A token below the log's:
    /// [`ErrorCode::Stale`] with that one as value 0; the same again succeeds.
    Seal = 15,
    /// Makes an empty object, durably, which nobody has made before: [`ErrorCode::Exists`] if it is there. Not for heads, which a
    /// swap of version 0 makes, nor for data, whose objects share files.
    Create = 16,
    /// Value 0: the [`Capabilities`](crate::capabilities::Capabilities) of the backend. `id` names nothing.
    Capabilities = 17,
}

impl ObjectOp {
    fn from_bits(bits: u8) -> Option<Self> {
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

    /// Whether the operation is of a session, whose token it carries.
    fn has_token(self) -> bool {
        matches!(self, ObjectOp::Append | ObjectOp::Seal)
    }
}

/// [`ObjectRequest::flags`]: a write is durable when it completes.
pub const FLAG_DURABLE: u8 = 1;
/// Longest content of a compare-and-swap object: a 4 KiB slot less its own head.
pub const SWAP_LEN_MAX: u32 = 4096 - 64;
/// Most bytes of one read or write: larger ones are split by the client.
pub const IO_LEN_MAX: u32 = 32 << 20;
/// The bits of a log's number beside a token: both go into one word.
const NUMBER_MASK: u64 = u32::MAX as u64;
/// Most entries of a scatter list.
pub const SCATTER_MAX: u16 = 1024;
/// Bytes of an entry of a scatter list: region u32, length u32, offset u64, little-endian.
pub const SCATTER_ENTRY_LEN: usize = 16;

/// Where the bytes of a request are: a buffer, or a list of buffers, in memory that the channel knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Region of the buffer, or of the scatter list.
    pub region: u32,
    /// Entries of the scatter list; 0: the buffer itself is at `offset`.
    pub count: u16,
    /// Offset in the region, in bytes.
    pub offset: u64,
}

/// A request to a blocker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRequest {
    /// What to do.
    pub op: ObjectOp,
    /// [`FLAG_DURABLE`] or 0.
    pub flags: u8,
    /// Which object.
    pub id: ObjectId,
    /// Size of the pieces into which the volume's data is cut; matters to backends with one object each.
    pub object_size: ObjectSize,
    /// Byte offset in the object's address space; for [`ObjectOp::CompareAndSwap`] the expected version, for
    /// [`ObjectOp::Append`] the position.
    pub offset: u64,
    /// Whose session asks, for [`ObjectOp::Append`] and [`ObjectOp::Seal`]; below 2^32. Others carry none.
    pub token: Generation,
    /// Bytes of data in memory.
    pub len: u32,
    /// Where the data is.
    pub memory: Memory,
}

impl ObjectRequest {
    /// A request of `op` on `id`, with no data and at offset 0.
    #[must_use]
    pub fn new(op: ObjectOp, id: ObjectId) -> Self {
        ObjectRequest {
            op,
            flags: 0,
            id,
            object_size: ObjectSize::DEFAULT,
            offset: 0,
            token: Generation(0),
            len: 0,
            memory: Memory::default(),
        }
    }

    /// The request as a ring entry.
    #[must_use]
    pub fn encode(&self) -> Submission {
        let [high, low] = self.id.lineage.to_words();
        let number = match self.op.has_token() {
            true => self.id.number & NUMBER_MASK | self.token.0 << 32,
            false => self.id.number,
        };
        Submission {
            tag: 0,
            op: self.op as u8,
            flags: self.flags,
            count: self.memory.count,
            len: self.len,
            handle: u32::from(self.id.kind as u8) | u32::from(self.object_size.log2()) << 8,
            region: self.memory.region,
            offset: self.offset,
            region_offset: self.memory.offset,
            args: [high, low, number],
        }
    }

    /// The request in a ring entry, judged for form: operation, kind and sizes are known ones. Memory is not judged.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] for an unknown operation, [`ErrorCode::Invalid`] for any other field.
    pub fn decode(entry: &Submission) -> Result<Self, ErrorCode> {
        let op = ObjectOp::from_bits(entry.op).ok_or(ErrorCode::Unsupported)?;
        let kind = ObjectKind::from_bits(entry.handle & 0xff).ok_or(ErrorCode::Invalid)?;
        let log2 = u8::try_from(entry.handle >> 8).map_err(|_too_large| ErrorCode::Invalid)?;
        let object_size = ObjectSize::from_log2(log2).ok_or(ErrorCode::Invalid)?;
        let fits = entry.len <= IO_LEN_MAX
            && entry.count <= SCATTER_MAX
            && entry.flags & !FLAG_DURABLE == 0
            && entry.offset.checked_add(u64::from(entry.len)).is_some();
        if !fits {
            return Err(ErrorCode::Invalid);
        }
        let (number, token) = match op.has_token() {
            true => (entry.args[2] & NUMBER_MASK, entry.args[2] >> 32),
            false => (entry.args[2], 0),
        };
        Ok(ObjectRequest {
            op,
            flags: entry.flags,
            id: ObjectId {
                lineage: Lineage::from_words(entry.args[0], entry.args[1]),
                kind,
                number,
            },
            object_size,
            offset: entry.offset,
            token: Generation(token),
            len: entry.len,
            memory: Memory {
                region: entry.region,
                count: entry.count,
                offset: entry.region_offset,
            },
        })
    }
}

/// The answer to an [`ObjectRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectReply {
    /// Count that the operation's description names, or why it failed.
    pub result: Result<u32, ErrorCode>,
    /// Values that the operation's description names.
    pub values: [u64; 2],
}

impl ObjectReply {
    /// Success with count `result` and no values.
    #[must_use]
    pub fn done(result: u32) -> Self {
        ObjectReply {
            result: Ok(result),
            values: [0; 2],
        }
    }

    /// Failure without values.
    #[must_use]
    pub fn failed(code: ErrorCode) -> Self {
        ObjectReply {
            result: Err(code),
            values: [0; 2],
        }
    }

    /// The reply as a ring entry to the request with `tag`.
    #[must_use]
    pub fn encode(&self, tag: u64) -> Completion {
        let result = match self.result {
            // Counts are at most IO_LEN_MAX; a larger one would be our mistake.
            Ok(count) => i32::try_from(count).unwrap_or(ErrorCode::Internal.to_result()),
            Err(code) => code.to_result(),
        };
        Completion {
            tag,
            result,
            flags: 0,
            values: self.values,
        }
    }

    /// The reply in a ring entry.
    #[must_use]
    pub fn decode(entry: &Completion) -> Self {
        let result =
            u32::try_from(entry.result).map_err(|_negative| ErrorCode::from_result(entry.result));
        ObjectReply {
            result,
            values: entry.values,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let request = ObjectRequest {
            op: ObjectOp::Write,
            flags: 1,
            id: ObjectId::pack(Lineage(7 << 70 | 3), 9),
            object_size: ObjectSize::MAX,
            offset: 1 << 40,
            token: Generation(0),
            len: 4096,
            memory: Memory {
                region: 3,
                count: 2,
                offset: 8192,
            },
        };
        let entry = Submission {
            tag: 0,
            op: 2,
            flags: 1,
            count: 2,
            len: 4096,
            handle: 0x1903,
            region: 3,
            offset: 1 << 40,
            region_offset: 8192,
            args: [7 << 6, 3, 9],
        };
        assert_eq!(request.encode(), entry);
        assert_eq!(ObjectRequest::decode(&entry), Ok(request));
        let reply = ObjectReply {
            values: [1, 2],
            ..ObjectReply::done(3)
        };
        let entry = Completion {
            tag: 4,
            result: 3,
            flags: 0,
            values: [1, 2],
        };
        assert_eq!(reply.encode(4), entry);
        assert_eq!(ObjectReply::decode(&entry), reply);
        let failed = ObjectReply::failed(ErrorCode::NoSpace);
        assert_eq!(failed.encode(4).result, -5);
        assert_eq!(ObjectReply::decode(&failed.encode(4)), failed);
        let mistake = ObjectReply::done(u32::MAX).encode(4);
        let internal = ObjectReply::failed(ErrorCode::Internal);
        assert_eq!(ObjectReply::decode(&mistake), internal);
    }

    #[test]
    fn every_operation_and_kind_has_its_number() {
        let good = ObjectRequest::new(ObjectOp::Read, ObjectId::head(Lineage(1))).encode();
        for bits in 0..=u8::MAX {
            let op = ObjectRequest::decode(&Submission { op: bits, ..good });
            let expected = match bits {
                1..=12 | 14..=17 => Ok(bits),
                _ => Err(ErrorCode::Unsupported),
            };
            assert_eq!(op.map(|request| request.op as u8), expected);
            let kind = ObjectRequest::decode(&Submission {
                handle: 22 << 8 | u32::from(bits),
                ..good
            });
            let expected = match bits {
                0..=4 => Ok(bits),
                _ => Err(ErrorCode::Invalid),
            };
            assert_eq!(kind.map(|request| request.id.kind as u8), expected);
        }
        let lineage = Lineage(9);
        let ids = [
            ObjectId::data(lineage, Epoch(7)),
            ObjectId::head(lineage),
            ObjectId::log(lineage, 7),
            ObjectId::pack(lineage, 7),
        ];
        let told = ids.map(|id| (id.lineage, id.kind as u8, id.number));
        let expected = [(0, 7), (1, 0), (2, 7), (3, 7)];
        assert_eq!(told, expected.map(|(kind, number)| (lineage, kind, number)));
    }

    #[test]
    fn a_session_s_operations_have_its_token_beside_the_number() {
        for op in [ObjectOp::Append, ObjectOp::Seal] {
            let request = ObjectRequest {
                token: Generation(7),
                ..ObjectRequest::new(op, ObjectId::log(Lineage(1), 9))
            };
            let entry = request.encode();
            assert_eq!(entry.args[2], 7 << 32 | 9);
            assert_eq!(ObjectRequest::decode(&entry), Ok(request));
        }
        let delete = ObjectRequest::new(ObjectOp::Delete, ObjectId::log(Lineage(1), u64::MAX));
        assert_eq!(ObjectRequest::decode(&delete.encode()), Ok(delete));
    }

    #[test]
    fn the_largest_of_everything_is_taken() {
        assert_eq!(IO_LEN_MAX, 33_554_432);
        assert_eq!(SWAP_LEN_MAX, 4032);
        let largest = Submission {
            count: 1024,
            len: IO_LEN_MAX,
            offset: u64::MAX - u64::from(IO_LEN_MAX),
            ..ObjectRequest::new(ObjectOp::Read, ObjectId::head(Lineage(1))).encode()
        };
        assert!(ObjectRequest::decode(&largest).is_ok());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let good = ObjectRequest::new(ObjectOp::Read, ObjectId::head(Lineage(1))).encode();
        let cases = [
            (Submission { op: 0, ..good }, ErrorCode::Unsupported),
            (Submission { op: 200, ..good }, ErrorCode::Unsupported),
            (
                Submission {
                    handle: 0xff,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    handle: 1 | 99 << 8,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    // The low byte alone would be a legal size.
                    handle: 1 | 22 << 8 | 1 << 16,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    flags: 0x80,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    count: SCATTER_MAX + 1,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    len: IO_LEN_MAX + 1,
                    ..good
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    offset: u64::MAX,
                    len: 1,
                    ..good
                },
                ErrorCode::Invalid,
            ),
        ];
        for (entry, expected) in cases {
            assert_eq!(ObjectRequest::decode(&entry), Err(expected), "{entry:?}");
        }
    }
}
