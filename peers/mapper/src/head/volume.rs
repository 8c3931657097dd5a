//! A volume's head.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Epoch, Generation, Lineage, ObjectSize};

use super::{GENERATION_MAX, Head, ROOT_LEN, check_log, read_root, unreadable, word, write_root};
use crate::failure::Outcome;
use crate::format::{ENVELOPE_LEN, Problem, Reader, Writer};
use crate::log::Log;
use crate::tree::Root;

const MAGIC: [u8; 8] = *b"ARCHHEAD";

// Where the fields stand: each behind the one before it. The numbers below are those of the table in `docs/map-format.md`.
const GENERATION_AT: usize = ENVELOPE_LEN;
const OWNER_AT: usize = GENERATION_AT + 8;
const CLEAN_AT: usize = OWNER_AT + 16;
const OBJECT_SIZE_AT: usize = CLEAN_AT + 1;
const RESERVED_AT: usize = OBJECT_SIZE_AT + 1;
const TAKEOVERS_AT: usize = RESERVED_AT + 2;
const EPOCH_AT: usize = TAKEOVERS_AT + 4;
const FROZEN_AT: usize = EPOCH_AT + 8;
const LOG_NUMBER_AT: usize = FROZEN_AT + 8;
const LOG_LEN_AT: usize = LOG_NUMBER_AT + 8;
const LOG_START_AT: usize = LOG_LEN_AT + 8;
const ROOT_AT: usize = LOG_START_AT + 8;
const LEN: usize = (ROOT_AT + ROOT_LEN).next_multiple_of(8);
const _: () = assert!(GENERATION_AT == 48 && OWNER_AT == 56 && CLEAN_AT == 72);
const _: () = assert!(OBJECT_SIZE_AT == 73 && RESERVED_AT == 74 && TAKEOVERS_AT == 76);
const _: () = assert!(EPOCH_AT == 80);
const _: () = assert!(FROZEN_AT == 88 && LOG_NUMBER_AT == 96 && LOG_LEN_AT == 104);
const _: () = assert!(LOG_START_AT == 112 && ROOT_AT == 120 && LEN == 176);

/// A volume's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VolumeHead {
    /// Of the session that wrote it.
    pub(crate) generation: Generation,
    /// The incarnation that has, or had, the session. Unless the head is clean, the volume is its own until it has ended.
    pub(crate) owner: u128,
    /// Generations since the session whose log is to be replayed: nodes that took the volume over and have not begun.
    pub(crate) takeovers: u32,
    /// The session ended and left nothing to replay.
    pub(crate) clean: bool,
    pub(crate) object_size: ObjectSize,
    /// Epoch of new objects.
    pub(crate) epoch: Epoch,
    /// Objects of this epoch and older ones belong to snapshots too.
    pub(crate) frozen: Epoch,
    pub(crate) root: Root,
    pub(crate) log_number: u64,
    pub(crate) log_len: u64,
    /// Replay begins here.
    pub(crate) log_start: u64,
    /// Compatible features that were found: kept from head to head.
    pub(crate) compatible: u32,
}

impl VolumeHead {
    pub(crate) fn encode(&self, lineage: Lineage) -> Vec<u8> {
        let mut head = Writer::sealed_with(MAGIC, lineage, self.compatible);
        head.at(GENERATION_AT).u64(self.generation.0);
        head.at(OWNER_AT).lineage(Lineage(self.owner));
        head.at(CLEAN_AT).u8(u8::from(self.clean));
        head.at(OBJECT_SIZE_AT).u8(self.object_size.log2());
        head.at(RESERVED_AT).u16(0);
        head.at(TAKEOVERS_AT).u32(self.takeovers);
        head.at(EPOCH_AT).u64(self.epoch.0);
        head.at(FROZEN_AT).u64(self.frozen.0);
        head.at(LOG_NUMBER_AT).u64(self.log_number);
        head.at(LOG_LEN_AT).u64(self.log_len);
        head.at(LOG_START_AT).u64(self.log_start);
        write_root(head.at(ROOT_AT), self.root);
        head.pad(8);
        head.at(LEN);
        head.seal()
    }

