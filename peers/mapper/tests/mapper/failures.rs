//! What fails on the way to the disk: who gets an error, and what is still there.

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::map::{FLAG_DROP, MapOp, MapRequest};
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::{ErrorCode, ObjectSize};

use crate::rig::{Rig, small, volume};

#[test]
fn a_failed_append_is_final_until_reopened() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 2, 2);
    rig.fail_flush(handle);
    assert_eq!(
        rig.op(MapOp::FlushBegin, handle, 0).result,
        Err(ErrorCode::SyncFailed)
    );
    assert_eq!(
        rig.locate(handle, 1, 1, false).result,
        Err(ErrorCode::SyncFailed)
    );
    assert_eq!(rig.op(MapOp::Abandon, handle, 0).result, Ok(0));
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 1), 1);
    assert_eq!(rig.read(handle, 2), 0, "what was not durable was dropped");
}

#[test]
fn lack_of_space_changes_nothing_and_passes() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 1, 1);
    let (token, _) = rig.prepare("v", "s");
    rig.op(MapOp::SnapshotBegin, handle, token).result.unwrap();
    rig.sync();
    // The freeze is logged; the pages find no room.
    rig.pool.fail = Some((rig.pool.log.len() + 2, ErrorCode::NoSpace));
    assert_eq!(
        rig.op(MapOp::SnapshotCommit, handle, token).result,
        Err(ErrorCode::NoSpace)
    );
    rig.pool.fail = Some((rig.pool.log.len() + 2, ErrorCode::NoSpace));
    rig.write(own, handle, 2, 2);
    rig.pool.fail = Some((rig.pool.log.len() + 2, ErrorCode::NoSpace));
    assert_eq!(rig.flush(handle), Err(ErrorCode::NoSpace));
    rig.pool.fail = None;
    rig.flush(handle).unwrap();
    rig.snapshot(handle, "v", "s");
    let lineage = rig.fresh();
    let create = volume("w", lineage);
    rig.pool.fail = Some((rig.pool.log.len() + 1, ErrorCode::NoSpace));
    assert_eq!(rig.refused(create.clone()), ErrorCode::NoSpace);
    rig.entry(create);
}

/// A volume that was written, closed and removed; the requests to the pool that the removal took.
fn removed(rig: &mut Rig, name: &str) -> Vec<(ObjectOp, ObjectKind)> {
    let own = rig.create(name, 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 0, 1);
    rig.close(handle);
    let from = rig.pool.log.len();
    let removal = CatalogueRequest::Remove {
        name: name.parse().unwrap(),
    };
    assert!(matches!(rig.control(removal), CatalogueReply::Done));
    let took = rig.pool.log[from..].iter();
    took.map(|(op, id, _)| (*op, id.kind)).collect()
}

#[test]
fn a_removed_volume_is_forgotten_when_its_deletion_is_durable() {
    let mut rig = Rig::new(small());
    let took = removed(&mut rig, "v");
    let after_doom = took
        .iter()
        .skip_while(|(op, _)| *op != ObjectOp::DeleteLineage);
    let order: Vec<ObjectOp> = after_doom.map(|(op, _)| *op).collect();
    assert_eq!(
        order,
        [
            ObjectOp::DeleteLineage,
            ObjectOp::SyncPool,
            ObjectOp::Append // forgotten
        ]
    );
}

#[test]
fn a_failed_sync_of_the_pool_stops_every_volume() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 3, 7);
    assert!(rig.flush(handle).is_ok());
    let took = removed(&mut rig, "first");
    let sync = took.iter().position(|(op, _)| *op == ObjectOp::SyncPool);
    // The same again, and this time the sync fails: it is nobody's in particular, so it is everybody's.
    let second = rig.create("second", 1 << 20, ObjectSize::MIN);
    let session = rig.open(second, true);
    rig.write(second, session, 0, 1);
    rig.close(session);
    rig.pool.fail = Some((rig.pool.log.len() + 1 + sync.unwrap(), ErrorCode::Io));
    let removal = CatalogueRequest::Remove {
        name: "second".parse().unwrap(),
    };
    assert!(matches!(rig.control(removal), CatalogueReply::Done));
    rig.pool.fail = None;
    let asked = rig.locate(handle, 3, 1, true).result;
    assert_eq!(asked, Err(ErrorCode::SyncFailed));
    rig.op(MapOp::Abandon, handle, 0).result.unwrap();
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 3), 7, "what was flushed is there");
}

#[test]
fn a_failed_sync_of_the_pool_voids_what_journals_know() {
    let (mut rig, own, _) = Rig::unflushed();
    let other = rig.create("other", 1 << 20, ObjectSize::MIN);
    let session = rig.open(other, true);
    rig.write(other, session, 1, 1);
    rig.stalled = true;
    rig.send(MapRequest::new(MapOp::Close, session));
    rig.step(ObjectOp::SyncPool, Some(ErrorCode::Io));
    // The mapper dies before it reports to anybody. What the sync lost is not known: nothing that was not flushed counts.
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!((rig.read(handle, 1), rig.read(handle, 2)), (1, 0));
}

#[test]
fn a_session_that_was_lost_is_dropped_when_its_successor_says_so() {
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 2, 2);
    // A sync failed, and the mapper died before it knew: the journal speaks for data that may be gone.
    rig.restart();
    let mut request = MapRequest::open(own, true);
    request.flags |= FLAG_DROP;
    let handle = rig.ask(request).result.unwrap();
    assert_eq!((rig.read(handle, 1), rig.read(handle, 2)), (1, 0));
}

#[test]
fn a_sync_that_fails_beside_a_recovery_costs_it_nothing_that_its_own_made_durable() {
    for own_first in [true, false] {
        let mut rig = Rig::new(small());
        let [mine, other] = ["mine", "other"].map(|name| {
            let own = rig.create(name, 1 << 20, ObjectSize::MIN);
            let handle = rig.open(own, true);
            rig.write(own, handle, 3, 7);
            own
        });
        rig.restart();
        rig.stalled = true;
        let first = if own_first { mine } else { other };
        let second = if own_first { other } else { mine };
        let tags = [first, second].map(|lineage| rig.send(MapRequest::open(lineage, true)));
        // Both have read their heads, seal their logs and sync the pool; of the two syncs the second one fails.
        for op in [ObjectOp::ReadSwapped, ObjectOp::Seal] {
            rig.step(op, None);
            rig.step(op, None);
        }
        if own_first {
            rig.step(ObjectOp::SyncPool, None);
            rig.step(ObjectOp::SyncPool, Some(ErrorCode::Io));
        } else {
            // Reported, because what it had not flushed may have been dropped before its own sync.
            rig.step(ObjectOp::SyncPool, Some(ErrorCode::Io));
            rig.step(ObjectOp::SyncPool, None);
        }
        rig.stalled = false;
        rig.run();
        let of_mine = tags[usize::from(!own_first)];
        let opened = rig.reply(of_mine).unwrap().result;
        if own_first {
            assert_eq!(rig.read(opened.unwrap(), 3), 7);
            let abandoned = rig.op(MapOp::Abandon, opened.unwrap(), 0);
            assert!(abandoned.result.is_ok());
            assert!(
                rig.ask(MapRequest::open(mine, true)).result.is_ok(),
                "nothing is left to be reported"
            );
        } else {
            assert_eq!(opened, Err(ErrorCode::SyncFailed));
        }
    }
}
