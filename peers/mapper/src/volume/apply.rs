//! First writes and zeroes: into the tree, the journal and the list of what is to be logged.

use archipelago_protocol::Epoch;

use super::{Live, Volume};
use crate::core::Core;
use crate::journal::JournalRecord;
use crate::log::{Record, RecordKind};
use crate::tree::{Cache, Layer, Missing, Range};

/// Why a change was not made.
pub(super) enum NotYet {
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

/// Blocks of a record: 2^32 blocks are 16 TiB, larger ranges take several records.
const RECORD_BLOCKS_MAX: u64 = u32::MAX as u64;

impl Volume {
    /// `range` was written to (own lineage, `epoch`), or reads as zeros if there is none.
    ///
    /// May be repeated: a change that was made in part (the journal was full in between) is made whole the next time.
    pub(super) fn apply(
        &self,
        core: &Core,
        range: Range,
        epoch: Option<Epoch>,
    ) -> Result<(), NotYet> {
        // What is pending always has room in the log: a close may find none elsewhere.
        let room = self.records_room(core);
        let pending_max = room.min(core.config.pending_max);
        let cache = core.cache.borrow();
        let mut live = self.live.borrow_mut();
        let live = &mut *live;
        let layer = epoch.map(|epoch| Layer {
            lineage: self.lineage,
            epoch,
        });
        let needed = live.tree.missing(&cache, range, layer).or_else(|| {
            let snapshot = live.snapshot.as_ref()?;
            snapshot.tree.missing(&cache, range, Some(layer?))
        });
        if let Some(missing) = needed {
            return Err(missing.into());
        }
        let Some(layer) = layer else {
            live.log_later(core, &cache, range, None, pending_max)?;
            if let Some(snapshot) = &mut live.snapshot {
                snapshot.zeroed.push(range);
            }
            return Ok(());
        };
        if let Some(snapshot) = &mut live.snapshot
            && layer.epoch <= snapshot.epoch
        {
            for part in snapshot.tree.not_newer(&cache, range, layer) {
                snapshot.tree.set(&cache, part, Some(layer));
            }
        }
        let mut parts = vec![range];
        if layer.epoch < live.epoch {
            parts = live.tree.not_newer(&cache, range, layer);
            if let Some(snapshot) = &live.snapshot {
                snapshot
                    .zeroed
                    .iter()
                    .for_each(|zeroed| subtract(&mut parts, *zeroed));
            }
        }
        for part in parts {
            live.log_later(core, &cache, part, Some(layer), pending_max)?;
        }
        Ok(())
    }
}

impl Live {
    fn log_later(
        &mut self,
        core: &Core,
        cache: &Cache,
        range: Range,
        layer: Option<Layer>,
        pending_max: usize,
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
                sequence: self.next_sequence,
            };
            if self.pending.len() >= pending_max {
                return Err(NotYet::Full);
            }
            if let Some(journal) = &mut self.journal {
                journal
                    .append(journalled(&record))
                    .map_err(|_full| NotYet::Full)?;
            }
            self.next_sequence += 1;
            self.pending.push_back(record);
            self.tree.set(cache, part, layer);
            core.count(|counters| counters.presence_records += 1);
            at = part.end;
        }
        Ok(())
    }

    /// A record as it was logged or journalled before. Nothing may be missing.
    pub(super) fn replay(
        &mut self,
        cache: &Cache,
        own: archipelago_protocol::Lineage,
        record: &Record,
    ) {
        let range = Range {
            start: record.start,
            end: record.end(),
        };
        match record.kind {
            RecordKind::Present => {
                let layer = Layer {
                    lineage: own,
                    epoch: record.epoch,
                };
                for part in self.tree.not_newer(cache, range, layer) {
                    self.tree.set(cache, part, Some(layer));
                }
            }
            RecordKind::Zero => self.tree.set(cache, range, None),
            RecordKind::Freeze => self.frozen = self.frozen.max(record.epoch),
            // Of content, not of places.
            RecordKind::Carried | RecordKind::Home => {}
        }
    }
}

fn journalled(record: &Record) -> JournalRecord {
    JournalRecord {
        sequence: record.sequence,
        start: record.start,
        blocks: record.blocks,
        epoch: record.epoch,
        zero: record.kind == RecordKind::Zero,
    }
}

/// Takes `gone` out of `parts`.
fn subtract(parts: &mut Vec<Range>, gone: Range) {
    let left = parts.iter().flat_map(|part| {
        let before = Range {
            start: part.start,
            end: part.end.min(gone.start),
        };
        let after = Range {
            start: part.start.max(gone.end),
            end: part.end,
        };
        [before, after]
    });
    *parts = left.filter(|part| !part.is_empty()).collect();
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::catalogue::Kind;
    use archipelago_protocol::{Generation, Lineage, ObjectSize};

    use super::*;
    use crate::catalogue::{Attributes, Item};
    use crate::head::VolumeHead;
    use crate::tree::Root;
    use crate::volume::open::live_of;

    #[test]
    fn a_replay_leaves_what_is_in_a_newer_epoch() {
        let item = Item {
            name: None,
            kind: Kind::Volume,
            lineage: Lineage(5),
            parent: None,
            size: 1 << 20,
            object_size: ObjectSize::MIN,
            created: 0,
            root: Root::default(),
            attributes: Attributes::default(),
        };
        let head = VolumeHead {
            generation: Generation(1),
            owner: 1,
            clean: false,
            object_size: item.object_size,
            epoch: Epoch(8),
            frozen: Epoch(0),
            root: item.root,
            log_number: 1,
            log_len: 1 << 16,
            log_start: 0,
        };
        let mut live = live_of(&item, &head, 2);
        let cache = Cache::new(1 << 20);
        for (epoch, start, blocks) in [(7, 3, 2), (6, 2, 4)] {
            let record = Record {
                kind: RecordKind::Present,
                blocks,
                start,
                epoch: Epoch(epoch),
                sequence: 1,
            };
            live.replay(&cache, item.lineage, &record);
        }
        let epoch_of = |block| {
            let (layer, _) = live.tree.lookup(&cache, block).unwrap();
            layer.map(|layer| layer.epoch.0)
        };
        assert_eq!(
            [1, 2, 3, 4, 5, 6].map(epoch_of),
            [None, Some(6), Some(7), Some(7), Some(6), None]
        );
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest() {
        let range = |start, end| Range { start, end };
        for (gone, left) in [
            (range(0, 5), vec![range(10, 20)]),
            (range(0, 15), vec![range(15, 20)]),
            (range(12, 14), vec![range(10, 12), range(14, 20)]),
            (range(15, 30), vec![range(10, 15)]),
            (range(10, 20), vec![]),
            (range(20, 30), vec![range(10, 20)]),
        ] {
            let mut parts = vec![range(10, 20)];
            subtract(&mut parts, gone);
            assert_eq!(parts, left, "{gone:?}");
        }
    }
}
