//! The map of an open volume and what a change does to it: the tree, epochs, dirty metadata and a snapshot under way, which
//! change together.
//!
//! Invariants
//! - Objects of an epoch that is `frozen` are not owned; those of one that is `sealed` never change. `sealed <= frozen < epoch`.
//! - What the tree knows and the log does not is dirty, in order.

use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage, ObjectSize};

use super::dirty::{DirtyMetadata, Full};
use super::snapshot::{FrozenMap, SnapshotInProgress};
use crate::head::VolumeHead;
use crate::journal::Journal;
use crate::log::{Record, RecordKind};
use crate::tree::{Cache, Layer, Missing, Range, Tree, WritePlace};

/// Blocks of a record: 2^32 blocks are 16 TiB, larger ranges take several records.
const RECORD_BLOCKS_MAX: u64 = u32::MAX as u64;

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotYet {
    /// A page has to be loaded.
    Missing(Missing),
    /// Too much is not logged.
    Full,
}

impl From<Missing> for NotYet {
    fn from(missing: Missing) -> Self {
        NotYet::Missing(missing)
    }
}

impl From<Full> for NotYet {
    fn from(_full: Full) -> Self {
        NotYet::Full
    }
}

/// The map of an open volume.
#[derive(Debug)]
pub(crate) struct LiveMap {
    own: Lineage,
    /// Bytes.
    size: u64,
    tree: Tree,
    /// Of new objects.
    epoch: Epoch,
    /// Objects of this epoch and older ones are not owned.
    frozen: Epoch,
    /// Objects of this epoch and older ones belong to a snapshot that exists or is being stored.
    sealed: Epoch,
    dirty: DirtyMetadata,
    snapshot: Option<SnapshotInProgress>,
}

impl LiveMap {
    /// The map as `head` says, before any replay.
    pub(super) fn new(own: Lineage, object_size: ObjectSize, size: u64, head: &VolumeHead) -> Self {
        LiveMap {
            own,
            size,
            tree: Tree::new(head.root, object_size),
            epoch: head.epoch,
            frozen: head.frozen,
            sealed: head.frozen,
            dirty: DirtyMetadata::new(),
            snapshot: None,
        }
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn set_size(&mut self, size: u64) {
        self.size = size;
    }

    /// Blocks of the volume; the last may be partial.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK_SIZE)
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Of new objects.
    pub(crate) fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn frozen(&self) -> Epoch {
        self.frozen
    }

    pub(crate) fn dirty(&self) -> &DirtyMetadata {
        &self.dirty
    }

    pub(crate) fn dirty_mut(&mut self) -> &mut DirtyMetadata {
        &mut self.dirty
    }

    /// Whole blocks inside the volume.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<Range, ErrorCode> {
        let end = offset.checked_add(len).ok_or(ErrorCode::Invalid)?;
        let whole = offset.is_multiple_of(BLOCK_SIZE) && len.is_multiple_of(BLOCK_SIZE) && len > 0;
        if !whole || end > self.blocks() * BLOCK_SIZE {
            return Err(ErrorCode::Invalid);
        }
        Ok(Range {
            start: offset / BLOCK_SIZE,
            end: end / BLOCK_SIZE,
        })
    }

    /// Whether this session may have written objects of `epoch` that no snapshot holds: what belongs to one that exists
    /// never changes.
    pub(crate) fn may_be_written(&self, epoch: Epoch) -> bool {
        epoch <= self.epoch && epoch > self.sealed
    }

    /// The run that holds `block`: its layer (`None`: zeros) and its end.
    pub(crate) fn lookup(
        &self,
        cache: &Cache,
        block: u64,
    ) -> Result<(Option<Layer>, u64), Missing> {
        self.tree.lookup(cache, block)
    }

    /// Where a write of `range` goes.
    pub(crate) fn write_place(&self, cache: &Cache, range: Range) -> Result<WritePlace, Missing> {
        let (own, frozen) = (self.own, self.frozen);
        self.tree.write_place(cache, range, |layer| {
            layer.lineage == own && layer.epoch > frozen
        })
    }

