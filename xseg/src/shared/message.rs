//! Messages on the control socket: 64 bytes each, with their file descriptors.
//!
//! Invariants
//! - Every message has magic, version and kind. Bytes without a meaning are sent as zero and ignored when received.
//! - A failed decoding is harmless: bytes that are not a message end the channel on which they came.

use super::layout::{MAJOR, MINOR};

/// `XSEGMSG1`.
const MAGIC: u64 = u64::from_le_bytes(*b"XSEGMSG1");
pub(crate) const MESSAGE_BYTES: usize = 64;
const WORDS: usize = MESSAGE_BYTES / 8;

/// The reason why a server refused a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The client has another major version; the message contains the server's.
    Version = 1,
    /// Sizes, seals or header are invalid.
    Hello = 2,
    /// The user is not admitted, or not in this role.
    Credentials = 3,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    /// From the client, with its memory, its arena, the request doorbell and the completion doorbell.
    Hello {
        role: u8,
        client_id: u64,
        incarnation: u64,
        size: u64,
        arena_len: u64,
    },
    /// From the server, with its memory. From now on, the rings are in use.
    Welcome { client_id: u64, incarnation: u64 },
    /// From the server: the client is refused, and the connection ends.
    Refused { reason: u64 },
    /// From the client, with the region's file.
    RegionAdd {
        id: u32,
        serial: u64,
        offset: u64,
        len: u64,
    },
    /// From the server: the region with this serial is mapped, or the mapping failed with `errno`.
    RegionAck { id: u32, serial: u64, errno: u64 },
    /// From the client: requests do not name the region any more.
    RegionRemove { id: u32 },
    /// From either: the channel is closed on purpose, and no message follows.
    Goodbye,
}

/// The reason why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// They have another major version.
    Version,
    /// They are not a message of this protocol.
    Garbage,
}

impl Message {
    /// The bytes of the message.
    pub(crate) fn encode(&self) -> [u8; MESSAGE_BYTES] {
        let (kind, role, operands) = match *self {
            Message::Hello {
                role,
                client_id,
                incarnation,
                size,
                arena_len,
            } => (1, role, [client_id, incarnation, size, arena_len]),
            Message::Welcome {
                client_id,
                incarnation,
            } => (2, 0, [client_id, incarnation, 0, 0]),
            Message::Refused { reason } => (3, 0, [reason, 0, 0, 0]),
            Message::RegionAdd {
                id,
                serial,
                offset,
                len,
            } => (4, 0, [id.into(), serial, offset, len]),
            Message::RegionAck { id, serial, errno } => (5, 0, [id.into(), serial, errno, 0]),
            Message::RegionRemove { id } => (6, 0, [id.into(), 0, 0, 0]),
            Message::Goodbye => (7, 0, [0; 4]),
        };
        let mut words = [0u64; WORDS];
        words[0] = MAGIC;
        words[1] = u64::from(MAJOR) | u64::from(MINOR) << 16 | kind << 32 | u64::from(role) << 40;
        words[2..6].copy_from_slice(&operands);
        let mut bytes = [0; MESSAGE_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The message in `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Message, Unreadable> {
        let bytes: &[u8; MESSAGE_BYTES] = bytes.try_into().map_err(|_size| Unreadable::Garbage)?;
        let mut words = [0u64; WORDS];
        for (word, place) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(place.try_into().expect("chunks of eight"));
        }
        if words[0] != MAGIC {
            return Err(Unreadable::Garbage);
        }
        if words[1] & 0xffff != u64::from(MAJOR) {
            return Err(Unreadable::Version);
        }
        let id = || u32::try_from(words[2]).map_err(|_too_large| Unreadable::Garbage);
        let [_, role, ..] = (words[1] >> 32).to_le_bytes();
        Ok(match words[1] >> 32 & 0xff {
            1 => Message::Hello {
                role,
                client_id: words[2],
                incarnation: words[3],
                size: words[4],
                arena_len: words[5],
            },
            2 => Message::Welcome {
                client_id: words[2],
                incarnation: words[3],
            },
            3 => Message::Refused { reason: words[2] },
            4 => Message::RegionAdd {
                id: id()?,
                serial: words[3],
                offset: words[4],
                len: words[5],
            },
            5 => Message::RegionAck {
                id: id()?,
                serial: words[3],
                errno: words[4],
            },
            6 => Message::RegionRemove { id: id()? },
            7 => Message::Goodbye,
            _ => return Err(Unreadable::Garbage),
        })
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_survive_the_way() {
        for message in [
            Message::Hello {
                role: 255,
                client_id: 1,
                incarnation: 2,
                size: 3,
                arena_len: 4,
            },
            Message::Welcome {
                client_id: 5,
                incarnation: 6,
            },
            Message::Refused {
                reason: Refusal::Version as u64,
            },
            Message::RegionAdd {
                id: u32::MAX,
                serial: 7,
                offset: 8,
                len: 9,
            },
            Message::RegionAck {
                id: 10,
                serial: 11,
                errno: 12,
            },
            Message::RegionRemove { id: 13 },
            Message::Goodbye,
        ] {
            assert_eq!(Message::decode(&message.encode()), Ok(message));
        }
    }

    #[test]
    fn another_major_version_is_told_from_garbage() {
        let mut bytes = Message::Goodbye.encode();
        bytes[8] = 2;
        assert_eq!(Message::decode(&bytes), Err(Unreadable::Version));
        bytes[0] = b'?';
        assert_eq!(Message::decode(&bytes), Err(Unreadable::Garbage));
        assert_eq!(Message::decode(&[0; 63]), Err(Unreadable::Garbage));
    }

    #[test]
    fn fields_stand_where_the_segment_has_them() {
        let hello = Message::Hello {
            role: 9,
            client_id: 2,
            incarnation: 3,
            size: 4,
            arena_len: 5,
        };
        let add = Message::RegionAdd {
            id: 2,
            serial: 3,
            offset: 4,
            len: 5,
        };
        let ack = Message::RegionAck {
            id: 2,
            serial: 3,
            errno: 4,
        };
        let welcome = Message::Welcome {
            client_id: 2,
            incarnation: 3,
        };
        for (message, kind, role, operands) in [
            (hello, 1, 9, [2, 3, 4, 5]),
            (welcome, 2, 0, [2, 3, 0, 0]),
            (Message::Refused { reason: 2 }, 3, 0, [2, 0, 0, 0]),
            (add, 4, 0, [2, 3, 4, 5]),
            (ack, 5, 0, [2, 3, 4, 0]),
            (Message::RegionRemove { id: 2 }, 6, 0, [2, 0, 0, 0]),
            (Message::Goodbye, 7, 0, [0; 4]),
        ] {
            let mut bytes = [0; MESSAGE_BYTES];
            bytes[..8].copy_from_slice(b"XSEGMSG1");
            // Version 1.0, kind, role.
            bytes[8..14].copy_from_slice(&[1, 0, 0, 0, kind, role]);
            for (index, operand) in operands.into_iter().enumerate() {
                bytes[16 + 8 * index] = operand;
            }
            assert_eq!(message.encode(), bytes, "{message:?}");
            assert_eq!(Message::decode(&bytes), Ok(message));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80), sane in any::<bool>()) {
            let mut bytes = bytes;
            if sane && bytes.len() >= 12 {
                bytes.resize(MESSAGE_BYTES, 0);
                bytes[..12].copy_from_slice(&Message::Goodbye.encode()[..12]);
            }
            let _either_way = Message::decode(&bytes);
        }
    }
}
