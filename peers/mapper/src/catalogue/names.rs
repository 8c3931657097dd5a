//! The catalogue's content in memory: pure, applied change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use archipelago_protocol::catalogue::{Entry, Kind, PAGE_MAX, Page};
use archipelago_protocol::{Epoch, LabelFilter, Labels, Lineage, Name};

use super::dump::Dump;
use super::incarnations::Incarnations;
use super::record::{Change, Item};

/// Most items that a listing looks at: it is one turn of the data thread, and a microsecond each would already be noticed by guests.
const LOOKED_AT_MAX: usize = 2 * PAGE_MAX;

/// All items of the pool.
#[derive(Debug, Default)]
pub(crate) struct Names {
    items: BTreeMap<Lineage, Item>,
    by_name: BTreeMap<Name, Lineage>,
    /// Items and their sources: (source, item).
    children: BTreeSet<(Lineage, Lineage)>,
    /// Items without a name that no other item has among its sources, but for imports.
    unneeded: BTreeSet<Lineage>,
    /// Items that are being imported.
    imports: BTreeSet<Lineage>,
    /// Volumes without a name.
    removed_volumes: BTreeSet<Lineage>,
    /// Bytes of all volumes with a name together: 16384 volumes of 1 PiB are more than a u64 holds.
    provisioned: u128,
    /// Without an entry, their objects not yet deleted; which incarnation deletes them.
    pending_delete: BTreeMap<Lineage, u128>,
    /// Who serves the pool.
    incarnations: Incarnations,
    /// Names of prepared snapshots.
    reserved: BTreeSet<Name>,
    reserved_lineages: BTreeSet<Lineage>,
    /// The checkpoint under way.
    dump: Option<Dump>,
}

