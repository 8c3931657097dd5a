//! What a replay reads of an object, and what it refuses before.

use std::rc::Rc;

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectOp, ObjectReply};

use super::*;
use crate::task::Scheduler;
use crate::tests::run_task;
use archipelago_protocol::log_sector::blank;

const US: Lineage = Lineage(5);
const UNITS: u64 = 16;
const LEN: u64 = UNITS * UNIT as u64;

/// A log of 16 units that holds batches of a unit each, from unit `start` on.
fn log(start: u64, batches: u64) -> (Log, Vec<u8>) {
    let mut bytes = blank(US, 0..LEN);
    for unit in start..start + batches {
        let content = Content::records(vec![1; 8]);
        let batch = encode_batch(US, Generation(3), unit * UNIT as u64, &content, 0);
        let at = usize::try_from(unit % UNITS).unwrap() * UNIT;
        bytes[at..at + UNIT].copy_from_slice(&batch);
    }
    let log = Log {
        id: ObjectId::log(US, 1),
        len: LEN,
        start: start * UNIT as u64,
        position: 0,
        generation: Generation(3),
        token: Generation(3),
    };
    (log, bytes)
}

/// How many batches a replay finds that knows of those up to unit `known`, and how many units it reads.
fn replayed((mut log, bytes): (Log, Vec<u8>), known: u64) -> (Outcome<usize>, usize) {
    let scheduler = Rc::new(Scheduler::default());
    let disk = Rc::new(Disk::new(&scheduler, 1 << 20));
    let task = Rc::clone(&disk);
    let replay = async move {
        let writers = log.of_session();
        let reach = Reach::AtLeast(known * UNIT as u64);
        let contents = log.replay(&task, writers, reach).await;
        contents.map(|contents| contents.len())
    };
    let mut read = 0;
    let found = run_task(&scheduler, &disk, replay, |request| {
        if request.op == ObjectOp::Stat {
            let values = [LEN, LEN];
            let reply = ObjectReply {
                values,
                ..ObjectReply::done(0)
            };
            return (reply, Vec::new());
        }
        let at = usize::try_from(request.offset).unwrap();
        let piece = bytes[at..][..request.len as usize].to_vec();
        read += piece.len() / UNIT;
        (ObjectReply::done(request.len), piece)
    });
    (found, read)
}

#[test]
fn what_is_known_is_read_and_one_append_more() {
    for start in [0, 4, UNITS * 7 - 2] {
        // All that is known, an append that was in flight, and no more than the circle.
        assert_eq!(replayed(log(start, 3), start + 3), (Ok(3), 4));
        assert_eq!(replayed(log(start, 3), start + 2), (Ok(3), 4));
        assert_eq!(replayed(log(start, UNITS), start + UNITS), (Ok(16), 16));
        // What is known of ends before the start: the head was written since.
        assert_eq!(replayed(log(start, 1), start.saturating_sub(3)), (Ok(1), 2));
    }
}

#[test]
fn what_is_known_cannot_be_more_than_the_circle() {
    for start in [0, 4, UNITS * 7 - 2] {
        for known in [start + UNITS + 1, start + 2 * UNITS, 1 << 50] {
            let (refused, read) = replayed(log(start, UNITS), known);
            let failure = refused.unwrap_err();
            assert_eq!((failure.code, read), (ErrorCode::Damaged, 0));
            assert!(failure.message.contains("cannot go on"), "{failure:?}");
        }
    }
}
