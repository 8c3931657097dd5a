//! Heads: the one place from which a volume, or the catalogue, is found. Changed by compare-and-swap only.
//!
//! Layouts: `docs/map-format.md`, "Volume head" and "Catalogue head". Shorter than 4032 bytes by far.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Epoch, Generation, Lineage, ObjectSize};

use crate::disk::name_of;
use crate::failure::{Failure, Outcome};
use crate::format::{Problem, Reader, Writer};
use crate::log::POSITION_MAX;
use crate::tree::{LEVEL_MAX, Root};
use crate::tree::{read_ref, write_ref};

const VOLUME_MAGIC: [u8; 8] = *b"ARCHHEAD";
const CATALOGUE_MAGIC: [u8; 8] = *b"ARCHCATL";

/// A volume's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VolumeHead {
    /// Of the session that wrote it.
    pub(crate) generation: Generation,
    /// Who has, or had, the session.
    pub(crate) owner: u128,
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
}

impl VolumeHead {
    pub(crate) fn encode(&self, lineage: Lineage) -> Vec<u8> {
        let mut head = Writer::sealed(VOLUME_MAGIC, lineage);
        head.u64(self.generation.0);
        head.lineage(Lineage(self.owner));
        head.u8(u8::from(self.clean));
        head.u8(self.object_size.log2());
        head.u16(0);
        head.u32(0);
        head.u64(self.epoch.0);
        head.u64(self.frozen.0);
        head.u64(self.log_number);
        head.u64(self.log_len);
        head.u64(self.log_start);
        write_root(&mut head, self.root);
        head.pad(8);
        head.seal()
    }

    pub(crate) fn decode(lineage: Lineage, bytes: &[u8]) -> Outcome<Self> {
        Self::parse(lineage, bytes).map_err(|problem| damaged(lineage, problem))
    }

    fn parse(lineage: Lineage, bytes: &[u8]) -> Result<Self, Problem> {
        let (mut fields, _) = Reader::open(VOLUME_MAGIC, Some(lineage), bytes)?;
        let fields = &mut fields;
        let generation = Generation(word(fields)?);
        let owner = fields.lineage().ok_or(Problem::Field("owner"))?.0;
        let clean = match fields.u8() {
            Some(flag @ 0..=1) => flag == 1,
            _ => return Err(Problem::Field("clean flag")),
        };
        let object_size = fields
            .u8()
            .and_then(ObjectSize::from_log2)
            .ok_or(Problem::Field("object size"))?;
        fields.u16();
        fields.u32();
        let head = VolumeHead {
            generation,
            owner,
            clean,
            object_size,
            epoch: Epoch(word(fields)?),
            frozen: Epoch(word(fields)?),
            log_number: word(fields)?,
            log_len: word(fields)?,
            log_start: word(fields)?,
            root: read_root(fields)?,
        };
        check_log(head.log_len, head.log_start)?;
        if head.epoch <= head.frozen {
            return Err(Problem::Field("epoch"));
        }
        Ok(head)
    }
}

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
        let mut head = Writer::sealed(CATALOGUE_MAGIC, Lineage::CATALOGUE);
        head.u64(self.generation.0);
        head.lineage(Lineage(self.owner));
        for word in [
            self.log_number,
            self.log_len,
            self.log_start,
            self.pack,
            self.pack_len,
            self.entries,
        ] {
            head.u64(word);
        }
        head.seal()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Outcome<Self> {
        Self::parse(bytes).map_err(|problem| damaged(Lineage::CATALOGUE, problem))
    }

    fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let (mut fields, _) = Reader::open(CATALOGUE_MAGIC, Some(Lineage::CATALOGUE), bytes)?;
        let fields = &mut fields;
        let head = CatalogueHead {
            generation: Generation(word(fields)?),
            owner: fields.lineage().ok_or(Problem::Field("owner"))?.0,
            log_number: word(fields)?,
            log_len: word(fields)?,
            log_start: word(fields)?,
            pack: word(fields)?,
            pack_len: word(fields)?,
            entries: word(fields)?,
        };
        check_log(head.log_len, head.log_start)?;
        Ok(head)
    }
}

