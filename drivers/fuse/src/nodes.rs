//! The files that the kernel knows: a number for each volume, snapshot and image that was looked up.
//!
//! A number is made from the lineage, which is never used again: a name that is removed and made again is another file, and a renamed
//! volume is the same one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use archipelago_protocol::catalogue::{Entry, Kind};
use archipelago_protocol::{Lineage, Name};

use crate::worker::FileSize;

/// Number of the directory.
pub(crate) const ROOT: u64 = fuser::FUSE_ROOT_ID;

/// The number of `lineage`. Of a million files in a node, two have the same number with a probability of 1 in 30 million.
pub(crate) fn number(lineage: Lineage) -> u64 {
    let [high, low] = lineage.to_words();
    match high ^ low {
        0 | ROOT => ROOT + 1,
        number => number,
    }
}

/// A file that the kernel knows.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    /// The entry from the node's last answer, except its size.
    entry: Arc<Entry>,
    /// The size in bytes, from the node's last answer.
    pub(crate) size: FileSize,
    lookups: u64,
}

impl Node {
    /// Its name, from the node's last answer.
    pub(crate) fn name(&self) -> &Name {
        &self.entry.name
    }

    pub(crate) fn lineage(&self) -> Lineage {
        self.entry.lineage
    }

    /// The entry from the node's last answer.
    pub(crate) fn entry(&self) -> Entry {
        Entry {
            // Relaxed: a number of its own, it orders nothing else.
            size: self.size.load(Ordering::Relaxed),
            ..Entry::clone(&self.entry)
        }
    }

    /// Whether its content never changes.
    pub(crate) fn is_frozen(&self) -> bool {
        self.entry.kind != Kind::Volume
    }
}

/// The files that the kernel knows.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    nodes: HashMap<u64, Node>,
    /// The number of the file that each name had at its last look-up. A file is not updated when its name goes to another one.
    names: HashMap<Name, u64>,
}

impl Nodes {
    /// Records one more look-up of `entry` by the kernel. `None`: another file has its number.
    pub(crate) fn look_up(&mut self, entry: &Entry) -> Option<u64> {
        let number = number(entry.lineage);
        let node = self.nodes.entry(number).or_insert_with(|| Node {
            entry: Arc::new(entry.clone()),
            size: Arc::new(AtomicU64::new(entry.size)),
            lookups: 0,
        });
        if node.lineage() != entry.lineage {
            return None;
        }
        if self.names.get(node.name()) == Some(&number) {
            self.names.remove(node.name());
        }
        self.names.insert(entry.name.clone(), number);
        node.entry = Arc::new(entry.clone());
        node.lookups += 1;
        // Relaxed: a number of its own, it orders nothing else.
        node.size.store(entry.size, Ordering::Relaxed);
        Some(number)
    }

    /// Updates a file that the kernel knows.
    pub(crate) fn update(&mut self, entry: &Entry) {
        if let Some(node) = self.nodes.get_mut(&number(entry.lineage))
            && node.lineage() == entry.lineage
        {
            // Relaxed: as above.
            node.size.store(entry.size, Ordering::Relaxed);
        }
    }

    /// The last known entry of the file `name`, if the kernel knows it.
    pub(crate) fn named(&self, name: &Name) -> Option<Entry> {
        self.get(*self.names.get(name)?).map(Node::entry)
    }

    /// A file that the kernel knows.
    pub(crate) fn get(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    /// Removes `lookups` look-ups, which the kernel has forgotten.
    pub(crate) fn forget(&mut self, number: u64, lookups: u64) {
        let Some(node) = self.nodes.get_mut(&number) else {
            return;
        };
        node.lookups = node.lookups.saturating_sub(lookups);
        if node.lookups > 0 {
            return;
        }
        if self.names.get(node.name()) == Some(&number) {
            self.names.remove(node.name());
        }
        self.nodes.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::{Labels, ObjectSize, OnFull};

    use super::*;

    fn entry(name: &str, lineage: u128) -> Entry {
        Entry {
            name: name.parse().unwrap(),
            lineage: Lineage(lineage),
            kind: Kind::Volume,
            size: 512,
            object_size: ObjectSize::DEFAULT,
            created: 0,
            parent: None,
            on_full: OnFull::Report,
            labels: Labels::default(),
        }
    }

    #[test]
    fn a_file_keeps_its_number_when_it_is_renamed_and_is_known_until_it_is_forgotten() {
        let mut nodes = Nodes::default();
        let number = nodes.look_up(&entry("a", 77)).unwrap();
        assert_eq!(nodes.look_up(&entry("b", 77)), Some(number));
        assert_eq!(nodes.get(number).unwrap().name().as_str(), "b");
        let named = |name: &str| {
            nodes
                .named(&name.parse().unwrap())
                .map(|entry| entry.lineage)
        };
        assert_eq!((named("a"), named("b")), (None, Some(Lineage(77))));
        nodes.forget(number, 1);
        assert!(nodes.get(number).is_some());
        let other = nodes.look_up(&entry("b", 78)).unwrap();
        assert_ne!(other, number);
        nodes.forget(number, 1);
        assert!(nodes.get(number).is_none() && nodes.get(other).is_some());
    }

    #[test]
    fn a_name_is_that_of_the_file_that_was_found_under_it_last() {
        let mut nodes = Nodes::default();
        let old = nodes.look_up(&entry("v", 77)).unwrap();
        // Renamed to `v.old`, of which nobody hears; then there is a new `v`.
        let new = nodes.look_up(&entry("v", 78)).unwrap();
        let named = |nodes: &Nodes, name: &str| {
            let entry = nodes.named(&name.parse().unwrap())?;
            Some(entry.lineage)
        };
        assert_eq!(named(&nodes, "v"), Some(Lineage(78)));
        nodes.update(&entry("v.old", 77));
        assert_eq!(nodes.look_up(&entry("v.old", 77)), Some(old));
        assert_eq!(named(&nodes, "v"), Some(Lineage(78)));
        assert_eq!(named(&nodes, "v.old"), Some(Lineage(77)));
        nodes.forget(old, 2);
        assert_eq!(named(&nodes, "v"), Some(Lineage(78)));
        assert_eq!(named(&nodes, "v.old"), None);
        nodes.look_up(&entry("v", 79));
        nodes.forget(new, 1);
        assert_eq!(named(&nodes, "v"), Some(Lineage(79)));
    }

    #[test]
    fn a_number_is_no_other_files_and_not_the_directorys() {
        assert!(number(Lineage(1)) > ROOT && number(Lineage(0)) > ROOT);
        let mut nodes = Nodes::default();
        assert!(nodes.look_up(&entry("a", 7)).is_some());
        // The words of this one, XORed, are the same number.
        let same = entry("b", 1 << 64 | 6);
        assert_eq!(number(same.lineage), 7);
        assert_eq!(nodes.look_up(&same), None);
    }
}
