//! Object handles: a client of a blocker opens an object once, so that its requests carry 32 bits.
//!
//! The client chooses the number, so that an open and the requests that use it travel together, and so that the same numbers can
//! be announced to a blocker's successor. Rights and the fencing token are checked when a handle is opened, never per request.
//!
//! | word of the entry | open | close |
//! |---|---|---|
//! | operation | 32 | 33 |
//! | flags | access (2 bits), bit 2: announced again | 0 |
//! | count | kind, object size log2 << 8 | 0 |
//! | length | generation of the token | 0 |
//! | handle | the number | the number |
//! | region | 0 | 0 |
//! | offset, region offset | incarnation of the token: high, low | 0 |
//! | arguments | lineage: high, low; number | 0 |
//!
//! Opening a handle again with the same object, and closing one that is not open, succeed: both may be sent again.

use xseg::Submission;

use crate::error::ErrorCode;
use crate::ids::{Lineage, ObjectSize};
use crate::object::{ObjectId, ObjectKind, ObjectOp};

/// Handles of a channel: numbers below this. A volume peer has at most 1024 volumes with up to 8 objects written and 8 being
/// synced, and a ring of 4096 requests in flight: 20,480 that it must not close.
pub const HANDLES_MAX: u32 = 1 << 15;

const OP_OPEN: u8 = 32;
const OP_CLOSE: u8 = 33;
const ACCESS_MASK: u8 = 3;
const FLAG_AGAIN: u8 = 4;

/// The operations that a handle allows. Each access includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum HandleAccess {
    /// Reads of data.
    Read = 1,
    /// Writes of data and syncs.
    Write = 2,
    /// The whole contract.
    Metadata = 3,
}

impl HandleAccess {
    /// The least access that `op` needs.
    #[must_use]
    pub fn of(op: ObjectOp) -> Self {
        match op {
            ObjectOp::Read => HandleAccess::Read,
            ObjectOp::Write | ObjectOp::Sync => HandleAccess::Write,
            _ => HandleAccess::Metadata,
        }
    }

    fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1 => Some(HandleAccess::Read),
            2 => Some(HandleAccess::Write),
            3 => Some(HandleAccess::Metadata),
            _ => None,
        }
    }
}

/// The session that opens: refused as stale once the pool knows that it was fenced. All zeros: no particular one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FencingToken {
    /// The incarnation of the node.
    pub incarnation: u128,
    /// The generation of the session.
    pub generation: u32,
}

/// An object to open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OpenObject {
    /// Its id.
    pub id: ObjectId,
    /// Size of the pieces into which the volume's data is cut; matters to backends with one object each.
    pub object_size: ObjectSize,
    /// The operations that are needed.
    pub access: HandleAccess,
    /// The session that opens it.
    pub token: FencingToken,
}

/// A request to open or close a handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleRequest {
    /// Requests with `handle` concern `object` from now on.
    Open {
        /// The client's number.
        handle: u32,
        /// The object.
        object: OpenObject,
        /// The handle was open at a predecessor of this blocker: writes through it may not be durable yet.
        again: bool,
    },
    /// Closes `handle`.
    Close {
        /// The client's number.
        handle: u32,
    },
}

impl HandleRequest {
    /// The request as a ring entry.
    #[must_use]
    pub fn encode(&self) -> Submission {
        match *self {
            HandleRequest::Close { handle } => Submission {
                op: OP_CLOSE,
                handle,
                ..Submission::default()
            },
            HandleRequest::Open {
                handle,
                object,
                again,
            } => {
                let [high, low] = object.id.lineage.to_words();
                let incarnation = Lineage(object.token.incarnation).to_words();
                Submission {
                    tag: 0,
                    op: OP_OPEN,
                    flags: object.access as u8 | if again { FLAG_AGAIN } else { 0 },
                    count: u16::from(object.id.kind as u8)
                        | u16::from(object.object_size.log2()) << 8,
                    len: object.token.generation,
                    handle,
                    region: 0,
                    offset: incarnation[0],
                    region_offset: incarnation[1],
                    args: [high, low, object.id.number],
                }
            }
        }
    }

