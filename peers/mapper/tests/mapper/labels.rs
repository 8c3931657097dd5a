//! Labels: of anything that has a name, set at any time, never inherited, and part of the durable catalogue.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind};
use archipelago_protocol::map::MapOp;
use archipelago_protocol::{ErrorCode, Label, LabelChanges, Labels, ObjectSize, OnFull};

use super::rig::{Rig, name, small};

fn labels(rig: &mut Rig, text: &str) -> String {
    let lookup = CatalogueRequest::Lookup { name: name(text) };
    rig.entry(lookup).labels.to_string()
}

/// `KEY=VALUE` sets, `KEY` alone removes.
fn changes(list: &[&str]) -> LabelChanges {
    let mut changes = LabelChanges::default();
    for text in list {
        match text.contains('=') {
            true => changes.set(text.parse().unwrap()).unwrap(),
            false => changes.unset(text.parse().unwrap()).unwrap(),
        }
    }
    changes
}

fn set(text: &str, list: &[&str]) -> CatalogueRequest {
    CatalogueRequest::Set {
        name: name(text),
        on_full: None,
        labels: changes(list),
    }
}

fn of(label: &str) -> Labels {
    Labels::from_list(vec![label.parse::<Label>().unwrap()]).unwrap()
}

fn listed(rig: &mut Rig, label: &str) -> Vec<String> {
    let list = CatalogueRequest::List {
        prefix: String::new(),
        after: None,
        limit: 1000,
        label: label.parse().ok(),
    };
    match rig.control(list) {
        CatalogueReply::Page(page) => page.entries.iter().map(|it| it.name.to_string()).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn labels_survive_restarts_checkpoints_and_every_other_change_of_the_entry() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.create("w", 1 << 20, ObjectSize::MIN);
    // Of an open volume as well, and together with a policy: one change.
    let handle = rig.open(own, true);
    rig.entry(set("v", &["instance=web", "disk=0", "gone=soon"]));
    let before = rig.mapper.counters().catalogue_checkpoints;
    let both = rig.entry(CatalogueRequest::Set {
        name: name("v"),
        on_full: Some(OnFull::Report),
        labels: changes(&["disk=1", "gone"]),
    });
    assert_eq!(both.labels.to_string(), "disk=1,instance=web");
    assert_eq!(both.on_full, OnFull::Report);
    rig.write(own, handle, 3, 4);
    rig.flush(handle).unwrap();
    rig.close(handle);
    rig.power_cut(|| false);
    assert_eq!(labels(&mut rig, "v"), "disk=1,instance=web");
    rig.entry(CatalogueRequest::Resize {
        name: name("v"),
        size: 2 << 20,
        force: false,
    });
    rig.entry(CatalogueRequest::Rename {
        from: name("v"),
        to: name("u"),
    });
    for number in 0..400 {
        rig.entry(set("w", &[&format!("number={number}")]));
    }
    assert!(rig.mapper.counters().catalogue_checkpoints > before + 1);
    for _ in 0..2 {
        assert_eq!(labels(&mut rig, "u"), "disk=1,instance=web");
        assert_eq!(labels(&mut rig, "w"), "number=399");
        assert_eq!(listed(&mut rig, "instance"), ["u"]);
        assert_eq!(listed(&mut rig, "instance=db"), [] as [&str; 0]);
        rig.restart();
    }
    rig.entry(set("u", &["disk", "instance"]));
    rig.power_cut(|| false);
    assert_eq!(labels(&mut rig, "u"), "");
    rig.assert_clean();
}

#[test]
fn what_is_made_of_something_has_the_labels_that_it_is_given_and_no_others() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.entry(CatalogueRequest::Set {
        name: name("v"),
        on_full: Some(OnFull::Report),
        labels: changes(&["of=v"]),
    });
    // Snapshots of a closed and of an open volume, each without labels and with one of its own.
    rig.snapshot_closed("v", "s1");
    let lineage = rig.fresh();
    rig.entry(CatalogueRequest::Snapshot {
        volume: name("v"),
        name: name("s2"),
        lineage,
        created: 1,
        labels: of("of=s2"),
    });
    let handle = rig.open(own, true);
    rig.snapshot(handle, "v", "s3");
    let lineage = rig.fresh();
    let prepare = CatalogueRequest::PrepareSnapshot {
        volume: name("v"),
        name: name("s4"),
        lineage,
        created: 1,
        labels: of("of=s4"),
    };
    let CatalogueReply::Token { token } = rig.control(prepare) else {
        panic!("a snapshot was prepared")
    };
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    rig.close(handle);
    rig.clone_of("s2", "c1", None);
    let lineage = rig.fresh();
    rig.entry(CatalogueRequest::Clone {
        source: name("s2"),
        name: name("c2"),
        lineage,
        size: None,
        created: 1,
        on_full: None,
        labels: of("of=c2"),
    });
    // A snapshot is labelled later, too; its policy is not its own.
    rig.entry(set("s1", &["kept=yes"]));
    let policy = CatalogueRequest::Set {
        name: name("s1"),
        on_full: Some(OnFull::Report),
        labels: changes(&["kept=no"]),
    };
    assert_eq!(rig.refused(policy), ErrorCode::Invalid);
    let lineage = rig.fresh();
    rig.entry(CatalogueRequest::Create {
        name: name("i"),
        lineage,
        kind: Kind::Importing,
        size: 512,
        object_size: ObjectSize::MIN,
        created: 0,
        on_full: OnFull::default(),
        labels: of("of=i"),
    });
    rig.entry(CatalogueRequest::Publish { name: name("i") });
    for _ in 0..2 {
        for (text, expected) in [
            ("v", "of=v"),
            ("s1", "kept=yes"),
            ("s2", "of=s2"),
            ("s3", ""),
            ("s4", "of=s4"),
            ("c1", ""),
            ("c2", "of=c2"),
            ("i", "of=i"),
        ] {
            assert_eq!(labels(&mut rig, text), expected, "{text}");
            let lookup = CatalogueRequest::Lookup { name: name(text) };
            let reports = rig.entry(lookup).on_full == OnFull::Report;
            assert_eq!(reports, text != "i", "{text}: the policy is inherited");
        }
        assert_eq!(listed(&mut rig, "of"), ["c2", "i", "s2", "s4", "v"]);
        rig.power_cut(|| false);
    }
    // Removed, its name is free of them.
    rig.control(CatalogueRequest::Remove { name: name("c2") });
    rig.create("c2", 512, ObjectSize::MIN);
    assert_eq!(labels(&mut rig, "c2"), "");
}

#[test]
fn a_change_that_is_refused_or_finds_no_room_changes_nothing() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    assert_eq!(rig.refused(set("x", &["a=1"])), ErrorCode::NotFound);
    rig.entry(set("v", &["a=1"]));
    let written = rig.pool.log.len();
    rig.entry(set("v", &["a=1", "never"]));
    assert_eq!(rig.pool.log.len(), written, "the same again writes nothing");
    let many: Vec<String> = (0..32).map(|number| format!("k{number}=x")).collect();
    let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(rig.refused(set("v", &many)), ErrorCode::Invalid);
    assert_eq!(labels(&mut rig, "v"), "a=1");
    rig.pool.fail = Some((rig.pool.log.len() + 1, ErrorCode::NoSpace));
    assert_eq!(rig.refused(set("v", &["b=2", "a"])), ErrorCode::NoSpace);
    rig.pool.fail = None;
    assert_eq!(labels(&mut rig, "v"), "a=1");
    many.push("a");
    rig.entry(set("v", &many));
    rig.power_cut(|| false);
    assert_eq!(labels(&mut rig, "v").split(',').count(), 32);
}
