//! Records of a volume's log. Layout: `docs/map-format.md`, "Volume log records".
//!
//! 32 bytes each: kind u8, 0 u8, length u16 (of the record), blocks u32, first block u64, epoch u64, sequence u64.
//! Longer records of kinds to come say so in their length.

use archipelago_protocol::Epoch;

use crate::format::{Reader, Writer};

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum RecordKind {
    /// The blocks are in (own lineage, epoch).
    Present = 1,
    /// The blocks read as zeros.
    Zero = 2,
    /// Nothing of this epoch or older ones is owned any more.
    Freeze = 3,
    /// The next of the batch's journaled blocks is this one: it may not be durable at its home location, where the map says
    /// it is.
    Journaled = 4,
    /// All blocks that were journaled before are durable at their home locations.
    WrittenBack = 5,
}

/// A change to a volume, as logged and as journalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) kind: RecordKind,
    pub(crate) blocks: u32,
    pub(crate) start: u64,
    pub(crate) epoch: Epoch,
    /// Order within the session.
    pub(crate) sequence: u64,
}

impl Record {
    pub(crate) const LEN: usize = 32;

    /// One that speaks of no blocks that became present.
    pub(crate) fn mark(kind: RecordKind, epoch: Epoch) -> Record {
        Record {
            kind,
            blocks: 0,
            start: 0,
            epoch,
            sequence: 0,
        }
    }

    /// One of blocks that became present: an example of tests.
    #[cfg(test)]
    pub(crate) fn present(start: u64, blocks: u32, epoch: u64, sequence: u64) -> Record {
        Record {
            kind: RecordKind::Present,
            blocks,
            start,
            epoch: Epoch(epoch),
            sequence,
        }
    }

    pub(crate) fn end(&self) -> u64 {
        self.start + u64::from(self.blocks)
    }

    pub(crate) fn encode(&self, to: &mut Writer) {
        to.u8(self.kind as u8);
        to.u8(0);
        to.u16(u16::try_from(Self::LEN).expect("a small constant"));
        to.u32(self.blocks);
        to.u64(self.start);
        to.u64(self.epoch.0);
        to.u64(self.sequence);
    }

    /// All records of a batch.
    ///
    /// # Errors
    /// What is wrong: the checksum was right, so another version wrote it, or we did wrongly.
    pub(crate) fn decode_all(payload: &[u8]) -> Result<Vec<Record>, String> {
        let mut fields = Reader::new(payload);
        let mut records = Vec::with_capacity(payload.len() / Self::LEN);
        while !fields.rest().is_empty() {
            records.push(Self::decode(&mut fields)?);
        }
        Ok(records)
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Record, String> {
        let short = || "a record is cut short".to_owned();
        let kind = match fields.u8().ok_or_else(short)? {
            1 => RecordKind::Present,
            2 => RecordKind::Zero,
            3 => RecordKind::Freeze,
            4 => RecordKind::Journaled,
            5 => RecordKind::WrittenBack,
            kind => return Err(format!("record kind {kind} is unknown to this program")),
        };
        fields
            .zeros(1)
            .ok_or("a record's reserved field is not 0")?;
        let len = fields.u16().ok_or_else(short)?;
        if usize::from(len) != Self::LEN {
            return Err(format!("a record has length {len}"));
        }
        let record = Record {
            kind,
            blocks: fields.u32().ok_or_else(short)?,
            start: fields.u64().ok_or_else(short)?,
            epoch: Epoch(fields.u64().ok_or_else(short)?),
            sequence: fields.u64().ok_or_else(short)?,
        };
        // 2^38 blocks are the largest volume.
        if record.start > 1 << 38 || record.end() > 1 << 38 {
            return Err(format!("a record is for block {}", record.start));
        }
        Ok(record)
    }
}
