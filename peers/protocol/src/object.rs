//! The object contract: the operations of a blocker for volume peers and mappers.
//!
//! An object is addressed by structured numbers. Data lies in an address space of its own for each (lineage, epoch):
//! byte `offset` of it is byte `offset` of the volume, so object `i` is `offset / object_size == i`, and each backend
//! places it as it needs: the file blocker by arithmetic in a container, RADOS as one RADOS object.
//!
//! A client opens an object ([`crate::handle`]); its requests carry the handle. The three argument words of such an entry are
//! reserved, for a displacement and for names of content, and are 0.
//!
//! Guarantees
//! - Requests in flight at the same time are not ordered. A request that was completed before another was submitted precedes it.
//! - A completed [`ObjectOp::Write`] is seen by every later read, and is durable after a later completed
//!   [`ObjectOp::Sync`] of its object or pool. Until then any subset of its sectors may survive a power cut. With
//!   [`FLAG_DURABLE`] it is durable when completed.
//! - [`ObjectOp::CompareAndSwap`] is atomic and durable when completed: after a crash the object is old or new.
//! - Bytes that were never written read as zeros, in objects that exist; an object that does not exist is
//!   [`ErrorCode::NotFound`] to read (data and metadata alike), and is created by its first write.
//! - Every request may be repeated: the same write, swap, append, seal, punch or delete again leaves the same state. After a
//!   [`ObjectOp::Create`] whose answer was lost, the repetition returns [`ErrorCode::Exists`].
//!
//! Logs
//! - A log is made by plain writes of blank sectors ([`crate::log_sector`]), and has the length that these gave it. It changes by
//!   appends from then on: after the first one a plain write is [`ErrorCode::Stale`].
//! - Position `p` of a log stands at `p` modulo its length. Its **end** is the position behind the last append that landed whole.
//! - Its **token** is the generation whose session may append. A seal raises it and nothing lowers it.

mod id;
mod op;

use xseg::Submission;

use crate::error::ErrorCode;
use crate::handle::{FencingToken, HandleAccess, OpenObject};
use crate::ids::{Generation, Lineage, ObjectSize};
use crate::reply::Reply;

pub use id::{OBJECT_ID_LEN, ObjectId, ObjectKind};
pub use op::ObjectOp;

/// [`ObjectRequest::flags`]: a write is durable when it completes.
pub const FLAG_DURABLE: u8 = 1;
/// Longest content of a compare-and-swap object: a 4 KiB slot minus its header.
pub const SWAP_LEN_MAX: u32 = 4096 - 64;
/// Most bytes of one read or write: larger ones are split by the client.
pub const IO_LEN_MAX: u32 = 32 << 20;
/// Most entries of a scatter list.
pub const SCATTER_MAX: u16 = 1024;
/// Bytes of an entry of a scatter list: region u32, length u32, offset u64, little-endian.
pub const SCATTER_ENTRY_LEN: usize = 16;