fn word(fields: &mut Reader<'_>) -> Result<u64, Problem> {
    fields.u64().ok_or(Problem::Field("head end"))
}

fn check_log(len: u64, start: u64) -> Result<(), Problem> {
    let unit = crate::log::UNIT as u64;
    // 1 GiB is far more than anybody asks for; replay reads a log whole.
    let possible = len > 0 && len.is_multiple_of(unit) && len <= 1 << 30;
    if !possible || !start.is_multiple_of(unit) || start > POSITION_MAX {
        return Err(Problem::Field("log"));
    }
    Ok(())
}

fn damaged(lineage: Lineage, problem: Problem) -> Failure {
    Failure::damaged(format!(
        "{} is damaged: {problem}",
        name_of(ObjectId::head(lineage))
    ))
}

/// 52 bytes: level u8, present u8, 0 u16, 0 u32, page reference.
pub(crate) fn write_root(to: &mut Writer, root: Root) {
    to.u8(root.level);
    to.u8(u8::from(root.page.is_some()));
    to.u16(0);
    to.u32(0);
    match &root.page {
        Some(page) => write_ref(to, page),
        None => to.bytes(&[0; 44]),
    }
}

pub(crate) fn read_root(from: &mut Reader<'_>) -> Result<Root, Problem> {
    let bad = || Problem::Field("root");
    let level = from
        .u8()
        .filter(|level| *level <= LEVEL_MAX)
        .ok_or_else(bad)?;
    let present = from.u8().ok_or_else(bad)?;
    from.u16().ok_or_else(bad)?;
    from.u32().ok_or_else(bad)?;
    let page = read_ref(from).ok_or_else(bad)?;
    match present {
        0 => Ok(Root { page: None, level }),
        1 => Ok(Root {
            page: Some(page),
            level,
        }),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::PageRef;

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
        let catalogue = CatalogueHead {
            generation: Generation(1),
            owner: 2,
            log_number: 3,
            log_len: 4096,
            log_start: 0,
            pack: 6,
            pack_len: 7,
            entries: 8,
        };
        assert_eq!(CatalogueHead::decode(&catalogue.encode()), Ok(catalogue));
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
    fn a_log_is_whole_units_up_to_a_gibibyte() {
        const GIB: u64 = 1 << 30;
        for (log_len, log_start, legal) in [
            (0, 0, false),
            (4095, 0, false),
            (4096, 0, true),
            (6144, 0, false),
            (GIB, 0, true),
            (GIB + 4096, 0, false),
            (GIB, 2048, false),
            (GIB, POSITION_MAX, true),
            (GIB, POSITION_MAX + 4096, false),
        ] {
            let with = VolumeHead {
                log_len,
                log_start,
                ..head()
            };
            let judged = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(judged.is_ok(), legal, "{log_len} from {log_start} on");
        }
    }

    #[test]
    fn an_epoch_that_is_frozen_and_fields_that_cannot_be_are_damage() {
        for (epoch, legal) in [(5, true), (4, false), (3, false)] {
            let epoch = Epoch(epoch);
            let with = VolumeHead { epoch, ..head() };
            let judged = VolumeHead::decode(Lineage(9), &with.encode(Lineage(9)));
            assert_eq!(judged.is_ok(), legal, "{epoch:?}");
        }
        // Clean flag, object size, level of the root, whether there is one.
        for (at, value, legal) in [
            (64, 0, true),
            (64, 2, false),
            (65, 15, false),
            (112, LEVEL_MAX, true),
            (112, LEVEL_MAX + 1, false),
            (113, 0, true),
            (113, 2, false),
        ] {
            let mut bytes = head().encode(Lineage(9));
            bytes[at] = value;
            let crc = crate::format::checksum(&bytes);
            bytes[16..20].copy_from_slice(&crc.to_le_bytes());
            let judged = VolumeHead::decode(Lineage(9), &bytes);
            assert_eq!(judged.is_ok(), legal, "{value} at {at}");
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