    /// The request in a ring entry; `None`: it does not open or close a handle, but is an [`ObjectRequest`](crate::object::ObjectRequest).
    #[must_use]
    pub fn decode(entry: &Submission) -> Option<Result<Self, ErrorCode>> {
        match entry.op {
            OP_OPEN => Some(decode_open(entry).ok_or(ErrorCode::Invalid)),
            OP_CLOSE => {
                let request = HandleRequest::Close {
                    handle: entry.handle,
                };
                let bare = Submission { tag: 0, ..*entry } == request.encode();
                let known = bare && entry.handle < HANDLES_MAX;
                Some(if known {
                    Ok(request)
                } else {
                    Err(ErrorCode::Invalid)
                })
            }
            _ => None,
        }
    }
}

fn decode_open(entry: &Submission) -> Option<HandleRequest> {
    let [kind, log2] = entry.count.to_le_bytes();
    let legal = entry.handle < HANDLES_MAX
        && entry.region == 0
        && entry.flags & !(ACCESS_MASK | FLAG_AGAIN) == 0;
    if !legal {
        return None;
    }
    Some(HandleRequest::Open {
        handle: entry.handle,
        object: OpenObject {
            id: ObjectId {
                lineage: Lineage::from_words(entry.args[0], entry.args[1]),
                kind: ObjectKind::from_bits(kind.into())?,
                number: entry.args[2],
            },
            object_size: ObjectSize::from_log2(log2)?,
            access: HandleAccess::from_bits(entry.flags & ACCESS_MASK)?,
            token: FencingToken {
                incarnation: Lineage::from_words(entry.offset, entry.region_offset).0,
                generation: entry.len,
            },
        },
        again: entry.flags & FLAG_AGAIN != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> HandleRequest {
        HandleRequest::Open {
            handle: 9,
            object: OpenObject {
                id: ObjectId::pack(Lineage(7 << 70 | 3), 5),
                object_size: ObjectSize::MAX,
                access: HandleAccess::Metadata,
                token: FencingToken {
                    incarnation: 2 << 64 | 8,
                    generation: 11,
                },
            },
            again: true,
        }
    }

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let entry = Submission {
            tag: 0,
            op: 32,
            flags: 7,
            count: 0x1903,
            len: 11,
            handle: 9,
            region: 0,
            offset: 2,
            region_offset: 8,
            args: [7 << 6, 3, 5],
        };
        assert_eq!(open().encode(), entry);
        assert_eq!(HandleRequest::decode(&entry), Some(Ok(open())));
        let close = HandleRequest::Close { handle: 9 };
        let entry = Submission {
            op: 33,
            handle: 9,
            ..Submission::default()
        };
        assert_eq!(close.encode(), entry);
        assert_eq!(HandleRequest::decode(&entry), Some(Ok(close)));
        let tagged = Submission { tag: 5, ..entry };
        assert_eq!(HandleRequest::decode(&tagged), Some(Ok(close)));
        let read = Submission { op: 1, ..entry };
        assert_eq!(HandleRequest::decode(&read), None);
    }

    #[test]
    fn unknown_fields_and_numbers_out_of_range_are_refused() {
        let open = open().encode();
        let close = HandleRequest::Close { handle: 1 }.encode();
        for entry in [
            Submission { flags: 0, ..open },
            Submission {
                flags: 8 | 1,
                ..open
            },
            Submission {
                count: 0x1905,
                ..open
            },
            Submission {
                count: 0x6303,
                ..open
            },
            Submission { region: 1, ..open },
            Submission {
                handle: HANDLES_MAX,
                ..open
            },
            Submission {
                handle: HANDLES_MAX,
                ..close
            },
            Submission { offset: 1, ..close },
        ] {
            let decoded = HandleRequest::decode(&entry);
            assert_eq!(decoded, Some(Err(ErrorCode::Invalid)), "{entry:?}");
        }
    }
}
