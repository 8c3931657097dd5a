//! The catalogue's content in memory: pure, applied change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use archipelago_protocol::catalogue::{Entry, Kind, PAGE_MAX, Page};
use archipelago_protocol::{Lineage, Name};

use super::record::{Change, Item};

/// All items of the pool.
#[derive(Debug, Default)]
pub(crate) struct Names {
    items: BTreeMap<Lineage, Item>,
    by_name: BTreeMap<Name, Lineage>,
    /// How many items name it as their parent.
    children: BTreeMap<Lineage, u64>,
    /// Gone, objects not yet deleted.
    doomed: BTreeSet<Lineage>,
    /// Names of prepared snapshots.
    reserved: BTreeSet<Name>,
    reserved_lineages: BTreeSet<Lineage>,
}

impl Names {
    pub(crate) fn apply(&mut self, change: Change) {
        match change {
            Change::Put(item) => {
                self.take(item.lineage);
                if let Some(name) = &item.name {
                    self.by_name.insert(name.clone(), item.lineage);
                }
                if let Some(parent) = item.parent {
                    *self.children.entry(parent).or_default() += 1;
                }
                self.items.insert(item.lineage, item);
            }
            Change::Doom(lineage) => {
                self.take(lineage);
                self.doomed.insert(lineage);
            }
            Change::Forget(lineage) => {
                self.doomed.remove(&lineage);
            }
        }
    }

    fn take(&mut self, lineage: Lineage) {
        let Some(old) = self.items.remove(&lineage) else {
            return;
        };
        if let Some(name) = old.name {
            self.by_name.remove(&name);
        }
        if let Some(parent) = old.parent
            && let Some(count) = self.children.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0 {
                self.children.remove(&parent);
            }
        }
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
        match self
            .children
            .keys()
            .find(|parent| !self.items.contains_key(parent))
        {
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

    pub(crate) fn is_doomed(&self, lineage: Lineage) -> bool {
        self.doomed.contains(&lineage)
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
            || self.doomed.contains(&lineage)
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
        self.children.contains_key(&lineage)
    }

    pub(crate) fn of_kind(&self, kind: Kind) -> Vec<Lineage> {
        self.items
            .values()
            .filter(|item| item.kind == kind)
            .map(|item| item.lineage)
            .collect()
    }

    /// Items without a name that nobody descends from.
    pub(crate) fn orphans(&self) -> Vec<Lineage> {
        let orphan = |item: &&Item| item.name.is_none() && !self.has_children(item.lineage);
        self.items
            .values()
            .filter(orphan)
            .map(|item| item.lineage)
            .collect()
    }

    /// Gone, but not their objects.
    pub(crate) fn doomed(&self) -> impl Iterator<Item = Lineage> + '_ {
        self.doomed.iter().copied()
    }

    pub(crate) fn len(&self) -> u64 {
        self.by_name.len() as u64
    }

    /// An item as people see it.
    pub(crate) fn entry(&self, item: &Item) -> Option<Entry> {
        let parent = item
            .parent
            .and_then(|parent| self.items.get(&parent))
            .and_then(|parent| parent.name.clone());
        Some(Entry {
            name: item.name.clone()?,
            kind: item.kind,
            lineage: item.lineage,
            size: item.size,
            object_size: item.object_size,
            parent,
            created: item.created,
        })
    }

    pub(crate) fn list(&self, prefix: &str, after: Option<&Name>, limit: usize) -> Page {
        let limit = limit.clamp(1, PAGE_MAX);
        // Names order as their text does, so a prefix is a range; `Name` cannot hold every prefix, so walk from `after`
        // or from the first name that is not below the prefix.
        let start = match after {
            Some(name) if name.as_str() >= prefix => Bound::Excluded(name.clone()),
            _ => match self.first_from(prefix) {
                Some(name) => Bound::Included(name),
                None => {
                    return Page {
                        entries: Vec::new(),
                        next: None,
                    };
                }
            },
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut next = None;
        for (name, lineage) in self.by_name.range((start, Bound::Unbounded)) {
            if !name.as_str().starts_with(prefix) {
                break;
            }
            let item = &self.items[lineage];
            if item.kind == Kind::Importing {
                continue;
            }
            if entries.len() == limit {
                next = entries.last().map(|entry| entry.name.clone());
                break;
            }
            entries.extend(self.entry(item));
        }
        Page { entries, next }
    }

    fn first_from(&self, prefix: &str) -> Option<Name> {
        // A prefix that is a legal name itself is found by the tree; the others (empty) begin at the front.
        match prefix.parse::<Name>() {
            Ok(name) => self
                .by_name
                .range(name..)
                .next()
                .map(|(name, _)| name.clone()),
            Err(_) if prefix.is_empty() => self.by_name.keys().next().cloned(),
            Err(_illegal) => None,
        }
    }

    /// Everything as changes, names in order, for a checkpoint.
    pub(crate) fn dump(&self) -> impl Iterator<Item = Change> + '_ {
        let named = self.by_name.values().map(|lineage| &self.items[lineage]);
        let hidden = self.items.values().filter(|item| item.name.is_none());
        let doomed = self.doomed.iter().map(|lineage| Change::Doom(*lineage));
        named
            .chain(hidden)
            .map(|item| Change::Put(item.clone()))
            .chain(doomed)
    }
}