impl Names {
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(item) => {
                self.take(item.lineage);
                if let Some(name) = &item.name {
                    self.by_name.insert(name.clone(), item.lineage);
                }
                for source in &item.sources {
                    self.children.insert((*source, item.lineage));
                    self.unneeded.remove(source);
                }
                if item.kind == Kind::Importing {
                    self.imports.insert(item.lineage);
                } else if item.name.is_none() && !self.has_children(item.lineage) {
                    self.unneeded.insert(item.lineage);
                }
                if item.kind == Kind::Volume && item.name.is_none() {
                    self.removed_volumes.insert(item.lineage);
                }
                self.provisioned += provisioned(&item);
                self.items.insert(item.lineage, item);
            }
            Change::Delete { lineage, by } => {
                self.take(lineage);
                self.pending_delete.insert(lineage, by);
            }
            Change::Forget(lineage) => {
                self.keep_for_dump(lineage);
                self.pending_delete.remove(&lineage);
            }
            Change::Begin(incarnation) => self.incarnations.begin(incarnation),
            Change::End { incarnation, .. } => self.incarnations.end(incarnation),
        }
    }

    fn take(&mut self, lineage: Lineage) {
        self.keep_for_dump(lineage);
        let Some(old) = self.items.remove(&lineage) else {
            return;
        };
        self.unneeded.remove(&lineage);
        self.imports.remove(&lineage);
        self.removed_volumes.remove(&lineage);
        self.provisioned -= provisioned(&old);
        if let Some(name) = old.name {
            self.by_name.remove(&name);
        }
        for source in old.sources {
            self.children.remove(&(source, lineage));
            let is_hidden = |item: &Item| item.name.is_none();
            if !self.has_children(source) && self.items.get(&source).is_some_and(is_hidden) {
                self.unneeded.insert(source);
            }
        }
    }

    /// The lineage as it is, as a change; `None`: there is nothing of it.
    fn state_of(&self, lineage: Lineage) -> Option<Change> {
        if let Some(item) = self.items.get(&lineage) {
            return Some(Change::Put(item.clone()));
        }
        let by = *self.pending_delete.get(&lineage)?;
        Some(Change::Delete { lineage, by })
    }

    /// The lineage is about to change.
    fn keep_for_dump(&mut self, lineage: Lineage) {
        if let Some(mut dump) = self.dump.take() {
            dump.keep(lineage, || self.state_of(lineage));
            self.dump = Some(dump);
        }
    }

    /// Everything as it is now is to be taken from [`Names::dump_next`].
    pub(super) fn begin_dump(&mut self) {
        self.dump = Some(Dump::new(self.incarnations.live().cloned().collect()));
    }

    /// The rest of the dump is not wanted any more.
    pub(super) fn end_dump(&mut self) {
        self.dump = None;
    }

    /// The next part of what was there when the dump began, whatever has changed since; `None`: that was all.
    pub(super) fn dump_next(&mut self) -> Option<Change> {
        let mut dump = self.dump.take()?;
        let behind = |last: Option<Lineage>| {
            let from = last.map_or(Bound::Unbounded, Bound::Excluded);
            let item = self.items.range((from, Bound::Unbounded)).next();
            let deleted = self.pending_delete.range((from, Bound::Unbounded)).next();
            let lineages = [item.map(|(key, _)| *key), deleted.map(|(key, _)| *key)];
            lineages.into_iter().flatten().min()
        };
        let next = dump.next(behind, |lineage| self.state_of(lineage))?;
        self.dump = Some(dump);
        Some(next)
    }

    /// What must hold of any catalogue that was read.
    pub(crate) fn check(&self) -> Result<(), String> {
        for item in self.items.values() {
            if let Some(name) = &item.name
                && self.by_name.get(name) != Some(&item.lineage)
            {
                return Err(format!("the name {name} stands for two things"));
            }
        }
        let mut parents = self.children.iter().map(|(parent, _)| parent);
        match parents.find(|parent| !self.items.contains_key(parent)) {
            Some(parent) => Err(format!("lineage {parent} has descendants but no entry")),
            None => Ok(()),
        }
    }

    pub(crate) fn keep_reservations(&mut self, old: &Names) {
        self.reserved.clone_from(&old.reserved);
        self.reserved_lineages.clone_from(&old.reserved_lineages);
    }

    pub(crate) fn get(&self, lineage: Lineage) -> Option<&Item> {
        self.items.get(&lineage)
    }

    /// All items, those without a name included, in order of their lineages.
    pub(crate) fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    pub(crate) fn is_pending_delete(&self, lineage: Lineage) -> bool {
        self.pending_delete.contains_key(&lineage)
    }

    pub(crate) fn find(&self, name: &Name) -> Option<&Item> {
        self.by_name
            .get(name)
            .and_then(|lineage| self.items.get(lineage))
    }

    pub(crate) fn is_taken(&self, name: &Name) -> bool {
        self.by_name.contains_key(name) || self.reserved.contains(name)
    }

    /// Whether the id was used before, as far as is known.
    pub(crate) fn is_used(&self, lineage: Lineage) -> bool {
        lineage == Lineage::CATALOGUE
            || self.items.contains_key(&lineage)
            || self.pending_delete.contains_key(&lineage)
            || self.reserved_lineages.contains(&lineage)
    }

    pub(crate) fn reserve(&mut self, name: Name, lineage: Lineage) {
        self.reserved.insert(name);
        self.reserved_lineages.insert(lineage);
    }

    pub(crate) fn release(&mut self, name: &Name, lineage: Lineage) {
        self.reserved.remove(name);
        self.reserved_lineages.remove(&lineage);
    }

    pub(crate) fn has_children(&self, lineage: Lineage) -> bool {
        self.children(lineage).next().is_some()
    }

    /// Items that have `lineage` among their sources, those without a name included.
    pub(crate) fn children(&self, lineage: Lineage) -> impl Iterator<Item = &Item> {
        let of_lineage = (lineage, Lineage(0))..=(lineage, Lineage(u128::MAX));
        let children = self.children.range(of_lineage);
        children.filter_map(|(_, child)| self.items.get(child))
    }

    /// The epoch of the newest snapshot of `volume` among those that `counts` says; 0: there is none. `None`: something else descends from
    /// the volume, too.
    pub(crate) fn newest_snapshot(
        &self,
        volume: Lineage,
        counts: impl Fn(&Item) -> bool,
    ) -> Option<Epoch> {
        let mut newest = Epoch(0);
        for child in self.children(volume) {
            if child.kind != Kind::Snapshot || child.sources != [volume] {
                return None;
            }
            if counts(child) {
                newest = newest.max(child.epoch);
            }
        }
        Some(newest)
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> Vec<Lineage> {
        self.items
            .values()
            .filter(|item| item.kind == kind)
            .map(|item| item.lineage)
            .collect()
    }

    /// Items that nobody needs: those without a name that nobody descends from, and imports whose incarnation has ended.
    pub(crate) fn orphans(&self) -> impl Iterator<Item = &Item> + '_ {
        let candidates = self.unneeded.iter().chain(&self.imports);
        let orphans = candidates.filter(|lineage| self.is_orphan(**lineage));
        orphans.filter_map(|lineage| self.items.get(lineage))
    }

    /// Removed volumes that are still there because something descends from them.
    pub(crate) fn removed_volumes(&self) -> impl Iterator<Item = &Item> + '_ {
        let needed = |lineage: &&Lineage| self.has_children(**lineage);
        let removed = self.removed_volumes.iter().filter(needed);
        removed.filter_map(|lineage| self.items.get(lineage))
    }

    /// Imports that `has_ended` says the incarnation of.
    pub(crate) fn abandoned_imports(
        &self,
        has_ended: impl Fn(u128) -> bool,
    ) -> impl Iterator<Item = Lineage> {
        let items = self.imports.iter().map(|lineage| &self.items[lineage]);
        let abandoned = items.filter(move |item| {
            let importer = item.attributes.importer();
            !self.incarnations.is_live(importer) || has_ended(importer)
        });
        abandoned.map(|item| item.lineage)
    }

    /// Whether nobody needs the item.
    pub(crate) fn is_orphan(&self, lineage: Lineage) -> bool {
        let Some(item) = self.items.get(&lineage) else {
            return false;
        };
        let abandoned =
            item.kind == Kind::Importing && !self.incarnations.is_live(item.attributes.importer());
        (item.name.is_none() || abandoned) && !self.has_children(lineage)
    }

    /// Lineages without an entry whose objects `incarnation` has to delete: its own, and those of incarnations that have ended.
    pub(crate) fn pending_delete_of(
        &self,
        incarnation: u128,
    ) -> impl Iterator<Item = Lineage> + '_ {
        let due = move |by: u128| by == incarnation || !self.incarnations.is_live(by);
        self.pending_delete
            .iter()
            .filter(move |(_, by)| due(**by))
            .map(|(lineage, _)| *lineage)
    }

    /// Who serves the pool.
    pub(crate) fn incarnations(&self) -> &Incarnations {
        &self.incarnations
    }

    /// Bytes that guests see of all volumes together.
    pub(crate) fn provisioned(&self) -> u64 {
        u64::try_from(self.provisioned).unwrap_or(u64::MAX)
    }

    pub(crate) fn len(&self) -> u64 {
        self.by_name.len() as u64
    }

    /// An item as people see it.
    pub(crate) fn entry(&self, item: &Item) -> Option<Entry> {
        let parent = item
            .sources
            .first()
            .and_then(|source| self.items.get(source))
            .and_then(|parent| parent.name.clone());
        Some(Entry {
            name: item.name.clone()?,
            kind: item.kind,
            lineage: item.lineage,
            size: item.size,
            object_size: item.object_size,
            parent,
            created: item.created,
            on_full: item.attributes.on_full(),
            labels: item.attributes.labels().cloned().unwrap_or_default(),
        })
    }

    /// What begins with `prefix` and has such a `label`, in order of the names. If few of many have it, a page ends before it is
    /// full.
    pub(crate) fn list(
        &self,
        prefix: &str,
        after: Option<&Name>,
        limit: usize,
        label: Option<&LabelFilter>,
    ) -> Page {
        let none = Labels::default();
        let matches = |item: &Item| {
            let labels = item.attributes.labels().unwrap_or(&none);
            label.is_none_or(|label| label.matches(labels))
        };
        let limit = limit.clamp(1, PAGE_MAX);
        // Names order as their text does, so a prefix is a range.
        let start = match (after, prefix.parse::<Name>()) {
            (Some(name), _) if name.as_str() >= prefix => Bound::Excluded(name.clone()),
            (_, Ok(first)) => Bound::Included(first),
            // None at all, or no name begins so, as the first one shows.
            (_, Err(_illegal)) => Bound::Unbounded,
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut last: Option<&Name> = None;
        let from_start = self.by_name.range((start, Bound::Unbounded));
        for (looked_at, (name, lineage)) in from_start.enumerate() {
            if !name.as_str().starts_with(prefix) {
                break;
            }
            let item = &self.items[lineage];
            let listed = item.kind != Kind::Importing && matches(item);
            if looked_at == LOOKED_AT_MAX || (listed && entries.len() == limit) {
                let next = last.cloned();
                return Page { entries, next };
            }
            if listed {
                entries.extend(self.entry(item));
            }
            last = Some(name);
        }
        let next = None;
        Page { entries, next }
    }

    /// Everything as changes, names in order.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn dump(&self) -> impl Iterator<Item = Change> + '_ {
        let named = self.by_name.values().map(|lineage| &self.items[lineage]);
        let hidden = self.items.values().filter(|item| item.name.is_none());
        let deleted = self
            .pending_delete
            .iter()
            .map(|(lineage, by)| Change::Delete {
                lineage: *lineage,
                by: *by,
            });
        let live = self.incarnations.live().cloned();
        named
            .chain(hidden)
            .map(|item| Change::Put(item.clone()))
            .chain(deleted)
            .chain(live.map(Change::Begin))
    }
}

/// What `item` adds to the provisioned bytes.
fn provisioned(item: &Item) -> u128 {
    match (item.kind, &item.name) {
        (Kind::Volume, Some(_)) => u128::from(item.size),
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
