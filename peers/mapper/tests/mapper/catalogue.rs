//! Names: what exists, under which name, after any restart.

use archipelago_mapper::Mapper;
use archipelago_mapper::MapperConfig;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind, Page};
use archipelago_protocol::map::{MapOp, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectRequest};
use archipelago_protocol::{ErrorCode, Labels, Lineage, Name, ObjectSize, OnFull};

use crate::rig::pool::Left;
use crate::rig::{Rig, name, small, volume};

pub(crate) fn list(rig: &mut Rig, prefix: &str, after: Option<Name>, limit: usize) -> Page {
    match rig.control(CatalogueRequest::List {
        prefix: prefix.to_owned(),
        after,
        limit,
        label: None,
    }) {
        CatalogueReply::Page(page) => page,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn names(page: &Page) -> Vec<&str> {
    page.entries
        .iter()
        .map(|entry| entry.name.as_str())
        .collect()
}

#[test]
fn names_list_by_prefix_in_pages_and_survive_checkpoints() {
    for (pack_len_max, packs) in [(128 << 20, 1..=1), (8192, 8..=16)] {
        list_survives_checkpoints(pack_len_max, packs);
    }
}

/// With this many packs of a checkpoint, of so many bytes each.
fn list_survives_checkpoints(pack_len_max: u64, packs: std::ops::RangeInclusive<usize>) {
    let mut rig = Rig::new(MapperConfig {
        pack_len_max,
        ..small()
    });
    for number in 0..600 {
        rig.create(&format!("vm-{number:04}"), 1 << 20, ObjectSize::MIN);
    }
    rig.create("a", 512, ObjectSize::MIN);
    rig.create("z", 512, ObjectSize::MIN);
    assert!(rig.mapper.counters().catalogue_checkpoints > 1);
    let found = rig.pool.packs(Lineage::CATALOGUE);
    assert!(packs.contains(&found), "{found}: older ones are gone");
    rig.assert_clean();
    rig.power_cut(|| false);
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = list(&mut rig, "vm-", after.take(), 100);
        seen.extend(page.entries.iter().map(|entry| entry.name.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(
        seen,
        (0..600)
            .map(|number| format!("vm-{number:04}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(names(&list(&mut rig, "", None, 1)), ["a"]);
    assert_eq!(
        names(&list(&mut rig, "vm-059", Some(name("vm-0597")), 9)),
        ["vm-0598", "vm-0599"]
    );
    assert_eq!(list(&mut rig, "/", None, 9).entries, []);
}

#[test]
fn what_clones_need_stays_until_the_last_is_gone() {
    let mut rig = Rig::new(small());
    let base = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(base, true);
    rig.write(base, handle, 1, 9);
    rig.close(handle);
    rig.snapshot_closed("v", "s");
    let clone = rig.clone_of("s", "c", None);
    let remove = |text: &str| CatalogueRequest::Remove { name: name(text) };
    assert_eq!(rig.control(remove("v")), CatalogueReply::Done);
    let entry = rig.entry(CatalogueRequest::Lookup { name: name("s") });
    assert_eq!(entry.parent, None, "its name is gone");
    assert_eq!(rig.control(remove("s")), CatalogueReply::Done);
    assert_eq!(names(&list(&mut rig, "", None, 9)), ["c"]);
    rig.power_cut(|| false);
    assert!(rig.pool.holds(base));
    let handle = rig.open(clone, true);
    assert_eq!(rig.read(handle, 1), 9);
    assert_eq!(rig.refused(remove("c")), ErrorCode::InUse);
    rig.close(handle);
    assert_eq!(rig.control(remove("c")), CatalogueReply::Done);
    assert!(!rig.pool.holds(base) && !rig.pool.holds(clone));
    assert_eq!(rig.mapper.counters().lineages_deleted, 3);
    assert_eq!(rig.refused(remove("c")), ErrorCode::NotFound);
}

#[test]
fn a_rename_is_seen_by_descendants_and_a_taken_name_is_refused() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.create("w", 1 << 20, ObjectSize::MIN);
    rig.snapshot_closed("v", "s");
    let rename = |from: &str, to: &str| CatalogueRequest::Rename {
        from: name(from),
        to: name(to),
    };
    assert_eq!(rig.refused(rename("v", "w")), ErrorCode::Exists);
    assert_eq!(rig.entry(rename("v", "u")).name, name("u"));
    rig.restart();
    assert_eq!(
        rig.entry(CatalogueRequest::Lookup { name: name("s") })
            .parent,
        Some(name("u"))
    );
    assert_eq!(
        rig.refused(CatalogueRequest::Lookup { name: name("v") }),
        ErrorCode::NotFound
    );
    let lineage = rig.fresh();
    let clone = |source: &str, size| CatalogueRequest::Clone {
        source: name(source),
        name: name("c"),
        lineage,
        size,
        created: 0,
        on_full: None,
        labels: Labels::default(),
    };
    assert_eq!(rig.refused(clone("u", None)), ErrorCode::Invalid);
    assert_eq!(rig.refused(clone("s", Some(512))), ErrorCode::Invalid);
    assert_eq!(rig.refused(clone("x", None)), ErrorCode::NotFound);
}

#[test]
fn an_import_is_hidden_until_published_and_forgotten_by_a_restart() {
    let mut rig = Rig::new(small());
    let kept = rig.import("kept");
    let handle = rig.open(kept, true);
    rig.write(kept, handle, 3, 4);
    let publish = CatalogueRequest::Publish { name: name("kept") };
    assert_eq!(rig.refused(publish.clone()), ErrorCode::InUse);
    rig.close(handle);
    assert_eq!(list(&mut rig, "", None, 9).entries, []);
    assert_eq!(rig.entry(publish).kind, Kind::Image);
    let left = rig.import("left");
    let handle = rig.open(left, true);
    rig.write(left, handle, 3, 4);
    rig.restart();
    assert_eq!(names(&list(&mut rig, "", None, 9)), ["kept"]);
    assert!(!rig.pool.holds(left));
    assert_eq!(
        rig.ask(MapRequest::open(kept, true)).result,
        Err(ErrorCode::ReadOnly)
    );
    let (first, second) = (rig.open(kept, false), rig.open(kept, false));
    assert_eq!([rig.read(first, 3), rig.read(second, 3)], [4, 4]);
    assert_eq!(rig.zero(first, 0, 1).result, Err(ErrorCode::ReadOnly));
    assert_eq!(
        rig.locate(first, 0, 1, true).result,
        Err(ErrorCode::ReadOnly)
    );
}

#[test]
fn a_prepared_name_is_reserved_until_the_snapshot_is_over() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.create("other", 1 << 20, ObjectSize::MIN);
    let (token, lineage) = rig.prepare("v", "s");
    let snapshot_of = |volume: &str| CatalogueRequest::Snapshot {
        volume: name(volume),
        name: name("s"),
        lineage,
        created: 0,
        labels: Labels::default(),
    };
    assert_eq!(rig.refused(snapshot_of("other")), ErrorCode::Exists);
    // Whoever gets this error prepares anew, which is what frees the name.
    assert_eq!(rig.refused(snapshot_of("v")), ErrorCode::InUse);
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.op(MapOp::SnapshotAbort, handle, token).result.unwrap();
    assert_eq!(
        rig.op(MapOp::SnapshotCommit, handle, token).result,
        Err(ErrorCode::NotFound)
    );
    rig.create("s", 512, ObjectSize::MIN);
}

#[test]
fn a_prepared_name_that_no_session_took_up_is_free() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.prepare("v", "s");
    rig.snapshot_closed("v", "s");
    let handle = rig.open(own, true);
    rig.prepare("v", "t");
    rig.snapshot(handle, "v", "t");
}

#[test]
fn a_failed_append_is_read_again_before_anything_is_changed() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    let lineage = rig.fresh();
    let create = volume("w", lineage);
    rig.pool.fail = Some((rig.pool.log.len() + 1, ErrorCode::Io));
    assert_eq!(rig.refused(create.clone()), ErrorCode::SyncFailed);
    rig.pool.fail = None;
    rig.entry(create);
    rig.power_cut(|| false);
    assert_eq!(names(&list(&mut rig, "", None, 9)), ["v", "w"]);
}

#[test]
fn what_is_listed_after_a_failed_append_stays_so() {
    for left in [Left::Durable, Left::Unsynced, Left::Lost] {
        for (dies, restarts) in [(false, false), (false, true), (true, true)] {
            let mut rig = Rig::new(small());
            rig.create("v", 1 << 20, ObjectSize::MIN);
            // A change after which nothing is deleted, and so nothing synced.
            let rename = CatalogueRequest::Rename {
                from: name("v"),
                to: name("w"),
            };
            rig.pool.fail_done(left);
            assert_eq!(rig.refused(rename), ErrorCode::SyncFailed);
            if dies {
                if matches!(left, Left::Lost) {
                    // The blocker remembers a sync that failed, so that the next one of the log fails, too.
                    continue;
                }
                rig.restart();
            }
            let listed = list(&mut rig, "", None, 9);
            if restarts {
                rig.restart();
                let again = list(&mut rig, "", None, 9);
                assert_eq!(names(&again), names(&listed), "{left:?}, dies: {dies}");
            }
            rig.power_cut(|| false);
            let again = list(&mut rig, "", None, 9);
            assert_eq!(
                names(&again),
                names(&listed),
                "{left:?}, dies: {dies}, then the power fails"
            );
            // What the head needs of the log begins behind what was lost.
            rig.create("next", 1 << 20, ObjectSize::MIN);
        }
    }
}

#[test]
fn a_first_read_that_failed_leaves_its_work_to_the_next() {
    let mut rig = Rig::new(small());
    let left = rig.import("left");
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.pool.fail = Some((rig.pool.log.len() + 1, ErrorCode::Io));
    rig.restart();
    assert!(rig.mapper.failure().is_none(), "not for good");
    assert_eq!(names(&list(&mut rig, "", None, 9)), ["v"]);
    rig.create("left", 1 << 20, ObjectSize::MIN);
    assert!(!rig.pool.holds(left));
}

#[test]
fn a_damaged_catalogue_is_refused_without_another_look() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.pool.damage(ObjectKind::Head, Lineage::CATALOGUE, 20);
    rig.restart();
    let looks = rig.pool.log.len();
    let lookup = CatalogueRequest::Lookup { name: name("v") };
    for _ in 0..2 {
        assert_eq!(rig.refused(lookup.clone()), ErrorCode::Damaged);
    }
    assert_eq!(rig.pool.log.len(), looks);
}

#[test]
fn a_pool_is_repaired_by_a_mapper_that_does_not_serve_it() {
    let mut rig = Rig::new(small());
    let repair = CatalogueRequest::Check { repair: true };
    assert_eq!(rig.refused(repair.clone()), ErrorCode::InUse);
    rig.mapper = Mapper::new(rig.config.clone(), Box::new(rig.journals.clone()));
    assert!(matches!(rig.control(repair), CatalogueReply::Report(report) if report.clean));
}

#[test]
fn a_session_that_was_asked_for_by_a_dead_client_ends_at_once() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.stalled = true;
    rig.send(MapRequest::open(own, true));
    let gone = rig.client;
    rig.mapper.client_gone(gone);
    rig.stalled = false;
    rig.run();
    assert_eq!(rig.mapper.sessions(), 0);
    rig.client = archipelago_mapper::ClientId(2);
    rig.open(own, true);
}

#[test]
fn a_catalogue_whose_head_is_lost_is_refused_not_begun_anew() {
    let mut rig = Rig::new(small());
    // Never opened: nothing but the catalogue's log tells of it.
    rig.create("v", 1 << 20, ObjectSize::MIN);
    let head = ObjectRequest::new(ObjectOp::Delete, ObjectId::head(Lineage::CATALOGUE));
    rig.pool.serve(&head, &[]);
    rig.power_cut(|| false);
    let failure = rig.mapper.failure().unwrap();
    assert_eq!(failure.code, ErrorCode::Damaged);
    assert!(failure.message.contains("its log holds names"), "{failure}");
}

#[test]
fn a_first_start_that_was_cut_short_is_begun_anew() {
    for written in [0, 32 << 10, 64 << 10] {
        let mut rig = Rig::new(small());
        rig.pool.begin_catalogue(written);
        rig.power_cut(|| false);
        assert!(rig.mapper.failure().is_none(), "{written}");
        rig.create("v", 1 << 20, ObjectSize::MIN);
    }
}

#[test]
fn an_entry_says_what_it_was_made_of_and_when() {
    let mut rig = Rig::new(small());
    let [volume, snapshot, clone, larger, import] = [(); 5].map(|()| rig.fresh());
    let entry = |text: &str, kind, lineage, size, parent: Option<&str>, created| Entry {
        name: name(text),
        kind,
        lineage,
        size,
        object_size: ObjectSize::MAX,
        parent: parent.map(name),
        created,
        on_full: OnFull::default(),
        labels: Labels::default(),
    };
    let create = |text: &str, lineage, kind, created| CatalogueRequest::Create {
        name: name(text),
        lineage,
        kind,
        size: 1 << 20,
        object_size: ObjectSize::MAX,
        created,
        on_full: OnFull::default(),
        labels: Labels::default(),
    };
    let cloned = |text: &str, lineage, size| CatalogueRequest::Clone {
        source: name("s"),
        name: name(text),
        lineage,
        size,
        created: 13,
        on_full: None,
        labels: Labels::default(),
    };
    let made = [
        (
            create("v", volume, Kind::Volume, 11),
            entry("v", Kind::Volume, volume, 1 << 20, None, 11),
        ),
        (
            CatalogueRequest::Snapshot {
                volume: name("v"),
                name: name("s"),
                lineage: snapshot,
                created: 12,
                labels: Labels::default(),
            },
            entry("s", Kind::Snapshot, snapshot, 1 << 20, Some("v"), 12),
        ),
        (
            cloned("c", clone, None),
            entry("c", Kind::Volume, clone, 1 << 20, Some("s"), 13),
        ),
        (
            cloned("d", larger, Some(2 << 20)),
            entry("d", Kind::Volume, larger, 2 << 20, Some("s"), 13),
        ),
        (
            create("i", import, Kind::Importing, 14),
            entry("i", Kind::Importing, import, 1 << 20, None, 14),
        ),
        (
            CatalogueRequest::Publish { name: name("i") },
            entry("i", Kind::Image, import, 1 << 20, None, 14),
        ),
    ];
    for (request, expected) in made.clone() {
        assert_eq!(rig.entry(request), expected);
    }
    rig.restart();
    for (_, expected) in made
        .into_iter()
        .filter(|(_, entry)| entry.kind != Kind::Importing)
    {
        let lookup = CatalogueRequest::Lookup {
            name: expected.name.clone(),
        };
        assert_eq!(rig.entry(lookup), expected);
    }
    let CatalogueReply::Pool {
        free,
        total,
        entries,
        provisioned,
    } = rig.control(CatalogueRequest::PoolInfo)
    else {
        panic!()
    };
    assert_eq!((free, total, entries), (5, 10, 5));
    assert_eq!(provisioned, 4 << 20, "two volumes of 1 MiB, one of 2 MiB");
    // As large as its source, and under its own name.
    let same = rig.fresh();
    assert_eq!(rig.entry(cloned("e", same, Some(1 << 20))).size, 1 << 20);
    let rename = |from: &str, to: &str| CatalogueRequest::Rename {
        from: name(from),
        to: name(to),
    };
    assert_eq!(rig.entry(rename("e", "e")).name, name("e"));
    for (request, code) in [
        (create("x", volume, Kind::Volume, 0), ErrorCode::Exists),
        (create("v", Lineage(77), Kind::Volume, 0), ErrorCode::Exists),
        (create("x", Lineage(77), Kind::Image, 0), ErrorCode::Invalid),
        (
            create("x", Lineage(77), Kind::Snapshot, 0),
            ErrorCode::Invalid,
        ),
        (
            cloned("x", Lineage(77), Some((1 << 20) - 512)),
            ErrorCode::Invalid,
        ),
        (
            CatalogueRequest::Publish { name: name("v") },
            ErrorCode::Invalid,
        ),
        (
            CatalogueRequest::Snapshot {
                volume: name("s"),
                name: name("x"),
                lineage: Lineage(77),
                created: 0,
                labels: Labels::default(),
            },
            ErrorCode::Invalid,
        ),
    ] {
        assert_eq!(rig.refused(request.clone()), code, "{request:?}");
    }
}

#[test]
fn a_volume_that_is_open_grows_and_does_not_shrink() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    let resize = |size, force| CatalogueRequest::Resize {
        name: name("v"),
        size,
        force,
    };
    assert_eq!(rig.entry(resize(1 << 20, false)).size, 1 << 20, "as it is");
    assert_eq!(rig.refused(resize((1 << 20) - 512, true)), ErrorCode::InUse);
    let (token, snapshot) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    assert_eq!(rig.entry(resize(2 << 20, false)).size, 2 << 20);
    rig.write(own, handle, 256, 9);
    rig.op(MapOp::SnapshotCommit, handle, token).result.unwrap();
    let entry = rig.entry(CatalogueRequest::Lookup { name: name("s") });
    assert_eq!(
        (entry.lineage, entry.size),
        (snapshot, 1 << 20),
        "as it was begun"
    );
    assert_eq!(rig.read(handle, 256), 9);
}

