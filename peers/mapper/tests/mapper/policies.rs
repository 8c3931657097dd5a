//! The policy for a full pool: set at any time, inherited, and part of the durable catalogue.

use archipelago_protocol::catalogue::CatalogueRequest;
use archipelago_protocol::{ErrorCode, LabelChanges, Labels, ObjectSize, OnFull};

use super::rig::{Rig, name, small};

fn policy(rig: &mut Rig, text: &str) -> String {
    let lookup = CatalogueRequest::Lookup { name: name(text) };
    rig.entry(lookup).on_full.to_string()
}

fn set(text: &str, on_full: &str) -> CatalogueRequest {
    let on_full = on_full.parse().unwrap();
    CatalogueRequest::Set {
        name: name(text),
        on_full: Some(on_full),
        labels: LabelChanges::default(),
    }
}

#[test]
fn a_policy_that_was_set_survives_restarts_checkpoints_and_every_other_change() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.create("w", 1 << 20, ObjectSize::MIN);
    assert_eq!(policy(&mut rig, "v"), "wait");
    // An open volume as well.
    let handle = rig.open(own, true);
    assert_eq!(rig.entry(set("v", "wait:7")).on_full.to_string(), "wait:7");
    rig.write(own, handle, 3, 4);
    rig.flush(handle).unwrap();
    rig.close(handle);
    rig.power_cut(|| false);
    assert_eq!(policy(&mut rig, "v"), "wait:7");
    let resize = CatalogueRequest::Resize {
        name: name("v"),
        size: 2 << 20,
        force: false,
    };
    rig.entry(resize);
    let rename = CatalogueRequest::Rename {
        from: name("v"),
        to: name("u"),
    };
    rig.entry(rename);
    let before = rig.mapper.counters().catalogue_checkpoints;
    for number in 0..400 {
        let other = ["report", "wait"][number % 2];
        rig.entry(set("w", other));
    }
    assert!(rig.mapper.counters().catalogue_checkpoints > before + 1);
    for _ in 0..2 {
        assert_eq!(policy(&mut rig, "u"), "wait:7");
        assert_eq!(policy(&mut rig, "w"), "wait");
        rig.restart();
    }
    rig.entry(set("u", "wait"));
    rig.restart();
    assert_eq!(policy(&mut rig, "u"), "wait");
    rig.assert_clean();
}

#[test]
fn a_clone_takes_the_policy_of_its_source_unless_it_is_given_one() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.entry(set("v", "report"));
    rig.snapshot_closed("v", "s");
    rig.entry(set("v", "wait:1"));
    rig.clone_of("s", "c", None);
    let lineage = rig.fresh();
    rig.entry(CatalogueRequest::Clone {
        source: name("s"),
        name: name("d"),
        lineage,
        size: None,
        created: 1,
        on_full: Some(OnFull::default()),
        labels: Labels::default(),
    });
    for _ in 0..2 {
        for (text, expected) in [
            ("v", "wait:1"),
            ("s", "report"),
            ("c", "report"),
            ("d", "wait"),
        ] {
            assert_eq!(policy(&mut rig, text), expected, "{text}");
        }
        rig.power_cut(|| false);
    }
}

#[test]
fn only_a_volume_is_set_and_the_same_again_writes_nothing() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.snapshot_closed("v", "s");
    rig.import("i");
    for text in ["s", "i"] {
        assert_eq!(rig.refused(set(text, "report")), ErrorCode::Invalid);
    }
    assert_eq!(rig.refused(set("x", "report")), ErrorCode::NotFound);
    rig.entry(set("v", "report"));
    let written = rig.pool.log.len();
    rig.entry(set("v", "report"));
    assert_eq!(rig.pool.log.len(), written);
    // A set that finds no room changes nothing.
    rig.pool.fail = Some((rig.pool.log.len() + 1, ErrorCode::NoSpace));
    assert_eq!(rig.refused(set("v", "wait")), ErrorCode::NoSpace);
    rig.pool.fail = None;
    assert_eq!(policy(&mut rig, "v"), "report");
    rig.entry(set("v", "wait"));
    rig.power_cut(|| false);
    assert_eq!(policy(&mut rig, "v"), "wait");
}