    /// The log that it names, as if nothing had been appended since.
    pub(crate) fn log(&self, lineage: Lineage) -> Log {
        let generation = Generation(self.generation.0 - u64::from(self.takeovers));
        Log {
            id: ObjectId::log(lineage, self.log_number),
            len: self.log_len,
            start: self.log_start,
            position: self.log_start,
            generation,
            token: self.generation,
        }
    }

    pub(crate) fn decode(lineage: Lineage, bytes: &[u8]) -> Outcome<Self> {
        Self::parse(lineage, bytes).map_err(|problem| unreadable(lineage, problem))
    }

    fn parse(lineage: Lineage, bytes: &[u8]) -> Result<Self, Problem> {
        let opened = Reader::open(MAGIC, Some(lineage), bytes)?;
        let (mut head, compatible) = (opened.fields, opened.compatible);
        let generation = Generation(word(head.at(GENERATION_AT))?);
        let owner = head.at(OWNER_AT).lineage().ok_or(Problem::Field("owner"))?;
        let clean = match head.at(CLEAN_AT).u8() {
            Some(flag @ 0..=1) => flag == 1,
            _ => return Err(Problem::Field("clean flag")),
        };
        let object_size = head.at(OBJECT_SIZE_AT).u8();
        let object_size = object_size
            .and_then(ObjectSize::from_log2)
            .ok_or(Problem::Field("object size"))?;
        head.at(RESERVED_AT)
            .zeros(TAKEOVERS_AT - RESERVED_AT)
            .ok_or(Problem::Field("reserved"))?;
        let takeovers = head.at(TAKEOVERS_AT).u32();
        let takeovers = takeovers.ok_or(Problem::Field("head end"))?;
        let found = VolumeHead {
            generation,
            owner: owner.0,
            takeovers,
            clean,
            object_size,
            epoch: Epoch(word(head.at(EPOCH_AT))?),
            frozen: Epoch(word(head.at(FROZEN_AT))?),
            log_number: word(head.at(LOG_NUMBER_AT))?,
            log_len: word(head.at(LOG_LEN_AT))?,
            log_start: word(head.at(LOG_START_AT))?,
            root: read_root(head.at(ROOT_AT))?,
            compatible,
        };
        head.padding()?;
        let head = found;
        check_log(head.log_len, head.log_start)?;
        if head.generation > GENERATION_MAX {
            return Err(Problem::Field("generation"));
        }
        // After a clean end there is nothing to take over.
        if head.takeovers > 0 && (head.clean || u64::from(head.takeovers) >= head.generation.0) {
            return Err(Problem::Field("takeovers"));
        }
        if head.epoch <= head.frozen || head.epoch.0 >> 32 > head.generation.0 {
            return Err(Problem::Field("epoch"));
        }
        Ok(head)
    }
}

impl Head for VolumeHead {
    fn to_bytes(&self, lineage: Lineage) -> Vec<u8> {
        self.encode(lineage)
    }

