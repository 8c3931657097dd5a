//! The map of an open volume: its tree, its epochs, its dirty metadata and a snapshot in progress. They stand in one type
//! because a change updates them together.
//!
//! Invariants
//! - The volume owns only objects of epochs after `frozen`. Objects of epochs up to `sealed` never change.
//! - `sealed <= frozen < epoch`. Late writes may still arrive for epochs after `sealed` up to `frozen`: their snapshot is not
//!   committed.
//! - No snapshot that is there or in progress is of an epoch after `frozen`.
//! - A change that is in the tree but not in the log is in the dirty metadata, in the order of the changes.

use archipelago_protocol::status::MapRuns;
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage, ObjectSize};

use super::dirty::{DirtyMetadata, Full};
use super::snapshot::{FrozenMap, SnapshotInProgress};
use crate::head::VolumeHead;
use crate::journal::Journal;
use crate::log::{Record, RecordKind};
use crate::tree::{Cache, Layer, Missing, Range, Tree, WritePlace};

/// Blocks of a record at most: 2^32 blocks are 16 TiB; a larger range takes several records.
const RECORD_BLOCKS_MAX: u64 = u32::MAX as u64;

/// Why a change was not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ApplyError {
    /// A page has to be loaded first.
    Missing(Missing),
    /// The dirty metadata or the presence journal is full: a commit has to log some of it first.
    Full,
}

impl From<Missing> for ApplyError {
    fn from(missing: Missing) -> Self {
        ApplyError::Missing(missing)
    }
}

impl From<Full> for ApplyError {
    fn from(_full: Full) -> Self {
        ApplyError::Full
    }
}

/// The map of an open volume.
#[derive(Debug)]
pub(crate) struct LiveMap {
    /// The volume's own lineage, of all that it writes.
    own: Lineage,
    /// Bytes of the volume.
    size: u64,
    tree: Tree,
    /// The current epoch: new objects belong to it.
    epoch: Epoch,
    /// The volume does not own objects of this epoch and older ones.
    frozen: Epoch,
    /// Objects of this epoch and older ones belong to a snapshot that exists or is being committed.
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

    /// Bytes of the volume.
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

    /// The current epoch, to which new objects belong.
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

    /// The blocks of `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] unless these are whole blocks inside the volume, and at least one.
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

    /// Whether a write to objects of `epoch` may be reported now: `epoch` exists, and no snapshot that exists or is being
    /// committed shares its objects.
    pub(crate) fn may_be_written(&self, epoch: Epoch) -> bool {
        epoch <= self.epoch && epoch > self.sealed
    }

    /// The run of blocks that contains `block`: its layer (`None`: zeros) and its end.
    pub(crate) fn lookup(
        &self,
        cache: &Cache,
        block: u64,
    ) -> Result<(Option<Layer>, u64), Missing> {
        self.tree.lookup(cache, block)
    }

    /// Which blocks of `range` hold data, as far as bounded work goes.
    pub(crate) fn status(&self, cache: &Cache, range: Range) -> Result<MapRuns, Missing> {
        self.tree.status(cache, range)
    }

    /// Where a write of `range` goes: in place if the volume owns the objects.
    pub(crate) fn write_place(&self, cache: &Cache, range: Range) -> Result<WritePlace, Missing> {
        let (own, frozen) = (self.own, self.frozen);
        self.tree.write_place(cache, range, |layer| {
            layer.lineage == own && layer.epoch > frozen
        })
    }

    /// Records that `range` was written to the objects of `epoch`, or zeroed if `epoch` is `None`. A write may be late: of an
    /// epoch before the current one. Then it goes into the snapshot in progress, and into the tree where nothing newer is.
    ///
    /// # Errors
    /// [`ApplyError::Missing`] changes nothing. [`ApplyError::Full`] if more than `dirty_max` records would be dirty afterwards,
    /// or the journal is full. A part of the change may be made then: the caller repeats the call, which completes it.
    pub(crate) fn apply(
        &mut self,
        cache: &Cache,
        range: Range,
        epoch: Option<Epoch>,
        dirty_max: usize,
    ) -> Result<(), ApplyError> {
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

    /// Changes the tree, after the change was added to the dirty metadata.
    fn change(
        &mut self,
        cache: &Cache,
        range: Range,
        layer: Option<Layer>,
        dirty_max: usize,
    ) -> Result<(), ApplyError> {
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

    /// Maps `range` to objects of `epoch`, or to zeros if `epoch` is `None`, without a record in the dirty metadata: the change
    /// becomes durable with the tree, by the next head.
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

    /// Applies a record of the log or the presence journal during a recovery.
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
            // These records are about journaled data and do not change the map.
            RecordKind::Journaled | RecordKind::WrittenBack => {}
        }
        Ok(())
    }

