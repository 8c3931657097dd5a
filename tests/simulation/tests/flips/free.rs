//! Which bits of a pool are free: decided from the bytes by `docs/map-format.md` alone, not by the code that is tested.
//!
//! Only these bits may change unnoticed, each for the reason given:
//! - padding between pages of a pack: outside every envelope, never read as anything;
//! - a page that no head, catalogue record or live page refers to: superseded by a later checkpoint.
//!
//! No bit of a head is free, also not of the slot that is superseded: it must be what the last swap left. No bit of a log
//! is free: its sectors are whole wherever they stand. What replay reads must be refused, the rest reported.

use std::collections::BTreeMap;
use std::ops::Range;

use archipelago_blocker::slots;
use archipelago_doubles::SimulatedBackend;
use archipelago_protocol::object::{ObjectId, ObjectKind};

const UNIT: usize = 4096;
const ENVELOPE: usize = 48;
/// Bytes of a sector of a log, of its header, and of the contents of a unit.
pub(crate) const SECTOR: usize = 512;
const SECTOR_HEADER: usize = 24;
const UNIT_CONTENT: usize = 3904;

/// Why a byte is free.
pub(crate) type Reason = &'static str;

/// The free bytes of an object, and where its last batch stands if it is a log that is replayed.
#[derive(Debug, Default)]
pub(crate) struct Free {
    ranges: Vec<(Range<usize>, Reason)>,
    pub(crate) last_batch: Option<Range<usize>>,
    /// Of a log: whether the unit at this place holds part of a batch that replay needs. Empty for others.
    in_use: Vec<bool>,
}

impl Free {
    pub(crate) fn reason(&self, at: usize) -> Option<Reason> {
        let (_, reason) = self.ranges.iter().find(|(range, _)| range.contains(&at))?;
        Some(reason)
    }

    /// Whether a byte is part of a batch that replay needs.
    pub(crate) fn is_replayed(&self, at: usize) -> bool {
        self.in_use.get(at / UNIT) == Some(&true)
    }

    /// Whether a byte lies in a part of a log that nobody needs now, and not where a batch would begin.
    pub(crate) fn is_empty_space(&self, at: usize) -> bool {
        let unit = self.in_use.get(at / UNIT);
        unit == Some(&false) && at % UNIT >= SECTOR_HEADER + ENVELOPE
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn length(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize
}

fn head(pool: &SimulatedBackend, id: ObjectId) -> Vec<u8> {
    let bytes = pool.bytes(ObjectId::head(id.lineage)).unwrap();
    let slots: Box<[u8; slots::SLOTS_LEN]> = bytes.try_into().unwrap();
    slots::decode(&slots).unwrap().unwrap().content
}

/// The free bytes of each object but data.
pub(crate) fn of(pool: &SimulatedBackend) -> BTreeMap<ObjectId, Free> {
    let metadata = pool
        .objects()
        .into_iter()
        .filter(|id| id.kind != ObjectKind::Data);
    metadata
        .map(|id| {
            let free = match id.kind {
                ObjectKind::Log => of_log(pool, id),
                ObjectKind::Pack => of_pack(pool, id),
                _ => Free::default(),
            };
            (id, free)
        })
        .collect()
}

fn of_log(pool: &SimulatedBackend, id: ObjectId) -> Free {
    let (head, bytes) = (head(pool, id), pool.bytes(id).unwrap());
    let is_volume = head.starts_with(b"ARCHHEAD");
    let mut free = Free {
        in_use: vec![false; bytes.len() / UNIT],
        ..Free::default()
    };
    if is_volume && head[72] == 1 {
        return free;
    }
    let start = word(&head, if is_volume { 112 } else { 88 });
    let len = bytes.len() as u64;
    let mut end = start;
    while end < start + len {
        let at = usize::try_from(end % len).unwrap();
        let content = at + SECTOR_HEADER;
        let is_first = word(&bytes, at) == end && bytes[at + 16..at + 18] == [0; 2];
        if !is_first || !bytes[content..].starts_with(b"ARCHBTCH") {
            break;
        }
        let batch = length(&bytes, content) / UNIT_CONTENT * UNIT;
        free.last_batch = Some(at..at + batch);
        free.in_use[at / UNIT..(at + batch) / UNIT].fill(true);
        end += batch as u64;
    }
    free
}

/// Begin and end of each page, by the envelopes at multiples of 64.
fn pages(bytes: &[u8]) -> Vec<Range<usize>> {
    let mut pages = Vec::new();
    let mut at = 0;
    while at + ENVELOPE < bytes.len() {
        let is_page = [b"ARCHPAGE", b"ARCHCPAG"]
            .iter()
            .any(|magic| bytes[at..].starts_with(*magic));
        let len = if is_page { length(bytes, at) } else { 64 };
        if is_page {
            pages.push(at..at + len);
        }
        at = (at + len).next_multiple_of(64);
    }
    pages
}

/// A page reference from its checksum on, as it stands in heads, records and pages.
fn reference(id: ObjectId, bytes: &[u8], page: &Range<usize>) -> Vec<u8> {
    let [high, low] = id.lineage.to_words();
    let mut reference = bytes[page.start + 16..page.start + 20].to_vec();
    reference.extend([0; 4]);
    for word in [high, low, id.number, page.start as u64] {
        reference.extend(word.to_le_bytes());
    }
    reference
}

fn of_pack(pool: &SimulatedBackend, id: ObjectId) -> Free {
    let bytes = pool.bytes(id).unwrap();
    let pages = pages(&bytes);
    let mut ranges = Vec::new();
    let mut end = 0;
    for page in &pages {
        ranges.push((end..page.start, "padding of a pack"));
        end = page.end;
        let is_map = bytes[page.start..].starts_with(b"ARCHPAGE");
        if is_map && !is_live(pool, &reference(id, &bytes, page)) {
            ranges.push((page.clone(), "superseded page"));
        }
    }
    ranges.push((end..bytes.len(), "padding of a pack"));
    for (range, reason) in &ranges {
        let zeros = bytes[range.clone()].iter().all(|byte| *byte == 0);
        assert!(zeros || *reason != "padding of a pack", "{id:?} {range:?}");
    }
    Free {
        ranges,
        ..Free::default()
    }
}

/// Whether a reference stands in the present head of a volume, in the catalogue, or in a page that is live itself.
fn is_live(pool: &SimulatedBackend, reference: &[u8]) -> bool {
    let holds = |bytes: &[u8]| bytes.windows(reference.len()).any(|part| part == reference);
    pool.objects().into_iter().any(|id| match id.kind {
        ObjectKind::Head => holds(&head(pool, id)),
        ObjectKind::Log => {
            let bytes = pool.bytes(id).unwrap();
            let sectors = bytes.chunks(SECTOR);
            let contents: Vec<u8> = sectors
                .flat_map(|sector| &sector[SECTOR_HEADER..])
                .copied()
                .collect();
            holds(&contents)
        }
        ObjectKind::Pack => {
            let bytes = pool.bytes(id).unwrap();
            pages(&bytes).iter().any(|page| {
                let is_map = bytes[page.start..].starts_with(b"ARCHPAGE");
                holds(&bytes[page.clone()])
                    && (!is_map || is_live(pool, &self::reference(id, &bytes, page)))
            })
        }
        _ => false,
    })
}
