//! What a check finds besides flipped bits, and what a repair deletes.

use archipelago_doubles::SimulatedBackend;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::check::{FindingKind, Report};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Epoch, Lineage};
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp};
use xseg::Region;

use crate::world::{CLONE, DISK, RENAMED, World, small_pool};

fn region() -> Region {
    Region::anonymous(256 << 10).unwrap()
}

fn check(backend: &SimulatedBackend, repair: bool) -> (Report, SimulatedBackend) {
    let mut world = World::on(backend.clone(), region());
    let report = world.checked(repair);
    (report, world.backend)
}

fn messages(report: &Report, kind: FindingKind) -> Vec<&str> {
    let of_kind = report.findings.iter().filter(|found| found.kind == kind);
    of_kind.map(|found| found.message.as_str()).collect()
}

/// A pool with an object more.
fn with(backend: SimulatedBackend, id: ObjectId) -> SimulatedBackend {
    let mut world = World::on(backend, region());
    world.put(id);
    world.backend
}

/// A pool whose last append, to the log of [`CLONE`], lost its first sector in a power cut.
fn torn(backend: SimulatedBackend) -> SimulatedBackend {
    let log = ObjectId::log(CLONE, 1);
    let mut world = World::started(backend, region());
    let handle = world.open(CLONE);
    let before = world.backend.bytes(log).unwrap();
    world.write(CLONE, handle, 77);
    world.flush(handle);
    let after = world.backend.bytes(log).unwrap();
    let first = (0..after.len()).find(|at| after[*at] != before[*at]);
    let first = first.unwrap() / 512 * 512;
    for at in first..first + 512 {
        let mask = before[at] ^ after[at];
        world.backend.flip(log, at as u64, mask);
    }
    world.backend
}

#[test]
fn leaks_are_notes_and_a_repair_deletes_exactly_them() {
    let good = small_pool();
    let stray = ObjectId::data(Lineage(77), Epoch(1 << 32));
    let old_pack = ObjectId::pack(Lineage::CATALOGUE, 3);
    let overwritten = ObjectId::data(DISK, Epoch(9));
    let leaky = [stray, old_pack, overwritten]
        .into_iter()
        .fold(good.clone(), with);
    let (report, untouched) = check(&leaky, false);
    assert!(report.clean);
    assert_eq!(untouched.objects(), leaky.objects());
    let leaks = messages(&report, FindingKind::Leaked);
    assert_eq!(leaks.len(), 3, "{leaks:?}");
    assert!(
        leaks
            .iter()
            .any(|leak| leak.contains(&Lineage(77).to_string()))
    );
    assert!(
        leaks
            .iter()
            .any(|leak| leak.contains("pack 3 of the catalogue"))
    );
    let (report, repaired) = check(&leaky, true);
    assert_eq!(report.repaired.len(), 2, "{report:?}");
    let left = with(good.clone(), overwritten);
    assert_eq!(repaired.objects(), left.objects());
    assert_eq!(
        World::started(repaired, region()).serve(),
        World::started(good, region()).serve()
    );
}

#[test]
fn an_interrupted_removal_is_finished() {
    let mut world = World::started(small_pool(), region());
    world.stop_at = Some(ObjectOp::DeleteLineage);
    // It has a head and a log once it was opened.
    world.open_and_close(RENAMED);
    let objects = |world: &World| -> usize {
        let all = world.backend.objects();
        all.iter().filter(|id| id.lineage == RENAMED).count()
    };
    assert!(objects(&world) > 0);
    world.control(CatalogueRequest::Remove {
        name: "empty".parse().unwrap(),
    });
    let (report, repaired) = check(&world.backend, true);
    assert!(report.clean, "{report:?}");
    assert_eq!(report.repaired.len(), 1, "{report:?}");
    let mut world = World::started(repaired, region());
    assert_eq!(objects(&world), 0);
    assert_eq!(world.serve().len(), 4);
    let (report, _) = check(&world.backend, false);
    assert!(report.clean);
}

#[test]
fn nothing_is_repaired_beside_damage_or_doubt_or_a_serving_mapper() {
    let leaky = with(small_pool(), ObjectId::data(Lineage(77), Epoch(1)));
    let mut damaged = leaky.clone();
    damaged.flip(ObjectId::head(DISK), 100, 1);
    let mut unneeded = leaky.clone();
    // Behind the end of a log.
    unneeded.flip(ObjectId::log(CLONE, 1), (64 << 10) - 5, 1);
    let doubtful = torn(leaky.clone());
    let (report, _) = check(&doubtful, false);
    assert_eq!(messages(&report, FindingKind::Remnant).len(), 1);
    for (backend, clean) in [(damaged, false), (unneeded, false), (doubtful, true)] {
        let (report, after) = check(&backend, true);
        assert_eq!(report.clean, clean, "{report:?}");
        assert!(report.repaired.is_empty());
        assert_eq!(after.objects(), backend.objects());
    }
    let mut world = World::started(leaky.clone(), region());
    match world.control(CatalogueRequest::Check { repair: true }) {
        CatalogueReply::Failed(error) => assert_eq!(error.code, ErrorCode::InUse),
        other => panic!("{other:?}"),
    }
    assert_eq!(world.backend.objects(), leaky.objects());
}

#[test]
fn what_is_missing_is_named() {
    let good = small_pool();
    let needed = good.objects().into_iter().filter(|id| {
        // Nobody looks for the head of an image, or for an object of the catalogue if its head is gone.
        id.kind != ObjectKind::Head || id.lineage == DISK || id.lineage == CLONE
    });
    for id in needed {
        let mut world = World::on(good.clone(), region());
        world.delete(id);
        let report = world.checked(false);
        let what = match id.kind {
            ObjectKind::Data => format!("data of epoch {} of", id.number),
            ObjectKind::Head => format!("head of {}", id.lineage),
            ObjectKind::Log => format!("log {} of", id.number),
            _ => format!("pack {} of", id.number),
        };
        let named = |found: &&str| found.contains(&what);
        let all = [FindingKind::Missing, FindingKind::Damaged];
        let found = all.iter().flat_map(|kind| messages(&report, *kind));
        // The log of an image is not needed any more.
        let spare = id.kind == ObjectKind::Log && id.lineage == crate::world::IMAGE;
        assert!(spare || !report.clean, "{id:?}: {report:?}");
        assert!(
            spare || found.into_iter().any(|found| named(&found)),
            "{id:?}: {report:?}"
        );
    }
}

#[test]
fn a_check_beside_open_volumes_is_clean() {
    let mut world = World::started(small_pool(), region());
    let report = world.checked(false);
    assert!(report.clean, "{report:?}");
    assert!(world.serve().values().all(Result::is_ok));
    let handle = world.handles[&CLONE];
    for block in 0..50 {
        world.write(CLONE, handle, block * 7);
        let report = world.checked(false);
        assert!(report.clean && report.findings.is_empty(), "{report:?}");
        if block % 5 == 0 {
            world.flush(handle);
        }
    }
}

#[test]
fn a_volume_whose_head_is_lost_is_refused_and_not_begun_anew() {
    for lineage in [DISK, CLONE] {
        let mut world = World::on(small_pool(), region());
        world.delete(ObjectId::head(lineage));
        let mut world = World::started(world.backend, region());
        let served = world.serve();
        let (code, why) = served[&lineage].clone().unwrap_err();
        assert_eq!(code, ErrorCode::Damaged);
        assert!(
            why.contains(&format!("head of {lineage} is missing")),
            "{why}"
        );
        assert!(world.backend.bytes(ObjectId::head(lineage)).is_none());
    }
}