    /// Begins a session with `head`, whose pages contain every change so far.
    pub(crate) fn begin_session(&mut self, head: &VolumeHead, journal: Box<dyn Journal>) {
        (self.epoch, self.frozen, self.sealed) = (head.epoch, head.frozen, head.frozen);
        self.dirty.restart(journal);
        self.tree.release_stored();
    }

    /// Starts a new epoch, to which new objects belong from now on, and returns it.
    pub(crate) fn raise_epoch(&mut self) -> Epoch {
        self.epoch = Epoch(self.epoch.0 + 1);
        self.epoch
    }

    /// Releases the nodes whose pages are stored: the cache decides how long those stay in memory.
    pub(crate) fn release_stored(&mut self) {
        self.tree.release_stored();
    }

    pub(crate) fn has_snapshot(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Whether the snapshot of `token` is in progress.
    pub(crate) fn is_making(&self, token: u64) -> bool {
        let snapshot = self.snapshot.as_ref();
        snapshot.is_some_and(|snapshot| snapshot.token() == token)
    }

    /// Begins a snapshot of the map as it is: from now on the volume owns none of these objects. Returns the new epoch.
    pub(crate) fn begin_snapshot(&mut self, token: u64) -> Epoch {
        let old = self.epoch;
        let tree = self.tree.clone();
        self.snapshot = Some(SnapshotInProgress::new(token, tree, old, self.size));
        self.frozen = old;
        self.raise_epoch()
    }

    /// Drops the snapshot of `token`, if there is one; the new epoch stays.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if the snapshot is being committed.
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

    /// The volume owns its blocks of epochs after `newest` again, unless a snapshot is in progress. `newest` is the epoch of its
    /// newest snapshot, and no snapshot of a later epoch can come into being.
    pub(crate) fn lower_frozen(&mut self, newest: Epoch) {
        if self.snapshot.is_none() {
            self.frozen = self.frozen.min(newest);
            self.sealed = self.sealed.min(newest);
        }
    }

    /// Ends late writes to the snapshot of `token`, and returns its map, which is to be stored.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] without such a snapshot; [`ErrorCode::InUse`] if it is being committed already.
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

    /// Drops the snapshot of `token`, if there is one.
    pub(crate) fn end_snapshot(&mut self, token: u64) {
        self.snapshot.take_if(|snapshot| snapshot.token() == token);
    }

    /// Drops the snapshot in progress, if there is one, and returns its token.
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
            takeovers: 0,
            clean: false,
            object_size: ObjectSize::MIN,
            epoch: Epoch(epoch),
            frozen: Epoch(0),
            root: Root::default(),
            log_number: 1,
            log_len: 1 << 16,
            log_start: 0,
            compatible: 0,
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
    fn what_only_a_removed_snapshot_had_is_owned_again() {
        let (mut map, cache) = (map(8), Cache::new(1 << 20));
        let range = Range { start: 4, end: 5 };
        let place = |map: &LiveMap| map.write_place(&cache, range).unwrap();
        map.apply(&cache, range, Some(Epoch(8)), 9).unwrap();
        map.begin_snapshot(1);
        map.lower_frozen(Epoch(0));
        assert_eq!(map.frozen(), Epoch(8), "the snapshot is in progress");
        map.commit_snapshot(1).unwrap();
        map.end_snapshot(1);
        assert_eq!(place(&map), WritePlace::Unowned { end: 5 });
        map.lower_frozen(Epoch(8));
        assert!(!map.may_be_written(Epoch(8)));
        map.lower_frozen(Epoch(7));
        let epoch = Epoch(8);
        assert_eq!(place(&map), WritePlace::Owned { epoch, end: 5 });
        assert!(map.may_be_written(Epoch(8)) && !map.may_be_written(Epoch(7)));
        map.lower_frozen(Epoch(9));
        assert_eq!(map.frozen(), Epoch(7), "it does not rise");
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
