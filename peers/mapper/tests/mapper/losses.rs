//! A sync that fails while a volume has no writer: what the last one had not flushed may be lost, and that is reported to
//! the next one, once, also if others have seen it before.

use archipelago_mapper::journal::JournalStore;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::map::{FLAG_DROP, MapOp, MapRequest};
use archipelago_protocol::object::ObjectOp;
use archipelago_protocol::{ErrorCode, Labels, Lineage, ObjectSize};

use crate::rig::pool::Room;
use crate::rig::{Rig, small};

/// How a volume comes to have no writer, with block 1 flushed and block 2 not.
#[derive(Debug, Clone, Copy)]
enum Death {
    /// The writer's process: the mapper has the volume in memory still.
    Client,
    /// The mapper's: there is a journal.
    Mapper,
}

const DEATHS: [Death; 2] = [Death::Client, Death::Mapper];

fn died(death: Death) -> (Rig, Lineage) {
    let (mut rig, own, _) = Rig::unflushed();
    match death {
        Death::Client => {
            rig.replace_client();
        }
        Death::Mapper => rig.restart(),
    }
    (rig, own)
}

/// Another volume's sync of the pool fails.
fn fail_sync(rig: &mut Rig) {
    let other = rig.create("other", 1 << 20, ObjectSize::MIN);
    let session = rig.open(other, true);
    rig.write(other, session, 1, 1);
    rig.stalled = true;
    let closed = rig.send(MapRequest::new(MapOp::Close, session));
    rig.step(ObjectOp::SyncPool, Some(ErrorCode::Io));
    rig.stalled = false;
    rig.run();
    let closed = rig.reply(closed).unwrap().result;
    assert_eq!(closed, Err(ErrorCode::SyncFailed));
}

fn open(rig: &mut Rig, own: Lineage, flags: u8) -> Result<u32, ErrorCode> {
    let mut request = MapRequest::open(own, true);
    request.flags |= flags;
    rig.ask(request).result
}

/// A writer has what is durable, and everybody after it.
fn has_what_is_durable(rig: &mut Rig, own: Lineage, handle: u32) {
    assert_eq!((rig.read(handle, 1), rig.read(handle, 2)), (1, 0));
    rig.write(own, handle, 3, 3);
    rig.flush(handle).unwrap();
    rig.close(handle);
    let handle = rig.open(own, true);
    assert_eq!((rig.read(handle, 1), rig.read(handle, 3)), (1, 3));
}

/// The next writer gets the loss reported, once, and then what is durable.
fn is_reported_once(rig: &mut Rig, own: Lineage, context: &str) {
    let reported = open(rig, own, 0);
    assert_eq!(reported, Err(ErrorCode::SyncFailed), "{context}");
    let handle = open(rig, own, 0).unwrap();
    has_what_is_durable(rig, own, handle);
}

fn snapshot_of(rig: &mut Rig, name: &str) -> CatalogueRequest {
    CatalogueRequest::Snapshot {
        volume: "v".parse().unwrap(),
        name: name.parse().unwrap(),
        lineage: rig.fresh(),
        created: 3,
        labels: Labels::default(),
    }
}

#[test]
fn a_loss_is_reported_to_the_next_writer_once() {
    for death in DEATHS {
        let (mut rig, own) = died(death);
        fail_sync(&mut rig);
        is_reported_once(&mut rig, own, &format!("{death:?}"));
    }
}

#[test]
fn a_loss_is_not_reported_to_a_writer_that_knows_of_it() {
    for death in DEATHS {
        let (mut rig, own) = died(death);
        fail_sync(&mut rig);
        let handle = open(&mut rig, own, FLAG_DROP).unwrap();
        has_what_is_durable(&mut rig, own, handle);
    }
}

#[test]
fn a_reader_or_a_snapshot_that_meets_a_loss_does_not_take_the_writers_report() {
    for death in DEATHS {
        for reads in [false, true] {
            let (mut rig, own) = died(death);
            fail_sync(&mut rig);
            let context = format!("{death:?}, reads: {reads}");
            if reads {
                let seen = rig.ask(MapRequest::open(own, false)).result;
                assert_eq!(seen, Err(ErrorCode::SyncFailed), "{context}");
                let reader = rig.open(own, false);
                assert_eq!((rig.read(reader, 1), rig.read(reader, 2)), (1, 0));
                rig.close(reader);
            } else {
                let snapshot = snapshot_of(&mut rig, "s");
                let seen = rig.refused(snapshot.clone());
                assert_eq!(seen, ErrorCode::SyncFailed, "{context}");
                rig.entry(snapshot);
            }
            is_reported_once(&mut rig, own, &context);
        }
    }
}

