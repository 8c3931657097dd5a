//! A pool without room: what is there is read, whatever dies; writes are refused with a code that says why, and nothing
//! that was reported is lost.

use archipelago_mapper::ClientId;
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapRequest};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};

use crate::rig::pool::Room;
use crate::rig::{Rig, blocks_area};

const FULL: [Room; 2] = [Room::InPlace, Room::None];

/// A volume whose session has died: block 5 is flushed, 6 and the zeros at 7 are not, which had been flushed before.
fn died(room: Room) -> (Rig, Lineage) {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 5, 15);
    rig.write(own, handle, 7, 17);
    rig.flush(handle).unwrap();
    rig.write(own, handle, 6, 16);
    rig.zero(handle, 7, 1).result.unwrap();
    rig.pool.room = room;
    rig.restart();
    (rig, own)
}

fn blocks(rig: &mut Rig, handle: u32) -> [u64; 3] {
    [5, 6, 7].map(|block| rig.read(handle, block))
}

#[test]
fn a_session_that_died_in_a_full_pool_is_read_and_writes_when_there_is_room() {
    for room in FULL {
        let (mut rig, own) = died(room);
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
        let (token, _) = rig.prepare("v", "s");
        for (what, result) in [
            ("write", rig.locate(handle, 5, 1, true).result),
            ("zero", rig.zero(handle, 5, 1).result),
            ("flush", rig.op(MapOp::FlushBegin, handle, 0).result),
            (
                "snapshot",
                rig.op(MapOp::SnapshotBegin, handle, token).result,
            ),
        ] {
            assert_eq!(result, Err(ErrorCode::NoSpace), "{what}, {room:?}");
        }
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
        rig.pool.room = Room::Enough;
        assert!(rig.write(own, handle, 8, 18));
        rig.flush(handle).unwrap();
        // All that it had, and has now, is durable.
        rig.power_cut(|| false);
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
        assert_eq!(rig.read(handle, 8), 18);
    }
}

#[test]
fn requests_that_come_together_share_one_try() {
    let (mut rig, own) = died(Room::InPlace);
    let handle = rig.open(own, true);
    let before = rig.pool.log.len();
    rig.stalled = true;
    let locate = |block: u64| MapRequest {
        offset: block * 4096,
        len: 4096,
        flags: FLAG_WRITE,
        ..MapRequest::new(MapOp::Locate, handle)
    };
    let tags: Vec<u64> = (0..8).map(|block| rig.send(locate(block))).collect();
    rig.stalled = false;
    rig.run();
    for tag in tags {
        assert_eq!(rig.reply(tag).unwrap().result, Err(ErrorCode::NoSpace));
    }
    assert_eq!(rig.pool.log.len(), before + 1, "one write of pages");
}

#[test]
fn a_session_that_dies_before_it_has_begun_leaves_all_to_the_next() {
    for room in FULL {
        let (mut rig, own) = died(room);
        for _ in 0..3 {
            let handle = rig.open(own, true);
            rig.locate(handle, 5, 1, true).result.unwrap_err();
            rig.restart();
        }
        rig.pool.room = Room::Enough;
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
    }
}

#[test]
fn a_reader_opens_what_could_not_be_closed_for_want_of_room() {
    for room in FULL {
        let (mut rig, own) = died(room);
        for _ in 0..2 {
            let readers = [rig.open(own, false), rig.open(own, false)];
            for reader in readers {
                assert_eq!(blocks(&mut rig, reader), [15, 16, 0], "{room:?}");
            }
            let locate = rig.locate(readers[0], 5, 1, true);
            assert_eq!(locate.result, Err(ErrorCode::ReadOnly));
            let other = rig.ask(MapRequest::open(own, true)).result;
            assert_eq!(other, Err(ErrorCode::InUse));
            for reader in readers {
                rig.close(reader);
            }
        }
        // What readers saw is still all there.
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
        let closed = rig.op(MapOp::Close, handle, 0).result;
        assert_eq!(closed.is_ok(), room == Room::InPlace, "{closed:?}");
        rig.pool.room = Room::Enough;
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "{room:?}");
    }
}

#[test]
fn a_clone_made_with_the_last_room_is_read_before_it_was_ever_written() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 5, 15);
    rig.snapshot(handle, "v", "s");
    let clone = rig.clone_of("s", "c", None);
    rig.pool.room = Room::InPlace;
    let handle = rig.open(clone, true);
    assert_eq!([5, 6].map(|block| rig.read(handle, block)), [15, 0]);
    let locate = rig.locate(handle, 5, 1, true);
    assert_eq!(locate.result, Err(ErrorCode::NoSpace));
    rig.pool.room = Room::Enough;
    assert!(rig.write(clone, handle, 5, 25));
    assert_eq!(rig.read(handle, 5), 25);
}