    fn growing(before: &Self, now: &Self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        [
            ("generation", before.generation.0, now.generation.0),
            ("epoch", before.epoch.0, now.epoch.0),
            ("log number", before.log_number, now.log_number),
            ("log start", before.log_start, now.log_start),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::POSITION_MAX;
    use crate::tree::{LEVEL_MAX, PageRef};

    fn head() -> VolumeHead {
        let page = PageRef {
            lineage: Lineage(8),
            pack: 4,
            offset: 64,
            len: 900,
            crc: 7,
        };
        VolumeHead {
            generation: Generation(3),
            owner: 99,
            takeovers: 0,
            clean: true,
            object_size: ObjectSize::MIN,
            epoch: Epoch(5),
            frozen: Epoch(4),
            root: Root {
                page: Some(page),
                level: 2,
            },
            log_number: 1,
            log_len: 1 << 20,
            log_start: 8192,
            compatible: 9,
        }
    }

    #[test]
    fn heads_survive_their_bytes() {
        let bytes = head().encode(Lineage(9));
        assert_eq!(VolumeHead::decode(Lineage(9), &bytes), Ok(head()));
        let empty = VolumeHead {
            root: Root::default(),
            ..head()
        };
        assert_eq!(
            VolumeHead::decode(Lineage(9), &empty.encode(Lineage(9))),
            Ok(empty)
        );
    }

    #[test]
    fn a_log_at_the_end_of_positions_is_damage() {
        let far = VolumeHead {
            log_start: POSITION_MAX + 4096,
            ..head()
        };
        let failure = VolumeHead::decode(Lineage(9), &far.encode(Lineage(9))).unwrap_err();
        assert!(failure.message.contains("`log`"), "{}", failure.message);
    }

    #[test]
    fn a_log_is_whole_units_up_to_128_mebibytes() {
        const MAX: u64 = 128 << 20;
        for (log_len, log_start, legal) in [
            (0, 0, false),
            (4095, 0, false),
            (4096, 0, true),
            (6144, 0, false),
            (MAX, 0, true),
            (MAX + 4096, 0, false),
            (MAX, 2048, false),
            (MAX, POSITION_MAX, true),
            (MAX, POSITION_MAX + 4096, false),
        ] {
            let with = VolumeHead {
                log_len,
                log_start,
                ..head()
            };
            let checked = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(checked.is_ok(), legal, "{log_len} from {log_start} on");
        }
    }

    #[test]
    fn an_epoch_that_is_frozen_and_fields_that_cannot_be_are_damage() {
        for (epoch, legal) in [(5, true), (4, false), (3, false)] {
            let epoch = Epoch(epoch);
            let with = VolumeHead { epoch, ..head() };
            let checked = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(checked.is_ok(), legal, "{epoch:?}");
        }
        // No session of a generation has epochs of a later one, and the last generation is never reached.
        for (generation, epoch, legal) in [
            (3, (4 << 32) - 1, true),
            (3, 4 << 32, false),
            (GENERATION_MAX.0, 5, true),
            (GENERATION_MAX.0 + 1, 5, false),
        ] {
            let with = VolumeHead {
                generation: Generation(generation),
                epoch: Epoch(epoch),
                ..head()
            };
            let checked = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(checked.is_ok(), legal, "{epoch} of generation {generation}");
        }
        // Of a session that has not ended cleanly, after others of older generations.
        for (takeovers, clean, legal) in [
            (0, true, true),
            (1, true, false),
            (2, false, true),
            (3, false, false),
        ] {
            let with = VolumeHead {
                takeovers,
                clean,
                ..head()
            };
            let checked = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(checked.is_ok(), legal, "{takeovers} takeovers, {clean}");
            if legal {
                let log = with.log(Lineage(9));
                let generation = 3 - u64::from(takeovers);
                assert_eq!(
                    (log.generation, log.token),
                    (Generation(generation), Generation(3))
                );
            }
        }
        // Clean flag, object size, level of the root, whether there is one.
        for (at, value, legal) in [
            (CLEAN_AT, 0, true),
            (CLEAN_AT, 2, false),
            (OBJECT_SIZE_AT, 15, false),
            (ROOT_AT, LEVEL_MAX, true),
            (ROOT_AT, LEVEL_MAX + 1, false),
            // Without a root there is no reference.
            (ROOT_AT + 1, 0, false),
            (ROOT_AT + 1, 2, false),
            // Reserved, and padding.
            (RESERVED_AT + 1, 1, false),
            (ROOT_AT + 2, 1, false),
            (LEN - 1, 1, false),
        ] {
            let mut bytes = head().encode(Lineage(9));
            bytes[at] = value;
            let crc = crate::format::checksum(&bytes);
            bytes[16..20].copy_from_slice(&crc.to_le_bytes());
            let checked = VolumeHead::decode(Lineage(9), &bytes);
            assert_eq!(checked.is_ok(), legal, "{value} at {at}");
        }
    }

    #[test]
    fn a_damaged_head_is_named() {
        let mut bytes = head().encode(Lineage(9));
        bytes[60] ^= 4;
        let failure = VolumeHead::decode(Lineage(9), &bytes).unwrap_err();
        assert_eq!(failure.code, archipelago_protocol::ErrorCode::Damaged);
        assert!(
            failure
                .message
                .contains("head of 00000000000000000000000000000009"),
            "{}",
            failure.message
        );
        let other = VolumeHead::decode(Lineage(10), &head().encode(Lineage(9))).unwrap_err();
        assert!(
            other.message.contains("belongs to lineage"),
            "{}",
            other.message
        );
    }
}