#[test]
fn a_snapshot_that_fails_itself_leaves_the_writer_its_report() {
    let mut losses = 0;
    for death in DEATHS {
        for request in 1..24 {
            let (mut rig, own) = died(death);
            let snapshot = snapshot_of(&mut rig, "s");
            rig.pool.fail = Some((rig.pool.log.len() + request, ErrorCode::Io));
            let made = rig.control(snapshot);
            rig.pool.fail = None;
            let opened = open(&mut rig, own, 0);
            let handle = match opened {
                Err(ErrorCode::SyncFailed) => open(&mut rig, own, 0).unwrap(),
                other => other.unwrap(),
            };
            let kept = rig.read(handle, 2) == 2;
            losses += u32::from(!kept);
            let context = format!("{death:?}, request {request}: {made:?}");
            assert!(kept || opened.is_err(), "{context}");
            assert!(!matches!(made, CatalogueReply::Entry(_)) || opened.is_ok());
            assert_eq!(rig.read(handle, 1), 1, "{context}");
        }
    }
    assert!(losses > 0, "no failure lost anything");
}

#[test]
fn what_failed_under_a_writer_that_died_is_reported_to_the_next_one() {
    for seen in [false, true] {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 20, ObjectSize::MIN);
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 1);
        rig.flush(handle).unwrap();
        rig.write(own, handle, 2, 2);
        // The append: nobody else's volume stops.
        rig.fail_flush(handle);
        // Whether it has read that answer, nobody knows.
        rig.replace_client();
        if seen {
            let snapshot = snapshot_of(&mut rig, "s");
            assert_eq!(rig.refused(snapshot), ErrorCode::SyncFailed);
        }
        is_reported_once(&mut rig, own, &format!("seen: {seen}"));
    }
}

#[test]
fn a_reader_of_what_has_no_room_to_end_is_no_writer() {
    for death in DEATHS {
        let (mut rig, own) = died(death);
        rig.pool.room = Room::None;
        let reader = rig.open(own, false);
        assert_eq!(rig.read(reader, 2), 2);
        rig.pool.room = Room::Enough;
        fail_sync(&mut rig);
        rig.op(MapOp::Close, reader, 0).result.unwrap();
        is_reported_once(&mut rig, own, &format!("{death:?}"));
    }
}

#[test]
fn a_sync_that_failed_for_another_mapper_of_the_process_is_everybodys() {
    let (mut rig, _, handle) = Rig::unflushed();
    // A sync of the pool of its own that is under way is not trusted.
    rig.stalled = true;
    let closed = rig.send(MapRequest::new(MapOp::Close, handle));
    rig.mapper.pool_sync_failed();
    rig.stalled = false;
    rig.run();
    let closed = rig.reply(closed).unwrap().result;
    assert_eq!(closed, Err(ErrorCode::SyncFailed));
    for death in DEATHS {
        for is_voided in [false, true] {
            let (mut rig, own) = died(death);
            if is_voided {
                // By the other mapper, which has been faster.
                rig.journals.remove(own);
            }
            rig.mapper.pool_sync_failed();
            let context = format!("{death:?}, voided: {is_voided}");
            is_reported_once(&mut rig, own, &context);
        }
    }
}

#[test]
fn a_volume_that_was_closed_has_lost_nothing_to_the_sync_of_another_mapper() {
    for death in DEATHS {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 20, ObjectSize::MIN);
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 1);
        rig.close(handle);
        rig.mapper.pool_sync_failed();
        let handle = rig.open(own, true);
        rig.write(own, handle, 2, 2);
        match death {
            Death::Client => {
                rig.replace_client();
            }
            // What this one suspects ends with it.
            Death::Mapper => rig.restart(),
        }
        let handle = rig.open(own, true);
        let found = (rig.read(handle, 1), rig.read(handle, 2));
        assert_eq!(found, (1, 2), "{death:?}");
    }
}
