//! The catalogue's head.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Generation, Lineage};

use super::{GENERATION_MAX, Head, check_log, unreadable, word};
use crate::failure::Outcome;
use crate::format::{ENVELOPE_LEN, Problem, Reader, Writer};
use crate::log::Log;

const MAGIC: [u8; 8] = *b"ARCHCATL";

// Where the fields stand: each behind the one before it. The numbers below are those of the table in `docs/map-format.md`.
const GENERATION_AT: usize = ENVELOPE_LEN;
const OWNER_AT: usize = GENERATION_AT + 8;
const LOG_NUMBER_AT: usize = OWNER_AT + 16;
const LOG_LEN_AT: usize = LOG_NUMBER_AT + 8;
const LOG_START_AT: usize = LOG_LEN_AT + 8;
const PACK_AT: usize = LOG_START_AT + 8;
const PACK_LEN_AT: usize = PACK_AT + 8;
const PACK_CAPACITY_AT: usize = PACK_LEN_AT + 8;
const ENTRIES_AT: usize = PACK_CAPACITY_AT + 8;
const LEN: usize = ENTRIES_AT + 8;
const _: () = assert!(GENERATION_AT == 48 && OWNER_AT == 56 && LOG_NUMBER_AT == 72);
const _: () = assert!(LOG_LEN_AT == 80 && LOG_START_AT == 88 && PACK_AT == 96);
const _: () = assert!(PACK_LEN_AT == 104 && PACK_CAPACITY_AT == 112 && ENTRIES_AT == 120);
const _: () = assert!(LEN == 128);

/// Most packs of a checkpoint: with 128 MiB each room for billions of names.
const PACKS_MAX: u64 = 1 << 16;

/// The catalogue's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CatalogueHead {
    pub(crate) generation: Generation,
    pub(crate) owner: u128,
    pub(crate) log_number: u64,
    pub(crate) log_len: u64,
    pub(crate) log_start: u64,
    /// First pack of the last checkpoint; 0: there was none.
    pub(crate) pack: u64,
    /// Bytes of the checkpoint, in all of its packs.
    pub(crate) pack_len: u64,
    /// Bytes of each of its packs but the last.
    pub(crate) pack_capacity: u64,
    /// Names in it.
    pub(crate) entries: u64,
    /// Compatible features that were found: kept from head to head.
    pub(crate) compatible: u32,
}

impl CatalogueHead {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut head = Writer::sealed_with(MAGIC, Lineage::CATALOGUE, self.compatible);
        head.at(GENERATION_AT).u64(self.generation.0);
        head.at(OWNER_AT).lineage(Lineage(self.owner));
        head.at(LOG_NUMBER_AT).u64(self.log_number);
        head.at(LOG_LEN_AT).u64(self.log_len);
        head.at(LOG_START_AT).u64(self.log_start);
        head.at(PACK_AT).u64(self.pack);
        head.at(PACK_LEN_AT).u64(self.pack_len);
        head.at(PACK_CAPACITY_AT).u64(self.pack_capacity);
        head.at(ENTRIES_AT).u64(self.entries);
        head.at(LEN);
        head.seal()
    }

    /// The log that it names, as if nothing had been appended since.
    pub(crate) fn log(&self) -> Log {
        Log {
            id: ObjectId::log(Lineage::CATALOGUE, self.log_number),
            len: self.log_len,
            start: self.log_start,
            position: self.log_start,
            generation: self.generation,
            token: self.generation,
        }
    }

    /// The packs of its checkpoint, in order.
    pub(crate) fn packs(&self) -> impl Iterator<Item = ObjectId> + use<> {
        let count = match self.pack {
            0 => 0,
            _ => pack_count(self.pack_len, self.pack_capacity),
        };
        let first = self.pack;
        (0..count).map(move |index| ObjectId::pack(Lineage::CATALOGUE, first + index))
    }

    fn check_packs(&self) -> Option<()> {
        if self.pack == 0 {
            return (self.pack_len == 0 && self.pack_capacity == 0).then_some(());
        }
        (self.pack_capacity > 0).then_some(())?;
        let count = pack_count(self.pack_len, self.pack_capacity);
        (count <= PACKS_MAX).then_some(())?;
        self.pack.checked_add(count).map(drop)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Outcome<Self> {
        Self::parse(bytes).map_err(|problem| unreadable(Lineage::CATALOGUE, problem))
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let opened = Reader::open(MAGIC, Some(Lineage::CATALOGUE), bytes)?;
        let (mut head, compatible) = (opened.fields, opened.compatible);
        let generation = Generation(word(head.at(GENERATION_AT))?);
        let owner = head.at(OWNER_AT).lineage().ok_or(Problem::Field("owner"))?;
        let found = CatalogueHead {
            generation,
            owner: owner.0,
            log_number: word(head.at(LOG_NUMBER_AT))?,
            log_len: word(head.at(LOG_LEN_AT))?,
            log_start: word(head.at(LOG_START_AT))?,
            pack: word(head.at(PACK_AT))?,
            pack_len: word(head.at(PACK_LEN_AT))?,
            pack_capacity: word(head.at(PACK_CAPACITY_AT))?,
            entries: word(head.at(ENTRIES_AT))?,
            compatible,
        };
        head.padding()?;
        let head = found;
        if head.generation > GENERATION_MAX {
            return Err(Problem::Field("generation"));
        }
        check_log(head.log_len, head.log_start)?;
        head.check_packs().ok_or(Problem::Field("pack"))?;
        Ok(head)
    }
}

/// How many packs of `capacity` bytes a checkpoint of `len` bytes has: one also if it is empty.
pub(crate) fn pack_count(len: u64, capacity: u64) -> u64 {
    len.div_ceil(capacity).max(1)
}

impl Head for CatalogueHead {
    fn to_bytes(&self, _lineage: Lineage) -> Vec<u8> {
        self.encode()
    }

    fn growing(before: &Self, now: &Self) -> impl Iterator<Item = (&'static str, u64, u64)> {
        [
            ("generation", before.generation.0, now.generation.0),
            ("log number", before.log_number, now.log_number),
            ("log start", before.log_start, now.log_start),
        ]
        .into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_survives_its_bytes() {
        let head = CatalogueHead {
            generation: Generation(1),
            owner: 2,
            log_number: 3,
            log_len: 4096,
            log_start: 0,
            pack: 6,
            pack_len: 8193,
            pack_capacity: 4096,
            entries: 8,
            compatible: 9,
        };
        assert_eq!(CatalogueHead::decode(&head.encode()), Ok(head));
        let pack = |number| ObjectId::pack(Lineage::CATALOGUE, number);
        assert!(head.packs().eq([pack(6), pack(7), pack(8)]));
        for (pack, pack_len, pack_capacity, legal) in [
            (0, 0, 0, true),
            (0, 1, 0, false),
            (0, 0, 1, false),
            (6, 0, 4096, true),
            (6, 8192, 0, false),
            (6, 4096 << 16, 4096, true),
            (6, (4096 << 16) + 1, 4096, false),
            (u64::MAX - 1, 4096, 4096, true),
            (u64::MAX - 1, 8192, 4096, false),
        ] {
            let with = CatalogueHead {
                pack,
                pack_len,
                pack_capacity,
                ..head
            };
            let decoded = CatalogueHead::decode(&with.encode());
            assert_eq!(decoded.is_ok(), legal, "{pack} {pack_len} {pack_capacity}");
        }
    }
}
