//! One object's bytes: per sector, what is durable and what was written since.
//!
//! Invariants
//! - `layers` of a page are in the order of their writes. Each holds the whole page as it read after it, and a mask of
//!   the sectors that it wrote.
//! - `dirty` are the pages with layers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use archipelago_blocker::logs::LogState;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::log_sector::is_whole;

use super::choose::Chooser;
use crate::pages::{PAGE, for_pages};

const SECTOR: usize = 512;
const SECTORS: usize = PAGE / SECTOR;

type Bytes = Arc<[u8; PAGE]>;

static ZEROS: LazyLock<Bytes> = LazyLock::new(|| Arc::new([0; PAGE]));

/// When a write was completed: a sync covers those before it.
pub(super) type Moment = u64;

#[derive(Debug, Clone)]
struct Layer {
    moment: Moment,
    mask: u8,
    bytes: Bytes,
}

#[derive(Debug, Clone, Default)]
struct Page {
    durable: Option<Bytes>,
    layers: Vec<Layer>,
}

impl Page {
    fn durable(&self) -> &Bytes {
        self.durable.as_ref().unwrap_or(&ZEROS)
    }

    fn latest(&self) -> &Bytes {
        self.layers
            .last()
            .map_or_else(|| self.durable(), |layer| &layer.bytes)
    }
}

/// How a write is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Until a sync: completed at this moment.
    Written(Moment),
    /// For good.
    Durable,
}

#[derive(Debug, Clone, Default)]
pub(super) struct File {
    pages: BTreeMap<u64, Page>,
    dirty: BTreeSet<u64>,
    /// End of the last byte written, and of the last one that is durable.
    len: u64,
    durable_len: u64,
    /// Whether its name is durable.
    pub(super) named: bool,
    /// A sync of the pool has dropped some of it, and no sync of its own has reported that.
    pub(super) lost: bool,
    /// Of a log: its attributes, which are durable when they change.
    pub(super) log: LogState,
    /// The positions of an append that was not acknowledged: it has landed if its sectors are all there.
    pub(super) in_doubt: Option<Range<u64>>,
    /// The positions of an append that was found landed without an acknowledgement: a power cut may still lose it.
    unsynced: Option<Range<u64>>,
}

impl File {
    /// Of a log: its attributes, after a look at what an append that was not acknowledged has left.
    pub(super) fn log_state(&mut self, lineage: Lineage) -> LogState {
        if let Some(positions) = self.in_doubt.take() {
            let len = positions.end - positions.start;
            let mut bytes = vec![0; usize::try_from(len).expect("a batch is small")];
            self.read(positions.start % self.len, &mut bytes);
            if is_whole(&bytes, lineage, positions.start) {
                self.log.end = positions.end;
                self.unsynced = Some(positions);
            }
        }
        self.log
    }

