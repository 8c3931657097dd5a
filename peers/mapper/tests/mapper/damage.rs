//! What was damaged is named and refused, and nothing is written.

use archipelago_mapper::MapperConfig;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::check::FindingKind;
use archipelago_protocol::map::MapRequest;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};

use crate::rig::{Rig, small};

#[test]
fn damage_is_named_and_nothing_is_written() {
    for (kind, at) in [(ObjectKind::Head, 50), (ObjectKind::Pack, 70)] {
        let (mut rig, own, handle) = Rig::opened();
        rig.write(own, handle, 1, 1);
        rig.close(handle);
        rig.pool.damage(kind, own, at);
        rig.restart();
        let before = rig.pool.log.len();
        let result = match rig.ask(MapRequest::open(own, false)).result {
            Ok(handle) => rig.locate(handle, 1, 1, false).result,
            refused => refused,
        };
        assert_eq!(result, Err(ErrorCode::Damaged), "{kind:?}");
        let message = rig.mapper.damage(own).unwrap().message;
        assert!(message.contains(&own.to_string()), "{message}");
        let wrote = |op: &ObjectOp| matches!(op, ObjectOp::Write | ObjectOp::CompareAndSwap);
        assert!(
            !rig.pool.log[before..].iter().any(|(op, _, _)| wrote(op)),
            "{kind:?}"
        );
    }
}

/// Where the envelope has the version, and the incompatible features.
const ENVELOPE: [(usize, u8, &str); 3] = [
    (8, 4, "format version 4, this program knows version 3"),
    (8, 2, "before the first release"),
    (20, 2, "(bits 0x2)"),
];

#[test]
fn what_another_version_wrote_is_unsupported_and_other_volumes_are_served() {
    for kind in [ObjectKind::Head, ObjectKind::Log, ObjectKind::Pack] {
        for (at, value, why) in ENVELOPE {
            let (mut rig, own, handle) = Rig::opened();
            let other = rig.create("other", 1 << 20, ObjectSize::MIN);
            rig.write(own, handle, 1, 1);
            if kind == ObjectKind::Log {
                rig.flush(handle).unwrap();
            } else {
                rig.close(handle);
            }
            rig.pool.reseal(kind, own, at, value);
            rig.power_cut(|| false);
            let before = rig.pool.log.len();
            let result = match rig
                .ask(MapRequest::open(own, kind == ObjectKind::Log))
                .result
            {
                Ok(handle) => rig.locate(handle, 1, 1, false).result,
                refused => refused,
            };
            assert_eq!(result, Err(ErrorCode::UnsupportedFormat), "{kind:?}");
            let error = rig.mapper.damage(own).unwrap();
            assert_eq!(error.code, ErrorCode::UnsupportedFormat);
            assert!(error.message.contains(why), "{}", error.message);
            assert!(
                error.message.contains(&own.to_string()),
                "{}",
                error.message
            );
            assert_eq!(rig.mapper.counters().damages, 0);
            let wrote = |op: &ObjectOp| matches!(op, ObjectOp::Write | ObjectOp::CompareAndSwap);
            let log = &rig.pool.log[before..];
            // The catalogue is read, and taken, by the first request.
            let of_volume = |id: &ObjectId| id.lineage != Lineage::CATALOGUE;
            assert!(!log.iter().any(|(op, id, _)| wrote(op) && of_volume(id)));
            let CatalogueReply::Report(report) =
                rig.control(CatalogueRequest::Check { repair: false })
            else {
                panic!()
            };
            assert_eq!(report.fault(), Some(ErrorCode::UnsupportedFormat));
            let found: Vec<FindingKind> = report.findings.iter().map(|one| one.kind).collect();
            assert_eq!(found, [FindingKind::Unsupported], "{kind:?}");
            let handle = rig.open(other, true);
            assert!(rig.write(other, handle, 1, 5));
        }
    }
}

#[test]
fn a_catalogue_of_another_version_refuses_the_pool() {
    for kind in [ObjectKind::Head, ObjectKind::Log] {
        for (at, value, why) in ENVELOPE {
            let mut rig = Rig::new(small());
            rig.create("v", 1 << 30, ObjectSize::DEFAULT);
            rig.pool.reseal(kind, Lineage::CATALOGUE, at, value);
            rig.restart();
            let before = rig.pool.log.len();
            for _ in 0..2 {
                let lookup = CatalogueRequest::Lookup {
                    name: "v".parse().unwrap(),
                };
                assert_eq!(rig.refused(lookup), ErrorCode::UnsupportedFormat);
            }
            let failure = rig.mapper.failure().unwrap();
            assert_eq!(failure.code, ErrorCode::UnsupportedFormat);
            assert!(failure.message.contains(why), "{}", failure.message);
            assert!(failure.message.contains("catalogue"), "{}", failure.message);
            assert!(failure.hint.contains("nothing was changed"));
            let wrote = |op: &ObjectOp| matches!(op, ObjectOp::Write | ObjectOp::CompareAndSwap);
            assert!(!rig.pool.log[before..].iter().any(|(op, _, _)| wrote(op)));
        }
    }
}

