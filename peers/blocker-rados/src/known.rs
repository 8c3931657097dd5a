//! Cache of index entries, so that they are not written again, and of the lengths of logs.
//!
//! Invariants
//! - A cached entry is in the index. It is removed from the cache before it is deleted.
//! - Nothing that is being removed is in the cache, or enters it.

use std::collections::{BTreeMap, BTreeSet};

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectKind};

/// Data objects that share a key of the index: 64 MiB of a volume whose objects have 4 MiB.
pub(crate) const GROUP_LEN: u64 = 16;
/// Groups in the cache: 4 TiB of volumes whose objects have 4 MiB, in about 4 MiB of memory. When there are more, the cache is cleared,
/// which costs a write to an index for each group that is written to again.
const GROUPS_MAX: usize = 65_536;
/// Lineages, and logs, in the cache.
const LINEAGES_MAX: usize = 65_536;

/// A removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Removal {
    Object(ObjectId),
    Lineage(Lineage),
}

impl Removal {
    fn covers(self, id: ObjectId) -> bool {
        match self {
            Removal::Object(removed) => removed == id,
            Removal::Lineage(lineage) => lineage == id.lineage,
        }
    }
}

/// The cache of indexes and logs.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Removals under way.
    removals: Vec<Removal>,
    lineages: BTreeSet<Lineage>,
    /// By object and group: which objects of the group were written to.
    groups: BTreeMap<(ObjectId, u64), u16>,
    log_lens: BTreeMap<ObjectId, u64>,
}

impl Known {
    /// Whether the lineage is known to be in the index of lineages.
    pub(crate) fn has_lineage(&self, lineage: Lineage) -> bool {
        self.lineages.contains(&lineage)
    }

    /// Whether the group of an object is known to be in the index of its lineage.
    pub(crate) fn has_group(&self, id: ObjectId, group: u64) -> bool {
        self.groups.contains_key(&(id, group))
    }

    /// Records that both are in their indexes.
    pub(crate) fn add(&mut self, id: ObjectId, group: u64) {
        if self.lineages.len() >= LINEAGES_MAX {
            self.lineages.clear();
        }
        self.lineages.insert(id.lineage);
        if self.groups.len() >= GROUPS_MAX {
            self.groups.clear();
        }
        self.groups.entry((id, group)).or_insert(0);
    }

    /// Records that an object of a group is written to. Returns whether that is the first time; `None`: the group is not known.
    pub(crate) fn touch(&mut self, id: ObjectId, number: u64) -> Option<bool> {
        let bit = 1 << (number % GROUP_LEN);
        let touched = self.groups.get_mut(&(id, number / GROUP_LEN))?;
        let first = *touched & bit == 0;
        *touched |= bit;
        Some(first)
    }

    /// The length of a log that takes appends, if it is known.
    pub(crate) fn log_len(&self, id: ObjectId) -> Option<u64> {
        self.log_lens.get(&id).copied()
    }

    /// Records the length of a log.
    pub(crate) fn set_log_len(&mut self, id: ObjectId, len: u64) {
        if self.log_lens.len() >= LINEAGES_MAX {
            self.log_lens.clear();
        }
        self.log_lens.insert(id, len);
    }

    /// Removes the length of a log, which may change.
    pub(crate) fn forget_log(&mut self, id: ObjectId) {
        self.log_lens.remove(&id);
    }

    /// Begins a removal: its objects are removed from the cache, and enter no index until it has ended.
    pub(crate) fn begin_removal(&mut self, removal: Removal) {
        self.removals.push(removal);
        self.forget_removed(removal);
    }

    /// Ends a removal.
    pub(crate) fn end_removal(&mut self, removal: Removal) {
        if let Some(at) = self.removals.iter().position(|other| *other == removal) {
            self.removals.swap_remove(at);
        }
        // The length of a log may have been recorded meanwhile.
        self.forget_removed(removal);
    }

    /// Whether a removal under way covers the object.
    pub(crate) fn is_being_removed(&self, id: ObjectId) -> bool {
        self.removals.iter().any(|removal| removal.covers(id))
    }

    fn forget_removed(&mut self, removal: Removal) {
        match removal {
            Removal::Object(id) => self.forget(id),
            Removal::Lineage(lineage) => self.forget_lineage(lineage),
        }
    }

    fn forget(&mut self, id: ObjectId) {
        self.log_lens.remove(&id);
        self.remove_groups((id, 0), (id, u64::MAX));
    }

    fn forget_lineage(&mut self, lineage: Lineage) {
        self.lineages.remove(&lineage);
        let of = |kind, number| ObjectId {
            lineage,
            kind,
            number,
        };
        let (first, last) = (of(ObjectKind::Data, 0), of(ObjectKind::Content, u64::MAX));
        self.remove_groups((first, 0), (last, u64::MAX));
        let logs: Vec<ObjectId> = self
            .log_lens
            .range(first..=last)
            .map(|(id, _)| *id)
            .collect();
        for id in logs {
            self.log_lens.remove(&id);
        }
    }

    fn remove_groups(&mut self, first: (ObjectId, u64), last: (ObjectId, u64)) {
        let keys: Vec<_> = self
            .groups
            .range(first..=last)
            .map(|(key, _)| *key)
            .collect();
        for key in keys {
            self.groups.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Epoch;

    use super::*;

    #[test]
    fn a_group_is_known_until_its_object_or_lineage_is_forgotten() {
        let id = |lineage, epoch| ObjectId::data(Lineage(lineage), Epoch(epoch));
        let mut known = Known::default();
        assert_eq!(known.touch(id(1, 1), 17), None);
        for id in [id(1, 1), id(1, 2), id(2, 1)] {
            known.add(id, 1);
        }
        assert_eq!(known.touch(id(1, 1), 17), Some(true));
        assert_eq!(known.touch(id(1, 1), 17), Some(false));
        assert_eq!(known.touch(id(1, 1), 16), Some(true));
        assert_eq!(known.touch(id(1, 1), 15), None, "another group");
        known.begin_removal(Removal::Object(id(1, 1)));
        assert!(known.is_being_removed(id(1, 1)) && !known.is_being_removed(id(1, 2)));
        known.end_removal(Removal::Object(id(1, 1)));
        assert!(!known.is_being_removed(id(1, 1)));
        assert!(!known.has_group(id(1, 1), 1) && known.has_group(id(1, 2), 1));
        assert!(known.has_lineage(Lineage(1)));
        let log = ObjectId::log(Lineage(1), 1);
        known.set_log_len(log, 4096);
        assert_eq!(known.log_len(log), Some(4096));
        let removal = Removal::Lineage(Lineage(1));
        // Of two, the one that ends first leaves the other.
        known.begin_removal(removal);
        known.begin_removal(removal);
        known.end_removal(removal);
        assert!(known.is_being_removed(log) && !known.is_being_removed(id(2, 1)));
        known.end_removal(removal);
        assert!(!known.is_being_removed(log));
        assert!(!known.has_group(id(1, 2), 1) && !known.has_lineage(Lineage(1)));
        assert_eq!(known.log_len(log), None);
        assert!(known.has_group(id(2, 1), 1));
    }
}