    /// After a power cut: a log ends before an append that it has lost.
    pub(super) fn find_end_again(&mut self, lineage: Lineage) {
        if let Some(positions) = self.unsynced.take()
            && positions.end == self.log.end
        {
            self.log.end = positions.start;
            self.in_doubt = Some(positions);
            self.log_state(lineage);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn occupied(&self) -> u64 {
        (self.pages.len() * PAGE) as u64
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        for_pages(offset, into.len(), |number, within, range| {
            let len = range.len();
            match self.pages.get(&number) {
                Some(page) => into[range].copy_from_slice(&page.latest()[within..within + len]),
                None => into[range].fill(0),
            }
        });
    }

    /// Whether anything but zeros was ever written to the range, whatever became of it.
    pub(super) fn has_data(&self, offset: u64, len: usize) -> bool {
        let mut found = false;
        for_pages(offset, len, |number, within, range| {
            let Some(page) = self.pages.get(&number) else {
                return;
            };
            let versions = page
                .layers
                .iter()
                .map(|layer| &layer.bytes)
                .chain(&page.durable);
            found |= versions
                .into_iter()
                .any(|bytes| bytes[within..within + range.len()] != [0; PAGE][..range.len()]);
        });
        found
    }

    /// Writes all of `from`.
    pub(super) fn write_all(&mut self, offset: u64, from: &[u8], keep: Keep) {
        self.write(offset, from, keep, || true);
    }

    /// Writes the sectors of `from` that `wanted` says yes to, asked in order.
    pub(super) fn write(
        &mut self,
        offset: u64,
        from: &[u8],
        keep: Keep,
        mut wanted: impl FnMut() -> bool,
    ) {
        let (pages, dirty) = (&mut self.pages, &mut self.dirty);
        for_pages(offset, from.len(), |number, within, range| {
            let page = pages.entry(number).or_default();
            let mut bytes = **page.latest();
            let mut mask = 0;
            let piece = &from[range];
            for sector in within / SECTOR..(within + piece.len()).div_ceil(SECTOR) {
                if wanted() {
                    let start = within.max(sector * SECTOR);
                    let end = (within + piece.len()).min((sector + 1) * SECTOR);
                    bytes[start..end].copy_from_slice(&piece[start - within..end - within]);
                    mask |= 1 << sector;
                }
            }
            page.put(bytes, mask, keep);
            if !page.layers.is_empty() {
                dirty.insert(number);
            }
        });
        self.len = self.len.max(offset + from.len() as u64);
        if keep == Keep::Durable {
            self.durable_len = self.durable_len.max(offset + from.len() as u64);
        }
    }

    /// As a write of zeros, but for the length.
    pub(super) fn punch(&mut self, offset: u64, len: usize, keep: Keep) {
        let (before, durable_before) = (self.len, self.durable_len);
        let end = before.min(offset.saturating_add(len as u64));
        if let Some(len) = end.checked_sub(offset) {
            let zeros = vec![0; usize::try_from(len).expect("at most IO_LEN_MAX")];
            self.write(offset, &zeros, keep, || true);
        }
        (self.len, self.durable_len) = (before, durable_before);
    }

    /// Makes durable what was completed before `before`.
    pub(super) fn sync(&mut self, before: Moment) {
        self.named = true;
        let pages = &mut self.pages;
        self.dirty.retain(|number| {
            let page = pages.get_mut(number).expect("dirty pages are there");
            page.sync(before);
            !page.layers.is_empty()
        });
        self.durable_len = self.len;
    }

    /// Forgets what is not durable, because a sync of the pool failed: the next sync of its own reports that, as `fsync` does.
    pub(super) fn lose_written(&mut self) {
        self.lost |= !self.dirty.is_empty();
        self.drop_written();
    }

    /// Forgets what is not durable.
    pub(super) fn drop_written(&mut self) {
        for number in std::mem::take(&mut self.dirty) {
            self.pages
                .get_mut(&number)
                .expect("dirty pages are there")
                .layers
                .clear();
        }
        self.len = self.durable_len;
    }

    /// Whether a power cut leaves anything open.
    pub(super) fn is_settled(&self) -> bool {
        self.named && self.dirty.is_empty()
    }

    /// Leaves of each sector one of the versions that it had since it was last durable.
    pub(super) fn power_cut(&mut self, chooser: &mut dyn Chooser) {
        let mut end = self.durable_len;
        for number in std::mem::take(&mut self.dirty) {
            let page = self.pages.get_mut(&number).expect("dirty pages are there");
            if page.power_cut(chooser) {
                end = end.max((number + 1) * PAGE as u64).min(self.len);
            }
        }
        self.len = end;
        self.durable_len = end;
        (self.named, self.lost) = (true, false);
    }
}

impl Page {
    fn put(&mut self, bytes: [u8; PAGE], mask: u8, keep: Keep) {
        if mask == 0 {
            return;
        }
        match keep {
            Keep::Written(_) if self.layers.is_empty() && bytes == **self.durable() => {
                // Nothing between which a power cut could distinguish.
                self.durable.get_or_insert_with(|| ZEROS.clone());
            }
            Keep::Written(moment) => self.layers.push(Layer {
                moment,
                mask,
                bytes: Arc::new(bytes),
            }),
            Keep::Durable => {
                let mut durable = **self.durable();
                copy_sectors(&mut durable, &bytes, mask);
                self.durable = Some(Arc::new(durable));
                for layer in &mut self.layers {
                    layer.mask &= !mask;
                    copy_sectors(Arc::make_mut(&mut layer.bytes), &bytes, mask);
                }
                self.layers.retain(|layer| layer.mask != 0);
            }
        }
    }

    fn sync(&mut self, before: Moment) {
        let covered = self
            .layers
            .iter()
            .take_while(|layer| layer.moment < before)
            .count();
        if covered == 0 {
            return;
        }
        // A layer holds all sectors as they were after it.
        self.durable = Some(self.layers[covered - 1].bytes.clone());
        self.layers.drain(..covered);
    }

    /// Whether anything was kept.
    fn power_cut(&mut self, chooser: &mut dyn Chooser) -> bool {
        let mut durable = **self.durable();
        let mut kept = false;
        for sector in 0..SECTORS {
            let range = sector * SECTOR..(sector + 1) * SECTOR;
            let mut versions: Vec<&[u8]> = vec![&self.durable()[range.clone()]];
            for layer in self
                .layers
                .iter()
                .filter(|layer| layer.mask >> sector & 1 == 1)
            {
                let version = &layer.bytes[range.clone()];
                if versions.last() != Some(&version) {
                    versions.push(version);
                }
            }
            if versions.len() > 1 {
                let chosen = chooser.choose(versions.len());
                kept |= chosen > 0;
                let version = versions[chosen].to_vec();
                durable[range].copy_from_slice(&version);
            }
        }
        self.layers.clear();
        self.durable = Some(Arc::new(durable));
        kept
    }
}

fn copy_sectors(into: &mut [u8; PAGE], from: &[u8; PAGE], mask: u8) {
    for sector in (0..SECTORS).filter(|sector| mask >> sector & 1 == 1) {
        let range = sector * SECTOR..(sector + 1) * SECTOR;
        into[range.clone()].copy_from_slice(&from[range]);
    }
}