/// The memory of a request: a buffer, or a list of buffers, in regions of the channel.
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
    /// The object.
    pub id: ObjectId,
    /// Size of the pieces into which the volume's data is cut; matters to backends with one object each.
    pub object_size: ObjectSize,
    /// Byte offset in the object's address space; for [`ObjectOp::CompareAndSwap`] the expected version, for
    /// [`ObjectOp::Append`] the position.
    pub offset: u64,
    /// The generation of the session that opened the handle. Below 2^32; [`ObjectOp::Append`] and [`ObjectOp::Seal`] need it.
    pub token: Generation,
    /// Bytes of data in memory.
    pub len: u32,
    /// The memory for the data.
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

    /// The request as a ring entry, on `handle`, which its client has opened for [`ObjectRequest::id`]. A request about the pool contains
    /// the id itself, and no handle.
    #[must_use]
    pub fn encode(&self, handle: u32) -> Submission {
        let [high, low] = self.id.lineage.to_words();
        let (handle, args) = if self.op.is_about_pool() {
            (u32::from(self.id.kind as u8), [high, low, self.id.number])
        } else {
            (handle, [0; 3])
        };
        Submission {
            tag: 0,
            op: self.op as u8,
            flags: self.flags,
            count: self.memory.count,
            len: self.len,
            handle,
            region: self.memory.region,
            offset: self.offset,
            region_offset: self.memory.offset,
            args,
        }
    }

    /// The request in a ring entry, checked for form: operation, kind and sizes are known ones, and reserved words are 0. `resolve` returns
    /// the object of a handle, if the handle may be used for an operation. Memory is not checked.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] for an unknown operation, [`ErrorCode::Invalid`] for any other field, and the error of `resolve`.
    pub fn decode<'a>(
        entry: &Submission,
        resolve: impl FnOnce(u32, ObjectOp) -> Result<&'a OpenObject, ErrorCode>,
    ) -> Result<Self, ErrorCode> {
        let op = ObjectOp::from_bits(entry.op).ok_or(ErrorCode::Unsupported)?;
        let fits = entry.len <= IO_LEN_MAX
            && entry.count <= SCATTER_MAX
            && entry.flags & !FLAG_DURABLE == 0
            && entry.offset.checked_add(u64::from(entry.len)).is_some()
            && (op.is_about_pool() || entry.args == [0; 3]);
        if !fits {
            return Err(ErrorCode::Invalid);
        }
        let (id, object_size, token) = if op.is_about_pool() {
            let kind = ObjectKind::from_bits(entry.handle).ok_or(ErrorCode::Invalid)?;
            let id = ObjectId {
                lineage: Lineage::from_words(entry.args[0], entry.args[1]),
                kind,
                number: entry.args[2],
            };
            (id, ObjectSize::DEFAULT, 0)
        } else {
            let object = resolve(entry.handle, op)?;
            (object.id, object.object_size, object.token.generation)
        };
        Ok(ObjectRequest {
            op,
            flags: entry.flags,
            id,
            object_size,
            offset: entry.offset,
            token: Generation(token.into()),
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
pub type ObjectReply = Reply;

impl OpenObject {
    /// The object of `request` with `access`, opened by the session in the request, of no particular node.
    ///
    /// # Panics
    /// If the generation of the session is 2^32 or more: the codec of heads refuses such generations.
    pub fn of(request: &ObjectRequest, access: HandleAccess) -> Self {
        OpenObject {
            id: request.id,
            object_size: request.object_size,
            access,
            token: FencingToken {
                incarnation: 0,
                generation: u32::try_from(request.token.0)
                    .expect("generations of sessions stay below 2^32"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    const PACK: OpenObject = OpenObject {
        id: ObjectId {
            lineage: Lineage(7 << 70 | 3),
            kind: ObjectKind::Pack,
            number: 9,
        },
        object_size: ObjectSize::MAX,
        access: HandleAccess::Metadata,
        token: FencingToken {
            incarnation: 0,
            generation: 0,
        },
    };

    /// Any handle is [`PACK`]'s.
    fn decode(entry: &Submission) -> Result<ObjectRequest, ErrorCode> {
        ObjectRequest::decode(entry, |_, _| Ok(&PACK))
    }

    fn read() -> Submission {
        ObjectRequest::new(ObjectOp::Read, ObjectId::head(Lineage(1))).encode(5)
    }

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let (id, object_size) = (PACK.id, PACK.object_size);
        let request = ObjectRequest {
            op: ObjectOp::Write,
            flags: 1,
            id,
            object_size,
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
            handle: 12,
            region: 3,
            offset: 1 << 40,
            region_offset: 8192,
            args: [0; 3],
        };
        assert_eq!(request.encode(12), entry);
        let decoded = ObjectRequest::decode(&entry, |handle, op| {
            assert_eq!((handle, op), (12, ObjectOp::Write));
            Ok(&PACK)
        });
        assert_eq!(decoded, Ok(request));
        let refused = ObjectRequest::decode(&entry, |_, _| Err(ErrorCode::NotOpen));
        assert_eq!(refused, Err(ErrorCode::NotOpen));
        let about_pool = ObjectRequest::new(ObjectOp::List, id);
        let entry = Submission {
            op: 12,
            handle: 3,
            args: [7 << 6, 3, 9],
            ..Submission::default()
        };
        assert_eq!(about_pool.encode(12), entry);
        let decoded = ObjectRequest::decode(&entry, |_, _| Err(ErrorCode::NotOpen));
        assert_eq!(decoded, Ok(about_pool));
    }

    #[test]
    fn every_operation_and_kind_has_its_number() {
        let listing = ObjectRequest::new(ObjectOp::List, PACK.id).encode(0);
        for bits in 0..=u8::MAX {
            let op = decode(&Submission {
                op: bits,
                handle: 1,
                ..read()
            });
            let expected = match bits {
                1..=12 | 14..=17 => Ok(bits),
                _ => Err(ErrorCode::Unsupported),
            };
            assert_eq!(op.map(|request| request.op as u8), expected);
            let kind = decode(&Submission {
                handle: bits.into(),
                ..listing
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
        let found = ids.map(|id| (id.lineage, id.kind as u8, id.number));
        let expected = [(0, 7), (1, 0), (2, 7), (3, 7)];
        assert_eq!(
            found,
            expected.map(|(kind, number)| (lineage, kind, number))
        );
    }

    #[test]
    fn the_token_of_a_request_is_that_of_its_handle() {
        let request = ObjectRequest {
            token: Generation(7),
            ..ObjectRequest::new(ObjectOp::Append, ObjectId::log(Lineage(1), u64::MAX))
        };
        let object = OpenObject::of(&request, HandleAccess::Metadata);
        assert_eq!(object.token.generation, 7);
        let decoded = ObjectRequest::decode(&request.encode(3), |_, _| Ok(&object));
        assert_eq!(decoded, Ok(request));
    }

    #[test]
    fn the_largest_of_everything_is_taken() {
        assert_eq!(IO_LEN_MAX, 33_554_432);
        assert_eq!(SWAP_LEN_MAX, 4032);
        let largest = Submission {
            count: 1024,
            len: IO_LEN_MAX,
            offset: u64::MAX - u64::from(IO_LEN_MAX),
            ..read()
        };
        assert!(decode(&largest).is_ok());
    }

    #[test]
    fn unknown_fields_are_refused() {
        let valid = read();
        let cases = [
            (Submission { op: 0, ..valid }, ErrorCode::Unsupported),
            (Submission { op: 200, ..valid }, ErrorCode::Unsupported),
            (
                Submission {
                    args: [0, 0, 1],
                    ..valid
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    flags: 0x80,
                    ..valid
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    count: SCATTER_MAX + 1,
                    ..valid
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    len: IO_LEN_MAX + 1,
                    ..valid
                },
                ErrorCode::Invalid,
            ),
            (
                Submission {
                    offset: u64::MAX,
                    len: 1,
                    ..valid
                },
                ErrorCode::Invalid,
            ),
        ];
        for (entry, expected) in cases {
            assert_eq!(decode(&entry), Err(expected), "{entry:?}");
        }
    }
}
