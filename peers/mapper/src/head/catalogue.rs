//! The catalogue's head.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Generation, Lineage};

use super::{GENERATION_MAX, Head, check_log, damaged, word};
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
const ENTRIES_AT: usize = PACK_LEN_AT + 8;
const LEN: usize = ENTRIES_AT + 8;
const _: () = assert!(GENERATION_AT == 40 && OWNER_AT == 48 && LOG_NUMBER_AT == 64);
const _: () = assert!(LOG_LEN_AT == 72 && LOG_START_AT == 80 && PACK_AT == 88);
const _: () = assert!(PACK_LEN_AT == 96 && ENTRIES_AT == 104 && LEN == 112);

/// The catalogue's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CatalogueHead {
    pub(crate) generation: Generation,
    pub(crate) owner: u128,
    pub(crate) log_number: u64,
    pub(crate) log_len: u64,
    pub(crate) log_start: u64,
    /// Pack of the last checkpoint; 0: there was none.
    pub(crate) pack: u64,
    pub(crate) pack_len: u64,
    /// Names in it.
    pub(crate) entries: u64,
}

impl CatalogueHead {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut head = Writer::sealed(MAGIC, Lineage::CATALOGUE);
        head.at(GENERATION_AT).u64(self.generation.0);
        head.at(OWNER_AT).lineage(Lineage(self.owner));
        head.at(LOG_NUMBER_AT).u64(self.log_number);
        head.at(LOG_LEN_AT).u64(self.log_len);
        head.at(LOG_START_AT).u64(self.log_start);
        head.at(PACK_AT).u64(self.pack);
        head.at(PACK_LEN_AT).u64(self.pack_len);
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

    pub(crate) fn decode(bytes: &[u8]) -> Outcome<Self> {
        Self::parse(bytes).map_err(|problem| damaged(Lineage::CATALOGUE, problem))
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let (mut head, _) = Reader::open(MAGIC, Some(Lineage::CATALOGUE), bytes)?;
        let generation = Generation(word(head.at(GENERATION_AT))?);
        let owner = head.at(OWNER_AT).lineage().ok_or(Problem::Field("owner"))?;
        let head = CatalogueHead {
            generation,
            owner: owner.0,
            log_number: word(head.at(LOG_NUMBER_AT))?,
            log_len: word(head.at(LOG_LEN_AT))?,
            log_start: word(head.at(LOG_START_AT))?,
            pack: word(head.at(PACK_AT))?,
            pack_len: word(head.at(PACK_LEN_AT))?,
            entries: word(head.at(ENTRIES_AT))?,
        };
        if head.generation > GENERATION_MAX {
            return Err(Problem::Field("generation"));
        }
        check_log(head.log_len, head.log_start)?;
        Ok(head)
    }
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
            pack_len: 7,
            entries: 8,
        };
        assert_eq!(CatalogueHead::decode(&head.encode()), Ok(head));
    }
}
