//! Where everything stands in the two memories of a channel, and their headers.
//!
//! Both memories have one shape, of which each end uses its own side:
//!
//! ```text
//! 0x0000 header          0x0080 cursor of the request ring     0x0100 cursor of the completion ring
//! 0x0180 sleep word      0x1000 entries: 64-byte requests, or twice as many 32-byte completions
//! ```
//!
//! Words with different writers stand in different memories, words with different readers' rhythms 128 bytes apart.
//!
//! Invariants
//! - A header is copied once and validated by the copy; arithmetic uses the sizes that were agreed in the hello only.

use std::sync::atomic::Ordering;

use crate::entry::{COMPLETION_WORDS, SUBMISSION_WORDS};
use crate::ring::{OwnWords, RingLayout, Words};

/// `XSEGCH01`.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"XSEGCH01");
/// Same major: compatible. A higher minor may only add feature bits, which count when both sides have them.
///
/// 1.0: first version.
pub(crate) const MAJOR: u16 = 1;
pub(crate) const MINOR: u16 = 0;

/// Requests in flight on a channel at most: a slot number has 16 bits, and 4096 fill 256 KiB per direction.
pub(crate) const RING_MAX: usize = 4096;

const WORD_BYTES: usize = 8;
const REQUEST_CURSOR: usize = 0x80 / WORD_BYTES;
const COMPLETION_CURSOR: usize = 0x100 / WORD_BYTES;
/// The owner's sleep word.
pub(crate) const SLEEP: usize = 0x180 / WORD_BYTES;
const ENTRIES_OFFSET: usize = 0x1000;
const ENTRIES: usize = ENTRIES_OFFSET / WORD_BYTES;

const HEADER_WORDS: usize = 16;
const CRC_WORD: usize = 15;

/// Which way the entries in a memory travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Written by the client.
    ClientToServer = 1,
    /// Written by the server.
    ServerToClient = 2,
}

/// Bytes of either memory of a channel of `size` requests, which is a power of two up to [`RING_MAX`].
pub(crate) fn memory_len(size: usize) -> usize {
    // Completions: twice as many, half as long.
    const { assert!(2 * COMPLETION_WORDS == SUBMISSION_WORDS) };
    (ENTRIES_OFFSET + size * SUBMISSION_WORDS * WORD_BYTES).next_multiple_of(4096)
}

/// The request ring: slots and tail at the client's, head at the server's.
pub(crate) fn request_ring(size: usize) -> RingLayout {
    RingLayout {
        tail: REQUEST_CURSOR,
        head: REQUEST_CURSOR,
        slots: ENTRIES,
        capacity: size as u64,
    }
}

/// The completion ring: slots and tail at the server's, head at the client's. Twice the credits, so never full.
pub(crate) fn completion_ring(size: usize) -> RingLayout {
    RingLayout {
        tail: COMPLETION_CURSOR,
        head: COMPLETION_CURSOR,
        slots: ENTRIES,
        capacity: 2 * size as u64,
    }
}

/// The content of a header; the rest follows from the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) direction: Direction,
    pub(crate) size: usize,
    pub(crate) client_id: u64,
    pub(crate) incarnation: u64,
}

impl Header {
    fn words(&self) -> [u64; HEADER_WORDS] {
        let entry_bytes = match self.direction {
            Direction::ClientToServer => SUBMISSION_WORDS * WORD_BYTES,
            Direction::ServerToClient => COMPLETION_WORDS * WORD_BYTES,
        };
        let entries = match self.direction {
            Direction::ClientToServer => self.size,
            Direction::ServerToClient => 2 * self.size,
        };
        let mut words = [0; HEADER_WORDS];
        words[0] = MAGIC;
        words[1] =
            u64::from(MAJOR) | u64::from(MINOR) << 16 | ((HEADER_WORDS * WORD_BYTES) as u64) << 32;
        words[2] = memory_len(self.size) as u64;
        words[3] = self.direction as u64
            | u64::from(entries.trailing_zeros()) << 8
            | (entry_bytes as u64) << 16;
        words[4] = ENTRIES_OFFSET as u64;
        // words[5]: feature bits, none in 1.0.
        words[6] = self.client_id;
        words[7] = self.incarnation;
        words[CRC_WORD] = checksum(&words);
        words
    }

    /// Writes the header into fresh memory.
    pub(crate) fn write(&self, memory: &impl OwnWords) {
        for (index, word) in self.words().into_iter().enumerate() {
            // Relaxed: sending the memory's descriptor over the socket orders these stores before the other side's loads.
            memory.store(index, word, Ordering::Relaxed);
        }
    }

