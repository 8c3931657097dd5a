//! The catalogue's content in memory: pure, applied change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use archipelago_protocol::catalogue::{Entry, Kind, PAGE_MAX, Page};
use archipelago_protocol::{LabelFilter, Labels, Lineage, Name};

use super::record::{Change, Item};

/// Most items that a listing looks at: it is one turn of the data thread, and a microsecond each would already be noticed by guests.
const LOOKED_AT_MAX: usize = 2 * PAGE_MAX;

/// All items of the pool.
#[derive(Debug, Default)]
pub(crate) struct Names {
    items: BTreeMap<Lineage, Item>,
    by_name: BTreeMap<Name, Lineage>,
    /// How many items have it among their sources.
    children: BTreeMap<Lineage, u64>,
    /// Without an entry, their objects not yet deleted.
    pending_delete: BTreeSet<Lineage>,
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
                for source in &item.sources {
                    *self.children.entry(*source).or_default() += 1;
                }
                self.items.insert(item.lineage, item);
            }
            Change::Delete(lineage) => {
                self.take(lineage);
                self.pending_delete.insert(lineage);
            }
            Change::Forget(lineage) => {
                self.pending_delete.remove(&lineage);
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
        for source in old.sources {
            if let Some(count) = self.children.get_mut(&source) {
                *count -= 1;
                if *count == 0 {
                    self.children.remove(&source);
                }
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

    pub(crate) fn is_pending_delete(&self, lineage: Lineage) -> bool {
        self.pending_delete.contains(&lineage)
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
            || self.pending_delete.contains(&lineage)
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

    /// Lineages without an entry whose objects are still there.
    pub(crate) fn pending_delete(&self) -> impl Iterator<Item = Lineage> + '_ {
        self.pending_delete.iter().copied()
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

    /// Everything as changes, names in order, for a checkpoint.
    pub(crate) fn dump(&self) -> impl Iterator<Item = Change> + '_ {
        let named = self.by_name.values().map(|lineage| &self.items[lineage]);
        let hidden = self.items.values().filter(|item| item.name.is_none());
        let deleted = self
            .pending_delete
            .iter()
            .map(|lineage| Change::Delete(*lineage));
        named
            .chain(hidden)
            .map(|item| Change::Put(item.clone()))
            .chain(deleted)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::{Epoch, ObjectSize, OnFull};

    use super::*;
    use crate::catalogue::Attributes;
    use crate::tree::Root;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    /// An item whose lineage is `id`; no name: hidden, parent 0: none.
    fn item(id: u128, text: &str, kind: Kind, parent: u128) -> Item {
        Item {
            name: (!text.is_empty()).then(|| name(text)),
            kind,
            lineage: Lineage(id),
            sources: (parent != 0)
                .then_some(Lineage(parent))
                .into_iter()
                .collect(),
            size: 512,
            object_size: ObjectSize::MIN,
            created: 7,
            epoch: Epoch(0),
            removed: 0,
            root: Root::default(),
            attributes: Attributes::default(),
        }
    }

    fn names_of(items: &[Item]) -> Names {
        let mut names = Names::default();
        for item in items {
            names.apply(Change::Put(item.clone()));
        }
        names
    }

    fn family() -> Names {
        names_of(&[
            item(1, "v", Kind::Volume, 0),
            item(2, "", Kind::Snapshot, 1),
            item(3, "c", Kind::Volume, 2),
            item(4, "d", Kind::Volume, 2),
            item(5, "", Kind::Snapshot, 1),
            item(6, "i", Kind::Importing, 0),
        ])
    }

    #[test]
    fn a_parent_has_children_until_the_last_is_gone() {
        let mut names = family();
        let children = |names: &Names| names.has_children(Lineage(2));
        assert!(children(&names) && !names.has_children(Lineage(3)));
        names.apply(Change::Delete(Lineage(3)));
        assert!(children(&names));
        // Put again, of another parent.
        names.apply(Change::Put(item(4, "d", Kind::Volume, 1)));
        assert!(!children(&names) && names.has_children(Lineage(1)));
    }

    #[test]
    fn every_source_has_the_item_as_a_child_and_is_kept_by_it() {
        let mut names = family();
        // The snapshot, which is needed again, is the second source first, and then the first one.
        for sources in [[1, 5], [5, 1]] {
            let spliced = Item {
                sources: sources.map(Lineage).to_vec(),
                ..item(7, "s", Kind::Image, 0)
            };
            names.apply(Change::Put(spliced));
            assert!(names.orphans().is_empty(), "{sources:?}");
            assert!(names.has_children(Lineage(5)) && names.has_children(Lineage(1)));
        }
        let entry = names.entry(names.get(Lineage(7)).unwrap()).unwrap();
        assert_eq!(entry.parent, None, "the first source has no name any more");
        let mut again = Names::default();
        names.dump().for_each(|change| again.apply(change));
        assert!(again.has_children(Lineage(5)) && again.check().is_ok());
        // A source without an entry, whichever of them it is.
        names.apply(Change::Delete(Lineage(5)));
        assert!(names.check().is_err());
        names.apply(Change::Delete(Lineage(7)));
        assert!(names.check().is_ok() && !names.has_children(Lineage(5)));
    }

    #[test]
    fn hidden_items_without_descendants_are_orphans() {
        let mut names = family();
        assert_eq!(names.orphans(), [Lineage(5)]);
        names.apply(Change::Delete(Lineage(3)));
        names.apply(Change::Delete(Lineage(4)));
        assert_eq!(names.orphans(), [Lineage(2), Lineage(5)]);
        assert_eq!(names.of_kind(Kind::Importing), [Lineage(6)]);
        assert_eq!(names.of_kind(Kind::Snapshot), [Lineage(2), Lineage(5)]);
    }

    #[test]
    fn a_lineage_is_used_once_and_a_name_by_one() {
        let mut names = family();
        names.apply(Change::Delete(Lineage(3)));
        names.reserve(name("r"), Lineage(9));
        for (lineage, used) in [(0, true), (1, true), (3, true), (9, true), (7, false)] {
            assert_eq!(names.is_used(Lineage(lineage)), used, "{lineage}");
        }
        for (text, taken) in [("v", true), ("r", true), ("c", false), ("x", false)] {
            assert_eq!(names.is_taken(&name(text)), taken, "{text}");
        }
        assert!(names.is_pending_delete(Lineage(3)) && !names.is_pending_delete(Lineage(1)));
        assert!(names.pending_delete().eq([Lineage(3)]));
        // What is reserved outlives a catalogue that is read again.
        let mut again = family();
        again.keep_reservations(&names);
        assert!(again.is_taken(&name("r")) && again.is_used(Lineage(9)));
        again.release(&name("r"), Lineage(9));
        assert!(!again.is_taken(&name("r")) && !again.is_used(Lineage(9)));
        names.apply(Change::Forget(Lineage(3)));
        assert!(!names.is_used(Lineage(3)));
    }

    #[test]
    fn a_catalogue_that_contradicts_itself_is_told() {
        assert_eq!(family().check(), Ok(()));
        let twice = names_of(&[item(1, "v", Kind::Volume, 0), item(2, "v", Kind::Volume, 0)]);
        assert!(twice.check().unwrap_err().contains("two things"));
        let orphan = names_of(&[item(2, "c", Kind::Volume, 1)]);
        assert!(orphan.check().unwrap_err().contains("no entry"));
    }

    #[test]
    fn an_entry_names_its_parent_as_long_as_that_has_a_name() {
        let names = family();
        let entry = |text: &str| names.entry(names.find(&name(text))?);
        assert_eq!(entry("c").unwrap().parent, None);
        let shown = names.entry(names.get(Lineage(5)).unwrap());
        assert_eq!(shown, None, "hidden itself");
        let named = names_of(&[item(1, "v", Kind::Volume, 0), item(2, "s", Kind::Image, 1)]);
        let shown = named.entry(named.get(Lineage(2)).unwrap()).unwrap();
        let expected = Entry {
            name: name("s"),
            kind: Kind::Image,
            lineage: Lineage(2),
            size: 512,
            object_size: ObjectSize::MIN,
            parent: Some(name("v")),
            created: 7,
            on_full: OnFull::default(),
            labels: Labels::default(),
        };
        assert_eq!((shown, named.len()), (expected, 2));
    }

    #[test]
    fn a_listing_goes_on_after_any_name() {
        let items: Vec<Item> = (1..)
            .zip(["a", "a2", "b1", "b2", "b3", "c"])
            .map(|(id, text)| item(id, text, Kind::Volume, 0))
            .chain([item(9, "b4", Kind::Importing, 0)])
            .collect();
        let names = names_of(&items);
        let list = |prefix: &str, after: &str, limit| {
            let after = (!after.is_empty()).then(|| name(after));
            let page = names.list(prefix, after.as_ref(), limit, None);
            let found: Vec<String> = page
                .entries
                .iter()
                .map(|entry| entry.name.to_string())
                .collect();
            (found.join(" "), page.next.map(|next| next.to_string()))
        };
        let more = |text: &str| Some(text.to_owned());
        assert_eq!(list("b", "", 9), ("b1 b2 b3".to_owned(), None));
        assert_eq!(list("b", "", 2), ("b1 b2".to_owned(), more("b2")));
        assert_eq!(list("b", "b2", 2), ("b3".to_owned(), None));
        assert_eq!(list("b", "", 3), ("b1 b2 b3".to_owned(), None));
        // After one in front of all with the prefix, or behind them.
        assert_eq!(list("b", "a", 9), ("b1 b2 b3".to_owned(), None));
        assert_eq!(list("b", "c", 9), (String::new(), None));
        assert_eq!(list("", "", 9), ("a a2 b1 b2 b3 c".to_owned(), None));
        assert_eq!(list("", "b2", 9), ("b3 c".to_owned(), None));
        assert_eq!(list("", "", 0), ("a".to_owned(), more("a")), "one at least");
        assert_eq!(list("/", "", 9), (String::new(), None));
        assert_eq!(list("x", "", 9), (String::new(), None));
        assert_eq!(names_of(&[]).list("", None, 9, None).entries, []);
    }

    #[test]
    fn a_page_of_what_has_a_label_ends_after_so_many_looks_and_goes_on_there() {
        let count = 2 * LOOKED_AT_MAX + 10;
        // Every 500th is the first disk, and one of them is another machine's.
        let items = (1..=count).map(|number| {
            let labels = match number % 500 {
                0 if number == 1000 => "disk=0,instance=db",
                0 => "disk=0,instance=web",
                1 => "disk=1",
                _ => "",
            };
            let labels = labels.split_terminator(',').map(|it| it.parse().unwrap());
            let labels = Labels::from_list(labels.collect()).unwrap();
            let text = format!("v{number:06}");
            Item {
                attributes: Attributes::new(OnFull::default(), labels),
                ..item(number as u128, &text, Kind::Volume, 0)
            }
        });
        let names = names_of(&items.collect::<Vec<_>>());
        let list_all = |label: &str, limit: usize| {
            let label: LabelFilter = label.parse().unwrap();
            let (mut found, mut pages, mut after) = (Vec::new(), 0, None);
            loop {
                let page = names.list("", after.as_ref(), limit, Some(&label));
                assert!(page.entries.len() <= limit);
                found.extend(page.entries.iter().map(|entry| entry.lineage.0));
                pages += 1;
                after = page.next;
                if after.is_none() {
                    return (found, pages);
                }
            }
        };
        let every_500th: Vec<u128> = (1..=8).map(|number| number * 500).collect();
        assert_eq!(list_all("disk=0", 9), (every_500th.clone(), 3));
        // Three a page; the last one is looked for behind the last that there is.
        assert_eq!(list_all("disk=0", 3), (every_500th.clone(), 3));
        assert_eq!(list_all("disk=0", 1), (every_500th, 8));
        assert_eq!(list_all("disk", 1000).0.len(), 17);
        assert_eq!(list_all("instance=db", 1), (vec![1000], 3));
        assert_eq!(list_all("instance=none", 1), (vec![], 3));
    }

    #[test]
    fn a_dump_is_named_ones_by_name_then_hidden_then_pending_deletes() {
        let mut names = family();
        names.apply(Change::Delete(Lineage(4)));
        let dumped: Vec<u128> = names
            .dump()
            .map(|change| match change {
                Change::Put(item) => item.lineage.0,
                Change::Delete(lineage) | Change::Forget(lineage) => 100 + lineage.0,
            })
            .collect();
        assert_eq!(dumped, [3, 6, 1, 2, 5, 104]);
        let mut again = Names::default();
        names.dump().for_each(|change| again.apply(change));
        assert!(again.dump().eq(names.dump()));
    }
}
