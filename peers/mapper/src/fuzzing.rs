//! The private decoders, for fuzzing only: feature `fuzzing`, no promise to anybody.
//!
//! Each takes foreign bytes; what it accepts comes back encoded again.

use archipelago_protocol::{Generation, Lineage, ObjectSize};

use crate::catalogue::{Change, Names, decode_page};
use crate::format::{ENVELOPE_LEN, Writer, sealed_crc};
use crate::head::{CatalogueHead, VolumeHead};
use crate::log::{Content, Record, Wanted, Writers, scan};
use crate::tree::{PageRef, decode, reencode};

/// A batch of at least `len_min` bytes; `blocks` are journaled, 4096 bytes each.
#[must_use]
pub fn encode_batch(
    lineage: Lineage,
    generation: Generation,
    position: u64,
    payload: &[u8],
    blocks: &[u8],
    len_min: usize,
) -> Vec<u8> {
    let content = Content {
        payload: payload.to_vec(),
        blocks: blocks.to_vec(),
    };
    crate::log::encode_batch(lineage, generation, position, &content, len_min)
}

/// A log that was only made.
#[must_use]
pub fn blank_log(lineage: Lineage, len: u64) -> Vec<u8> {
    archipelago_protocol::log_sector::blank(lineage, 0..len)
}

#[must_use]
pub fn volume_head(lineage: Lineage, bytes: &[u8]) -> Option<Vec<u8>> {
    let head = VolumeHead::decode(lineage, bytes).ok()?;
    Some(head.encode(lineage))
}

#[must_use]
pub fn catalogue_head(bytes: &[u8]) -> Option<Vec<u8>> {
    CatalogueHead::decode(bytes).ok().map(|head| head.encode())
}

/// Payload and journaled blocks of a batch.
pub type Batch = (Vec<u8>, Vec<u8>);

/// The batches, and the end.
#[must_use]
pub fn scan_log(
    bytes: &[u8],
    lineage: Lineage,
    start: u64,
    oldest: Generation,
    newest: Generation,
) -> Option<(Vec<Batch>, u64)> {
    let wanted = Wanted {
        lineage,
        start,
        writers: Writers::Sessions { oldest, newest },
    };
    let found = scan(bytes, wanted).ok()?;
    let contents = found.contents.into_iter();
    let contents = contents.map(|content| (content.payload, content.blocks));
    Some((contents.collect(), found.end))
}

#[must_use]
pub fn log_records(payload: &[u8]) -> Option<Vec<u8>> {
    let mut writer = Writer::bare();
    for record in Record::decode_all(payload).ok()? {
        record.encode(&mut writer);
    }
    Some(writer.into_bytes())
}

/// A page as whoever refers to it with the right length and checksum reads it; `edit` puts blocks `start .. end` of an
/// object into a layer of `lineage` first.
#[must_use]
pub fn map_page(
    lineage: Lineage,
    level: u8,
    size: ObjectSize,
    bytes: &[u8],
    edit: Option<(usize, u16, u16)>,
) -> Option<Vec<u8>> {
    // Shorter than an envelope: no reference to such a page can be made.
    let crc = sealed_crc(bytes.get(..ENVELOPE_LEN)?);
    let page = PageRef {
        lineage,
        pack: 1,
        offset: 0,
        len: u32::try_from(bytes.len()).ok()?,
        crc,
    };
    let node = decode(&page, level, size, bytes).ok()?;
    Some(reencode(lineage, size, level, &node, edit))
}

/// The records, and what the catalogue that they make writes into its next checkpoint.
#[must_use]
pub fn catalogue_records(payload: &[u8]) -> Option<(Vec<u8>, Option<Vec<u8>>)> {
    let encode = |changes: &mut dyn Iterator<Item = Change>| {
        let mut writer = Writer::bare();
        changes.for_each(|change| change.encode(&mut writer));
        writer.into_bytes()
    };
    let changes = Change::decode_all(payload).ok()?;
    let again = encode(&mut changes.iter().cloned());
    let mut names = Names::default();
    changes.into_iter().for_each(|change| names.apply(change));
    let dump = names.check().is_ok().then(|| {
        let page = names.list("", None, usize::MAX, None);
        assert!(page.entries.len() as u64 <= names.len());
        encode(&mut names.dump())
    });
    Some((again, dump))
}

/// How long the page is.
#[must_use]
pub fn catalogue_page(bytes: &[u8]) -> Option<usize> {
    decode_page(bytes).ok().map(|(_, len)| len)
}
