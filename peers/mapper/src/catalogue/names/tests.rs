//! What names, families and listings come to after changes.

use archipelago_protocol::{Epoch, ObjectSize, OnFull};

use super::*;
use crate::catalogue::Attributes;
use crate::catalogue::incarnations::{End, Incarnation};
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

fn deleted(id: u128) -> Change {
    Change::Delete {
        lineage: Lineage(id),
        by: 70,
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
        Item {
            attributes: Attributes::default().with_importer(70),
            ..item(6, "i", Kind::Importing, 0)
        },
    ])
}

#[test]
fn a_parent_has_children_until_the_last_is_gone() {
    let mut names = family();
    let children = |names: &Names| names.has_children(Lineage(2));
    assert!(children(&names) && !names.has_children(Lineage(3)));
    names.apply(deleted(3));
    assert!(children(&names));
    // Put again, of another parent.
    names.apply(Change::Put(item(4, "d", Kind::Volume, 1)));
    assert!(!children(&names) && names.has_children(Lineage(1)));
}

#[test]
fn what_is_provisioned_are_the_volumes_that_have_a_name() {
    let mut names = family();
    assert_eq!(names.provisioned(), 3 * 512);
    let grown = Item {
        size: 4096,
        ..item(4, "d", Kind::Volume, 2)
    };
    names.apply(Change::Put(grown));
    assert_eq!(names.provisioned(), 2 * 512 + 4096);
    // Removed: with descendants, and without.
    names.apply(Change::Put(item(1, "", Kind::Volume, 0)));
    names.apply(deleted(4));
    assert_eq!(names.provisioned(), 512);
    let largest = Item {
        size: 1 << 50,
        ..item(0, "", Kind::Volume, 0)
    };
    for number in 100..100 + (1 << 14) {
        let name = Some(name(&format!("n{number}")));
        names.apply(Change::Put(Item {
            name,
            lineage: Lineage(number),
            ..largest.clone()
        }));
    }
    assert_eq!(names.provisioned(), u64::MAX);
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
        assert!(!names.is_orphan(Lineage(5)), "{sources:?}");
        assert!(names.has_children(Lineage(5)) && names.has_children(Lineage(1)));
    }
    let entry = names.entry(names.get(Lineage(7)).unwrap()).unwrap();
    assert_eq!(entry.parent, None, "the first source has no name any more");
    let mut again = Names::default();
    names.dump().for_each(|change| again.apply(change));
    assert!(again.has_children(Lineage(5)) && again.check().is_ok());
    // A source without an entry, whichever of them it is.
    names.apply(deleted(5));
    assert!(names.check().is_err());
    names.apply(deleted(7));
    assert!(names.check().is_ok() && !names.has_children(Lineage(5)));
}

#[test]
fn hidden_items_without_descendants_are_orphans() {
    let mut names = family();
    let begin = |id| {
        Change::Begin(Incarnation {
            id,
            node: "n".to_owned(),
            addresses: String::new(),
        })
    };
    names.apply(begin(70));
    let orphans =
        |names: &Names| -> Vec<u128> { names.orphans().map(|item| item.lineage.0).collect() };
    assert_eq!(orphans(&names), [5]);
    names.apply(deleted(3));
    names.apply(deleted(4));
    assert_eq!(orphans(&names), [2, 5]);
    // Whoever marked them deletes them, or anybody when that incarnation has ended; and so with an import.
    names.apply(begin(71));
    let pending = |names: &Names, by| names.pending_delete_of(by).count();
    assert_eq!((pending(&names, 70), pending(&names, 71)), (2, 0));
    names.apply(Change::End {
        incarnation: 70,
        how: End::Fenced,
    });
    assert_eq!(pending(&names, 71), 2);
    assert_eq!(orphans(&names), [2, 5, 6]);
    assert_eq!(names.of_kind(Kind::Importing), [Lineage(6)]);
    assert_eq!(names.of_kind(Kind::Snapshot), [Lineage(2), Lineage(5)]);
}