#[test]
fn no_two_prepared_snapshots_have_one_token() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    rig.create("w", 1 << 20, ObjectSize::MIN);
    let mut tokens = std::collections::BTreeSet::new();
    for _mapper in 0..3 {
        tokens.insert(rig.prepare("v", "s").0);
        tokens.insert(rig.prepare("w", "t").0);
        rig.restart();
    }
    assert_eq!(tokens.len(), 6);
}

#[test]
fn a_log_that_cannot_be_looked_at_is_not_begun_anew() {
    let mut rig = Rig::new(small());
    rig.create("v", 1 << 20, ObjectSize::MIN);
    let head = ObjectRequest::new(ObjectOp::Delete, ObjectId::head(Lineage::CATALOGUE));
    rig.pool.serve(&head, &[]);
    // There is no head, there are no volumes' objects, and then the length of the log is asked for.
    let before = rig.pool.log.len();
    rig.pool.fail = Some((before + 3, ErrorCode::Io));
    rig.restart();
    let asked: Vec<ObjectOp> = rig.pool.log[before..]
        .iter()
        .map(|(op, _, _)| *op)
        .collect();
    use ObjectOp::{List, ReadSwapped, Stat};
    assert_eq!(asked, [ReadSwapped, List, Stat]);
    assert!(!rig.mapper.is_ready());
}

#[test]
fn a_mapper_that_was_replaced_does_not_take_the_catalogue_back() {
    let mut rig = Rig::new(small());
    rig.create("before", 512, ObjectSize::MIN);
    // Another mapper of the same pool starts.
    let mut config = rig.config.clone();
    config.owner += 1;
    let successor = Rig::on(config, rig.pool.clone(), rig.journals.clone());
    rig.pool = successor.pool;
    let create = |rig: &mut Rig| {
        let lineage = Lineage(1 << 64 | 99);
        rig.refused(volume("late", lineage))
    };
    assert_eq!(create(&mut rig), ErrorCode::Stale);
    assert_eq!(create(&mut rig), ErrorCode::Stale, "asked again");
    rig.restart();
    assert_eq!(names(&list(&mut rig, "", None, 10)), ["before"]);
}
