//! A sync that fails while a volume has no writer: what the last one had not flushed may be lost, and the next one is told
//! once, whoever has seen it before.

use archipelago_mapper::ClientId;
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
    let mut rig = Rig::new(small());
    let own = rig.create("v", 1 << 20, ObjectSize::MIN);
    let handle = rig.open(own, true);
    rig.write(own, handle, 1, 1);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 2, 2);
    match death {
        Death::Client => {
            rig.mapper.client_gone(rig.client);
            rig.client = ClientId(2);
            rig.run();
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
fn the_next_writer_is_told_once() {
    for death in DEATHS {
        let (mut rig, own) = died(death);
        fail_sync(&mut rig);
        let told = open(&mut rig, own, 0);
        assert_eq!(told, Err(ErrorCode::SyncFailed), "{death:?}");
        let handle = open(&mut rig, own, 0).unwrap();
        has_what_is_durable(&mut rig, own, handle);
    }
}

#[test]
fn a_writer_that_knows_is_not_told() {
    for death in DEATHS {
        let (mut rig, own) = died(death);
        fail_sync(&mut rig);
        let handle = open(&mut rig, own, FLAG_DROP).unwrap();
        has_what_is_durable(&mut rig, own, handle);
    }
}

#[test]
fn who_sees_a_loss_before_the_writer_takes_no_report_from_it() {
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
            let told = open(&mut rig, own, 0);
            assert_eq!(told, Err(ErrorCode::SyncFailed), "{context}");
            let handle = open(&mut rig, own, 0).unwrap();
            has_what_is_durable(&mut rig, own, handle);
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
            let told = open(&mut rig, own, 0);
            let handle = match told {
                Err(ErrorCode::SyncFailed) => open(&mut rig, own, 0).unwrap(),
                opened => opened.unwrap(),
            };
            let kept = rig.read(handle, 2) == 2;
            losses += u32::from(!kept);
            let context = format!("{death:?}, request {request}: {made:?}");
            assert!(kept || told.is_err(), "{context}");
            assert!(!matches!(made, CatalogueReply::Entry(_)) || told.is_ok());
            assert_eq!(rig.read(handle, 1), 1, "{context}");
        }
    }
    assert!(losses > 0, "no failure lost anything");
}

#[test]
fn what_failed_under_a_writer_that_died_is_told_to_the_next_one() {
    for seen in [false, true] {
        let mut rig = Rig::new(small());
        let own = rig.create("v", 1 << 20, ObjectSize::MIN);
        let handle = rig.open(own, true);
        rig.write(own, handle, 1, 1);
        rig.flush(handle).unwrap();
        rig.write(own, handle, 2, 2);
        // The append: nobody else's volume stops.
        rig.pool.fail = Some((rig.pool.log.len() + 2, ErrorCode::Io));
        assert_eq!(rig.flush(handle), Err(ErrorCode::SyncFailed));
        rig.pool.fail = None;
        // Whether it has read that answer, nobody knows.
        rig.mapper.client_gone(rig.client);
        rig.client = ClientId(2);
        if seen {
            let snapshot = snapshot_of(&mut rig, "s");
            assert_eq!(rig.refused(snapshot), ErrorCode::SyncFailed);
        }
        let told = open(&mut rig, own, 0);
        assert_eq!(told, Err(ErrorCode::SyncFailed), "seen: {seen}");
        let handle = open(&mut rig, own, 0).unwrap();
        has_what_is_durable(&mut rig, own, handle);
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
        let told = open(&mut rig, own, 0);
        assert_eq!(told, Err(ErrorCode::SyncFailed), "{death:?}");
        let handle = open(&mut rig, own, 0).unwrap();
        has_what_is_durable(&mut rig, own, handle);
    }
}