    /// Whether `memory` begins with this header, of any minor version.
    pub(crate) fn is_in(&self, memory: &impl Words) -> bool {
        // Relaxed: the descriptor came over the socket after the header was written; a peer that writes later is caught by the
        // comparison, or has changed nothing that is used.
        let found: [u64; HEADER_WORDS] =
            std::array::from_fn(|index| memory.load(index, Ordering::Relaxed));
        let mut wanted = self.words();
        wanted[1] = wanted[1] & !0xffff_0000 | found[1] & 0xffff_0000;
        wanted[5] = found[5];
        wanted[CRC_WORD] = checksum(&wanted);
        found == wanted
    }
}

/// CRC32C of the words before the checksum. It finds mistakes, not attackers.
fn checksum(words: &[u64; HEADER_WORDS]) -> u64 {
    let mut crc = 0;
    for word in &words[..CRC_WORD] {
        crc = crc32c::crc32c_append(crc, &word.to_le_bytes());
    }
    u64::from(crc)
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ring::tests::VecWords;

    const HEADER: Header = Header {
        direction: Direction::ClientToServer,
        size: 64,
        client_id: 9,
        incarnation: 3,
    };

    #[test]
    fn the_two_shapes_fit_their_memory() {
        for log in 0..=12 {
            let size = 1usize << log;
            let words = memory_len(size) / WORD_BYTES;
            let (down, up) = (request_ring(size), completion_ring(size));
            assert!(down.slots + size * SUBMISSION_WORDS <= words);
            assert!(up.slots + 2 * size * COMPLETION_WORDS <= words);
        }
        assert_eq!(memory_len(RING_MAX), 0x1000 + 4096 * 64);
    }

    #[test]
    fn a_header_fits_only_what_was_agreed_and_any_minor_version() {
        let memory = VecWords::new(HEADER_WORDS);
        HEADER.write(&memory);
        assert!(HEADER.is_in(&memory));
        for other in [
            Header {
                direction: Direction::ServerToClient,
                ..HEADER
            },
            Header { size: 32, ..HEADER },
            Header {
                client_id: 8,
                ..HEADER
            },
            Header {
                incarnation: 4,
                ..HEADER
            },
        ] {
            assert!(!other.is_in(&memory), "{other:?}");
        }
        let mut words = HEADER.words();
        words[1] |= 7 << 16;
        words[5] = 0b1010;
        words[CRC_WORD] = checksum(&words);
        for (index, word) in words.iter().enumerate() {
            memory.store(index, *word, Ordering::Relaxed);
        }
        assert!(
            HEADER.is_in(&memory),
            "a later minor version with features of its own"
        );
    }

    #[test]
    fn fields_of_a_header_stand_where_the_segment_has_them() {
        // Words of `docs/segment-format.md`, "Header": lengths, direction and entries, checksum.
        let header = |entries: u64, crc: u64| {
            let magic = u64::from_le_bytes(*b"XSEGCH01");
            let fields = [
                magic,
                128 << 32 | 1,
                0x2000,
                entries,
                0x1000,
                0,
                HEADER.client_id,
                HEADER.incarnation,
            ];
            std::array::from_fn(|word| match word {
                0..8 => fields[word],
                15 => crc,
                _ => 0,
            })
        };
        assert_eq!(HEADER.words(), header(0x0040_0601, 0x7bef_1b8a));
        let back = Header {
            direction: Direction::ServerToClient,
            ..HEADER
        };
        assert_eq!(back.words(), header(0x0020_0702, 0x7af2_4e2f));
    }

    #[test]
    fn cursors_and_entries_stand_where_the_segment_has_them() {
        let (down, up) = (request_ring(64), completion_ring(64));
        // Offsets 0x80, 0x100, 0x180 and 0x1000, in words.
        assert_eq!((down.tail, down.head, down.slots), (16, 16, 512));
        assert_eq!((up.tail, up.head, up.slots), (32, 32, 512));
        assert_eq!((down.capacity, up.capacity, SLEEP), (64, 128, 48));
        assert_eq!([1, 64, 65, 128].map(memory_len), [8192, 8192, 12288, 12288]);
    }

    proptest! {
        #[test]
        fn a_header_with_any_bit_turned_is_refused(index in 0..HEADER_WORDS, bit in 0..64u32) {
            let memory = VecWords::new(HEADER_WORDS);
            HEADER.write(&memory);
            memory.store(index, memory.load(index, Ordering::Relaxed) ^ (1 << bit), Ordering::Relaxed);
            prop_assert!(!HEADER.is_in(&memory));
        }
    }
}
