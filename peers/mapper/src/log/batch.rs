//! Batches: what one append writes. Layout: `docs/map-format.md`, "Logs".
//!
//! Body behind the envelope: generation u64, position u64, payload length u32, data blocks u32; payload; the data
//! blocks; zeros. All of it lies in the contents of sectors ([`archipelago_protocol::log_sector`]).
//!
//! What a guest wrote is never taken for a batch: batches begin in sectors with index 0, and in these the envelope does.

use archipelago_protocol::log_sector::{
    CONTENT_LEN, SECTOR_LEN, Sector, UNIT, position_of, sectors,
};
use archipelago_protocol::{BLOCK_SIZE, Generation, Lineage};

use crate::format::{ENVELOPE_LEN, Problem, Reader, Writer};

const MAGIC: [u8; 8] = *b"ARCHBTCH";
/// What a unit holds of a batch.
pub(super) const UNIT_CONTENT: usize = UNIT / SECTOR_LEN * CONTENT_LEN;
/// Positions end here, so that sums of positions and lengths cannot overflow: at 10 GB/s a log gets there in 14 years.
pub(crate) const POSITION_MAX: u64 = 1 << 62;
/// Bytes in front of the payload.
pub(super) const HEAD_LEN: usize = ENVELOPE_LEN + 24;
/// Bytes of a journaled block.
pub(super) const BLOCK_LEN: usize = 4096;
const _: () = assert!(BLOCK_LEN as u64 == BLOCK_SIZE);

/// What a batch says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    /// Records.
    pub(crate) payload: Vec<u8>,
    /// Journaled blocks, one behind the other.
    pub(crate) blocks: Vec<u8>,
}

impl Content {
    /// Only records.
    pub(crate) fn records(payload: Vec<u8>) -> Self {
        Content {
            payload,
            blocks: Vec::new(),
        }
    }

    /// Whether it says nothing: padding.
    pub(super) fn is_empty(&self) -> bool {
        self.payload.is_empty() && self.blocks.is_empty()
    }

    /// Bytes of the batch.
    pub(crate) fn batch_len(&self) -> usize {
        batch_len(self.payload.len(), self.blocks.len() / BLOCK_LEN)
    }
}

/// Bytes of a batch with `payload` bytes of records and `blocks` journaled blocks.
pub(crate) fn batch_len(payload: usize, blocks: usize) -> usize {
    (HEAD_LEN + payload + blocks * BLOCK_LEN).div_ceil(UNIT_CONTENT) * UNIT
}

/// A batch of at least `len_min` bytes.
pub(crate) fn encode_batch(
    lineage: Lineage,
    generation: Generation,
    position: u64,
    content: &Content,
    len_min: usize,
) -> Vec<u8> {
    let Content { payload, blocks } = content;
    let count = blocks.len() / BLOCK_LEN;
    let mut batch = Writer::sealed(MAGIC, lineage);
    batch.u64(generation.0);
    batch.u64(position);
    batch.u32(u32::try_from(payload.len()).expect("at most BATCH_MAX"));
    batch.u32(u32::try_from(count).expect("at most BATCH_MAX"));
    batch.bytes(payload);
    batch.bytes(blocks);
    let units = (content.batch_len() / UNIT).max(len_min.div_ceil(UNIT));
    batch.pad_to(units * UNIT_CONTENT);
    sectors(&batch.seal(), lineage, position, generation)
}

/// One that is whole.
pub(super) struct Batch {
    pub(super) generation: u64,
    pub(super) content: Content,
    pub(super) len: u64,
}

/// The length that a batch says it has, in the content of its first sector.
pub(super) fn units_of(first: &Sector<'_>) -> Result<usize, Problem> {
    let said = first.content.get(..ENVELOPE_LEN).ok_or(Problem::Foreign)?;
    let len = u32::from_le_bytes(said[12..16].try_into().expect("four bytes"));
    match usize::try_from(len) {
        _ if !said.starts_with(&MAGIC) => Err(Problem::Foreign),
        Ok(whole) if whole > 0 && whole.is_multiple_of(UNIT_CONTENT) => Ok(whole / UNIT_CONTENT),
        _ => Err(Problem::Length(len)),
    }
}

/// The batch at `position`, which `bytes` begin with.
pub(super) fn decode(bytes: &[u8], lineage: Lineage, position: u64) -> Result<Batch, Problem> {
    // The position first: a leftover of the last round is the common case, and not worth a checksum.
    if position_of(bytes) != Some(position) {
        return Err(Problem::Foreign);
    }
    let nth = |index: usize| {
        let sector = bytes.get(index * SECTOR_LEN..)?;
        Sector::open(sector, lineage).filter(|sector| sector.is_of(position, index))
    };
    let first = nth(0).ok_or(Problem::Foreign)?;
    let units = units_of(&first)?;
    let len = units * UNIT;
    // Before anything is allocated for it.
    if len > bytes.len() {
        return Err(Problem::Field("batch length"));
    }
    let mut whole = Vec::with_capacity(units * UNIT_CONTENT);
    for index in 0..len / SECTOR_LEN {
        let sector = nth(index).filter(|sector| sector.generation == first.generation);
        whole.extend_from_slice(sector.ok_or(Problem::Field("sector"))?.content);
    }
    let mut fields = Reader::open(MAGIC, Some(lineage), &whole)?.fields;
    let short = || Problem::Field("batch end");
    let generation = fields.u64().ok_or_else(short)?;
    if generation != first.generation {
        return Err(Problem::Field("generation"));
    }
    if fields.u64() != Some(position) {
        return Err(Problem::Field("position"));
    }
    let payload_len = fields.u32().ok_or_else(short)? as usize;
    let count = fields.u32().ok_or_else(short)? as usize;
    let payload = fields.take(payload_len).ok_or_else(short)?;
    let blocks = count
        .checked_mul(BLOCK_LEN)
        .and_then(|len| fields.take(len))
        .ok_or_else(short)?;
    fields.padding()?;
    Ok(Batch {
        generation,
        content: Content {
            payload: payload.to_vec(),
            blocks: blocks.to_vec(),
        },
        len: len as u64,
    })
}