#[test]
fn a_close_without_room_for_pages_leaves_all_of_it_in_the_log() {
    // Of a session that writes, and of one that has not begun.
    for begun in [true, false] {
        let (mut rig, own, handle) = if begun {
            let (mut rig, own, handle) = Rig::opened();
            rig.write(own, handle, 5, 15);
            rig.write(own, handle, 7, 17);
            rig.flush(handle).unwrap();
            rig.write(own, handle, 6, 16);
            rig.zero(handle, 7, 1).result.unwrap();
            rig.pool.room = Room::InPlace;
            (rig, own, handle)
        } else {
            let (mut rig, own) = died(Room::InPlace);
            let handle = rig.open(own, true);
            (rig, own, handle)
        };
        rig.close(handle);
        assert_eq!(rig.mapper.sessions(), 0);
        // Also without the journal, which is void after a boot.
        rig.power_cut(|| false);
        let handle = rig.open(own, true);
        assert_eq!(blocks(&mut rig, handle), [15, 16, 0], "begun: {begun}");
    }
}

#[test]
fn a_close_without_room_for_anything_loses_nothing_while_the_machine_lives() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 5, 15);
    rig.pool.room = Room::None;
    let closed = rig.op(MapOp::Close, handle, 0).result;
    assert_eq!(closed, Err(ErrorCode::NoSpace));
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 5), 15, "from memory");
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 5), 15, "from the journal");
    rig.pool.room = Room::Enough;
    assert!(rig.write(own, handle, 6, 16));
    assert_eq!([5, 6].map(|block| rig.read(handle, block)), [15, 16]);
}

#[test]
fn a_block_that_the_log_carries_is_not_put_over_a_newer_one_by_a_session_that_never_began() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 5, 15);
    // A first write beside, so that there are pages to be stored.
    rig.write(own, handle, 6, 16);
    let epoch = Epoch(rig.locate(handle, 5, 1, true).values[0]);
    rig.flush_with_data(handle, 0, blocks_area(epoch, &[5]))
        .unwrap();
    // Acknowledged, in place, and not flushed.
    rig.put(own, epoch, 5, 25);
    rig.pool.room = Room::InPlace;
    rig.restart();
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 5), 25);
    rig.close(handle);
    rig.power_cut(|| false);
    rig.pool.room = Room::Enough;
    let handle = rig.open(own, true);
    assert_eq!(
        rig.read(handle, 5),
        25,
        "an orderly close has made it durable"
    );
}

#[test]
fn what_a_vanished_client_left_is_read_though_nothing_has_room_for_it() {
    let (mut rig, own, handle) = Rig::opened();
    rig.write(own, handle, 5, 15);
    rig.pool.room = Room::None;
    let client = rig.client;
    rig.mapper.client_gone(client);
    rig.run();
    rig.client = ClientId(2);
    let reader = rig.open(own, false);
    assert_eq!(rig.read(reader, 5), 15);
    rig.close(reader);
    let handle = rig.open(own, true);
    assert_eq!(rig.read(handle, 5), 15);
    let locate = rig.locate(handle, 6, 1, true);
    assert_eq!(locate.result, Err(ErrorCode::NoSpace));
    rig.pool.room = Room::Enough;
    assert!(rig.write(own, handle, 6, 16));
    let place = rig.locate(handle, 7, 1, true);
    assert_eq!(place.values[0], (1 << 32) + 1, "an epoch of its own");
}

#[test]
fn what_is_acknowledged_has_room_in_the_log_for_a_close_that_finds_none_elsewhere() {
    // Flushed after so many writes; 0: never.
    for flush_after in [0, 1, 3, 40] {
        let (mut rig, own, handle) = Rig::opened();
        rig.write(own, handle, 0, 10);
        let epoch = Epoch(1 << 32);
        let (mut block, mut done) = (0, Ok(0));
        while done.is_ok() {
            block += 1;
            assert!(block < 10_000, "the log never gets full");
            // Far apart, so that no two records become one. Their data has room, nothing else has.
            rig.pool.room = Room::Enough;
            rig.put(own, epoch, 2 * block, block);
            rig.pool.room = Room::InPlace;
            done = rig.written(handle, 2 * block, 1, epoch).result;
            if done.is_ok() && flush_after > 0 && block % flush_after == 0 {
                // Without room it waits; what it covers is acknowledged as written.
                let _flushed = rig.flush(handle);
            }
        }
        assert_eq!(done, Err(ErrorCode::NoSpace));
        rig.close(handle);
        rig.power_cut(|| false);
        rig.pool.room = Room::Enough;
        let handle = rig.open(own, true);
        for written in 1..block {
            assert_eq!(rig.read(handle, 2 * written), written, "{flush_after}");
        }
    }
}

#[test]
fn tries_without_room_take_no_more_of_it_each_time() {
    let (mut rig, own) = died(Room::InPlace);
    let handle = rig.open(own, true);
    for _ in 0..50 {
        rig.locate(handle, 5, 1, true).result.unwrap_err();
    }
    rig.pool.room = Room::Enough;
    rig.write(own, handle, 8, 18);
    let end = rig.pool.len_of_packs(own);
    assert!(end <= 64 << 10, "pages end at byte {end} of their pack");
}