#[test]
fn a_lineage_is_used_once_and_a_name_by_one() {
    let mut names = family();
    names.apply(deleted(3));
    names.reserve(name("r"), Lineage(9));
    for (lineage, used) in [(0, true), (1, true), (3, true), (9, true), (7, false)] {
        assert_eq!(names.is_used(Lineage(lineage)), used, "{lineage}");
    }
    for (text, taken) in [("v", true), ("r", true), ("c", false), ("x", false)] {
        assert_eq!(names.is_taken(&name(text)), taken, "{text}");
    }
    assert!(names.is_pending_delete(Lineage(3)) && !names.is_pending_delete(Lineage(1)));
    assert!(names.pending_delete_of(70).eq([Lineage(3)]));
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
    names.apply(deleted(4));
    let dumped: Vec<u128> = names
        .dump()
        .map(|change| match change {
            Change::Put(item) => item.lineage.0,
            Change::Delete { lineage, .. } => 100 + lineage.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(dumped, [3, 6, 1, 2, 5, 104]);
    let mut again = Names::default();
    names.dump().for_each(|change| again.apply(change));
    assert!(again.dump().eq(names.dump()));
}

#[test]
fn a_dump_is_what_was_there_when_it_began() {
    let begun = || {
        let mut names = family();
        names.apply(deleted(3));
        names.apply(Change::Begin(Incarnation {
            id: 70,
            node: "n".to_owned(),
            addresses: String::new(),
        }));
        names
    };
    // Four items, two of which have no name, an import, a deletion, an incarnation; changed after so many parts of them.
    for taken in 0..=7 {
        let mut names = begun();
        names.begin_dump();
        let mut found: Vec<Change> = Vec::new();
        found.extend((0..taken).map_while(|_| names.dump_next()));
        assert_eq!(found.len(), taken);
        for change in [
            Change::Put(item(1, "w", Kind::Volume, 0)),
            Change::Put(item(1, "x", Kind::Volume, 0)),
            deleted(2),
            Change::Forget(Lineage(3)),
            Change::Put(item(3, "late", Kind::Volume, 0)),
            deleted(4),
            Change::Forget(Lineage(4)),
            Change::Put(item(7, "new", Kind::Volume, 0)),
            Change::End {
                incarnation: 70,
                how: End::Fenced,
            },
        ] {
            names.apply(change);
        }
        found.extend(std::iter::from_fn(|| names.dump_next()));
        assert_eq!(found.len(), 7, "each once: {taken}");
        let mut again = Names::default();
        found.into_iter().for_each(|change| again.apply(change));
        assert!(again.dump().eq(begun().dump()), "{taken}");
        // The next one has what is there now.
        names.begin_dump();
        let mut later = Names::default();
        while let Some(change) = names.dump_next() {
            later.apply(change);
        }
        assert!(later.dump().eq(names.dump()), "{taken}");
    }
}

#[test]
fn what_may_be_unneeded_is_known_without_looking_at_everything() {
    let mut names = family();
    // Hidden first and without a child later, and the other way round.
    names.apply(deleted(3));
    names.apply(Change::Put(item(4, "d", Kind::Volume, 5)));
    let unneeded = |names: &Names| names.unneeded.iter().map(|it| it.0).collect::<Vec<_>>();
    assert_eq!(unneeded(&names), [2]);
    names.apply(Change::Put(item(4, "d", Kind::Volume, 0)));
    assert_eq!(unneeded(&names), [2, 5]);
    names.apply(Change::Put(item(5, "named", Kind::Snapshot, 1)));
    names.apply(deleted(2));
    assert_eq!(unneeded(&names), [0_u128; 0]);
    // An import that was removed beside another node.
    names.apply(Change::Put(item(6, "", Kind::Importing, 0)));
    let orphans: Vec<u128> = names.orphans().map(|item| item.lineage.0).collect();
    assert_eq!(orphans, [6], "once");
    names.apply(Change::Put(item(6, "i", Kind::Image, 0)));
    assert!(names.imports.is_empty(), "it is published");
}