    /// `range` was written to (own lineage, `epoch`), or reads as zeros if there is none. At most `dirty_max` changes are
    /// not logged afterwards.
    ///
    /// May be repeated: a change that was made in part (the journal was full in between) is made whole the next time.
    pub(crate) fn apply(
        &mut self,
        cache: &Cache,
        range: Range,
        epoch: Option<Epoch>,
        dirty_max: usize,
    ) -> Result<(), NotYet> {
        let layer = epoch.map(|epoch| self.own_layer(epoch));
        let needed = self.tree.missing(cache, range, layer).or_else(|| {
            let snapshot = self.snapshot.as_ref()?;
            snapshot.missing(cache, range, layer?)
        });
        if let Some(missing) = needed {
            return Err(missing.into());
        }
        let Some(layer) = layer else {
            self.change(cache, range, None, dirty_max)?;
            if let Some(snapshot) = &mut self.snapshot {
                snapshot.zero(range);
            }
            return Ok(());
        };
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.write(cache, range, layer);
        }
        if layer.epoch == self.epoch {
            return self.change(cache, range, Some(layer), dirty_max);
        }
        let mut parts = self.tree.not_newer(cache, range, layer);
        if let Some(snapshot) = &self.snapshot {
            snapshot.subtract_zeroed(&mut parts);
        }
        for part in parts {
            self.change(cache, part, Some(layer), dirty_max)?;
        }
        Ok(())
    }

    /// Changes the tree, and notes the change as dirty first.
    fn change(
        &mut self,
        cache: &Cache,
        range: Range,
        layer: Option<Layer>,
        dirty_max: usize,
    ) -> Result<(), NotYet> {
        let mut at = range.start;
        while at < range.end {
            let part = Range {
                start: at,
                end: range.end.min(at + RECORD_BLOCKS_MAX),
            };
            let record = Record {
                kind: if layer.is_some() {
                    RecordKind::Present
                } else {
                    RecordKind::Zero
                },
                blocks: u32::try_from(part.end - part.start).expect("cut above"),
                start: part.start,
                epoch: layer.map_or(self.epoch, |layer| layer.epoch),
                sequence: 0,
            };
            self.dirty.push(record, dirty_max)?;
            self.tree.set(cache, part, layer);
            at = part.end;
        }
        Ok(())
    }

    fn own_layer(&self, epoch: Epoch) -> Layer {
        Layer {
            lineage: self.own,
            epoch,
        }
    }

    /// Makes a change that will be durable with the tree, by the next head: `range` is in objects of `epoch`, or zeros.
    pub(crate) fn set(
        &mut self,
        cache: &Cache,
        range: Range,
        epoch: Option<Epoch>,
    ) -> Result<(), Missing> {
        let layer = epoch.map(|epoch| self.own_layer(epoch));
        self.tree.missing(cache, range, layer).map_or(Ok(()), Err)?;
        self.tree.set(cache, range, layer);
        Ok(())
    }

    /// A record as it was logged or journaled before.
    pub(crate) fn replay(&mut self, cache: &Cache, record: &Record) -> Result<(), Missing> {
        let range = Range {
            start: record.start,
            end: record.end(),
        };
        // The volume may have been grown since, never shrunk: a record beyond any volume was refused when decoded.
        debug_assert!(record.end() <= archipelago_protocol::ids::VOLUME_SIZE_MAX / BLOCK_SIZE);
        let layer = self.own_layer(record.epoch);
        let put = (record.kind == RecordKind::Present).then_some(layer);
        self.tree.missing(cache, range, put).map_or(Ok(()), Err)?;
        match record.kind {
            RecordKind::Present => {
                for part in self.tree.not_newer(cache, range, layer) {
                    self.tree.set(cache, part, Some(layer));
                }
            }
            RecordKind::Zero => self.tree.set(cache, range, None),
            RecordKind::Freeze => self.frozen = self.frozen.max(record.epoch),
            // Of content, not of places.
            RecordKind::Journaled | RecordKind::WrittenBack => {}
        }
        Ok(())
    }

    /// A session begins whose head is `head`: the pages that it names have all that was dirty.
    pub(crate) fn begin_session(&mut self, head: &VolumeHead, journal: Box<dyn Journal>) {
        (self.epoch, self.frozen, self.sealed) = (head.epoch, head.frozen, head.frozen);
        self.dirty.restart(journal);
        self.tree.release_stored();
    }

    /// New objects are of another epoch from now on.
    pub(crate) fn raise_epoch(&mut self) -> Epoch {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.epoch
    }

    /// Nodes whose pages are stored are the cache's affair from now on.
    pub(crate) fn release_stored(&mut self) {
        self.tree.release_stored();
    }

    pub(crate) fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Freezes the map as it is: nothing of it is owned any more. The new epoch.
    pub(crate) fn begin_snapshot(&mut self, token: u64) -> Epoch {
        let old = self.epoch;
        let tree = self.tree.clone();
        self.snapshot = Some(SnapshotInProgress::new(token, tree, old, self.size));
        self.frozen = old;
        self.raise_epoch()
    }

    /// Forgets the snapshot of `token`, if there is one; the raised epoch stays.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: it is being committed.
    pub(crate) fn abort_snapshot(&mut self, token: u64) -> Result<(), ErrorCode> {
        match &self.snapshot {
            Some(snapshot) if snapshot.token() == token && snapshot.is_committing() => {
                Err(ErrorCode::InUse)
            }
            _ => {
                self.end_snapshot(token);
                Ok(())
            }
        }
    }

    /// What is to be stored for the snapshot of `token`: nothing of it changes from now on.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; or [`ErrorCode::InUse`]: it is being committed already.
    pub(crate) fn commit_snapshot(&mut self, token: u64) -> Result<FrozenMap, ErrorCode> {
        let snapshot = self.snapshot.as_mut();
        let snapshot = snapshot.filter(|snapshot| snapshot.token() == token);
        let snapshot = snapshot.ok_or(ErrorCode::NotFound)?;
        if snapshot.is_committing() {
            return Err(ErrorCode::InUse);
        }
        self.sealed = snapshot.epoch();
        Ok(snapshot.commit())
    }

    /// Forgets the snapshot of `token`, if there is one.
    pub(crate) fn end_snapshot(&mut self, token: u64) {
        self.snapshot.take_if(|snapshot| snapshot.token() == token);
    }

    /// Forgets any snapshot; its token.
    pub(crate) fn drop_snapshot(&mut self) -> Option<u64> {
        self.snapshot.take().map(|snapshot| snapshot.token())
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Generation;

    use super::*;
    use crate::tree::Root;

    fn map(epoch: u64) -> LiveMap {
        let head = VolumeHead {
            generation: Generation(1),
            owner: 1,
            clean: false,
            object_size: ObjectSize::MIN,
            epoch: Epoch(epoch),
            frozen: Epoch(0),
            root: Root::default(),
            log_number: 1,
            log_len: 1 << 16,
            log_start: 0,
        };
        LiveMap::new(Lineage(5), ObjectSize::MIN, 1 << 20, &head)
    }

    fn epochs<const N: usize>(map: &LiveMap, cache: &Cache, blocks: [u64; N]) -> [Option<u64>; N] {
        blocks.map(|block| {
            let (layer, _) = map.lookup(cache, block).unwrap();
            layer.map(|layer| layer.epoch.0)
        })
    }

    #[test]
    fn a_replay_leaves_what_is_in_a_newer_epoch() {
        let (mut map, cache) = (map(8), Cache::new(1 << 20));
        for (epoch, start, blocks) in [(7, 3, 2), (6, 2, 4)] {
            let record = Record {
                kind: RecordKind::Present,
                blocks,
                start,
                epoch: Epoch(epoch),
                sequence: 1,
            };
            map.replay(&cache, &record).unwrap();
        }
        assert_eq!(
            epochs(&map, &cache, [1, 2, 3, 4, 5, 6]),
            [None, Some(6), Some(7), Some(7), Some(6), None]
        );
    }

    #[test]
    fn a_late_write_of_the_old_epoch_goes_into_the_snapshot_and_under_what_is_newer() {
        let (mut map, cache) = (map(8), Cache::new(1 << 20));
        assert_eq!(map.begin_snapshot(1), Epoch(9));
        let range = |start, end| Range { start, end };
        map.apply(&cache, range(4, 5), Some(Epoch(9)), 9).unwrap();
        map.apply(&cache, range(6, 7), None, 9).unwrap();
        map.apply(&cache, range(3, 8), Some(Epoch(8)), 9).unwrap();
        assert_eq!(
            epochs(&map, &cache, [3, 4, 5, 6, 7]),
            [Some(8), Some(9), Some(8), None, Some(8)]
        );
        assert!(map.may_be_written(Epoch(8)));
        let frozen = map.commit_snapshot(1).unwrap();
        assert!(!map.may_be_written(Epoch(8)), "it is sealed");
        let in_snapshot = |block| frozen.tree.lookup(&cache, block).unwrap().0;
        for block in 3..8 {
            assert_eq!(in_snapshot(block).map(|layer| layer.epoch), Some(Epoch(8)));
        }
        assert_eq!(map.commit_snapshot(1).unwrap_err(), ErrorCode::InUse);
        assert_eq!(map.abort_snapshot(1), Err(ErrorCode::InUse));
        // The end of another one is not the end of this one.
        map.end_snapshot(2);
        assert!(map.has_snapshot());
        map.end_snapshot(1);
        assert!(!map.has_snapshot());
    }
}