#[test]
fn compatible_features_of_a_head_are_kept() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.close(handle);
    for lineage in [own, Lineage::CATALOGUE] {
        rig.pool.reseal(ObjectKind::Head, lineage, 24, 0x81);
    }
    rig.restart();
    let handle = rig.open(own, true);
    rig.write(own, handle, 2, 2);
    rig.close(handle);
    for lineage in [own, Lineage::CATALOGUE] {
        let (_, head) = &rig.pool.swapped[&ObjectId::head(lineage)];
        assert_eq!(head[24..28], [0x81, 0, 0, 0], "{lineage}");
    }
}

#[test]
fn a_hole_in_the_log_is_damage() {
    let (mut rig, own, handle) = Rig::opened();
    for block in 0..3 {
        rig.write(own, handle, block, 1);
        rig.flush(handle).unwrap();
    }
    rig.pool.damage(ObjectKind::Log, own, 4096 + 80);
    rig.power_cut(|| false);
    assert!(rig.damage_at_open(own).contains("follows it"));
}

#[test]
fn appends_that_a_medium_lost_are_missed_while_the_machine_lives() {
    let (mut rig, own, handle) = Rig::opened();
    let empty = rig.pool.clone();
    for block in 0..2 {
        rig.write(own, handle, block, 1);
        rig.flush(handle).unwrap();
    }
    rig.pool.lose_appends(own, &empty);
    rig.restart();
    let why = rig.damage_at_open(own);
    assert!(why.contains("batches were appended up to 8192"), "{why}");
}

#[test]
fn a_damaged_catalogue_refuses_everything() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 30, ObjectSize::DEFAULT);
    rig.pool.damage(ObjectKind::Head, Lineage::CATALOGUE, 50);
    rig.restart();
    assert_eq!(
        rig.refused(CatalogueRequest::Lookup {
            name: "v".parse().unwrap()
        }),
        ErrorCode::Damaged
    );
    assert_eq!(rig.mapper.failure().unwrap().code, ErrorCode::Damaged);
    let CatalogueReply::Failed(error) = rig.control(CatalogueRequest::PoolInfo) else {
        panic!()
    };
    assert!(
        error.message.contains("head of the catalogue"),
        "{}",
        error.message
    );
}

#[test]
fn a_pack_that_is_missing_is_damage() {
    let delete = |rig: &mut Rig, id| {
        let request = ObjectRequest::new(ObjectOp::Delete, id);
        rig.pool.serve(&request, &[]).0.result.unwrap();
        rig.restart();
    };
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.close(handle);
    delete(&mut rig, ObjectId::pack(own, 1 << 32));
    let reader = rig.open(own, false);
    let located = rig.locate(reader, 1, 1, false).result;
    assert_eq!(located, Err(ErrorCode::Damaged));
    let why = rig.mapper.damage(own).unwrap().message;
    assert!(
        why.contains("pack 4294967296 of") && why.contains("it is missing"),
        "{why}"
    );
    // And the catalogue's: the first checkpoint of the first mapper.
    for number in 0.. {
        rig.create(&format!("w{number}"), 1 << 20, ObjectSize::MIN);
        if rig.mapper.counters().catalogue_checkpoints == 1 {
            break;
        }
    }
    delete(&mut rig, ObjectId::pack(Lineage::CATALOGUE, 2 << 32 | 1));
    let failure = rig.mapper.failure().unwrap();
    assert_eq!(failure.code, ErrorCode::Damaged);
    let why = failure.message;
    assert!(
        why.contains("pack 8589934593 of the catalogue is missing"),
        "{why}"
    );
}

#[test]
fn a_page_is_found_wherever_its_pack_has_it() {
    for (pack_len_max, packs) in [(128 << 20, 1), (8192, 2), (4096, 3)] {
        pages_are_found(pack_len_max, packs);
    }
}

/// In so many packs of such a length.
fn pages_are_found(pack_len_max: u64, packs: usize) {
    let mut rig = Rig::new(MapperConfig {
        pack_len_max,
        ..small()
    });
    let own = rig.create("v", 1 << 40, ObjectSize::MIN);
    let handle = rig.open(own, true);
    // Leaves far apart: pages that begin anywhere in their pack, and one that ends in another unit.
    let places: Vec<u64> = (0..60).map(|leaf| leaf * 16 * 512 * 3 + leaf).collect();
    for place in &places {
        rig.write(own, handle, *place, place + 1);
    }
    rig.close(handle);
    assert_eq!(rig.pool.packs(own), packs);
    rig.restart();
    let reader = rig.open(own, false);
    for place in &places {
        assert_eq!(rig.read(reader, *place), place + 1);
    }
    let pages = rig.mapper.counters().pages_read;
    assert_eq!(pages, 61, "each once, and what is above them");
    rig.assert_clean();
}
