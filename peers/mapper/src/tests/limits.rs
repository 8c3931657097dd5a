//! Limits of logs: what is the last that is legal, and what is not any more.

use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Epoch, Generation, Lineage};

use crate::format::Writer;
use crate::log::{
    BATCH_MAX, Content, Log, Record, RecordKind, UNIT, Wanted, Writers, batch_len, encode_batch,
    scan,
};

const US: Lineage = Lineage(5);

fn log(len: u64, start: u64, position: u64) -> Log {
    Log {
        id: ObjectId::log(US, 1),
        len,
        start,
        position,
        generation: Generation(1),
        token: Generation(1),
    }
}

#[test]
fn a_log_is_half_full_by_what_its_head_needs() {
    for (start, position, full) in [
        (0, 0, false),
        (0, 28 << 10, false),
        (0, 32 << 10, true),
        (0, 64 << 10, true),
        (1 << 30, (1 << 30) + (28 << 10), false),
        (1 << 30, (1 << 30) + (32 << 10), true),
    ] {
        let log = log(64 << 10, start, position);
        assert_eq!(log.is_half_full(), full, "{start} to {position}");
    }
}

#[test]
fn a_batch_is_whole_units_of_a_quarter_of_the_log_at_most() {
    let longest = |len, io_len_max| log(len, 0, 0).batch_max(io_len_max);
    assert_eq!(longest(64 << 10, 1 << 20), 16 << 10);
    assert_eq!(longest(68 << 10, 1 << 20), 16 << 10);
    assert_eq!(longest(80 << 10, 1 << 20), 20 << 10);
    assert_eq!(longest(1 << 30, 1 << 20), BATCH_MAX);
    assert_eq!(longest(1 << 30, 64 << 10), 64 << 10);
}

#[test]
fn room_is_left_for_the_end_of_the_circle() {
    let has_room = |used: u64, len| log(64 << 10, 4096, 4096 + used).has_room(len, 16 << 10);
    assert!(has_room(0, 48 << 10) && !has_room(0, (48 << 10) + 1));
    assert!(has_room(44 << 10, 4096) && !has_room(48 << 10, 4096));
}

#[test]
fn a_unit_holds_3904_bytes_of_which_72_are_the_head() {
    for (payload, blocks, len) in [
        (0, 0, 4096),
        (3832, 0, 4096),
        (3833, 0, 8192),
        (3832 + 3904, 0, 8192),
        (32, 1, 8192),
        (3640, 1, 8192),
        (3641, 1, 12288),
    ] {
        assert_eq!(batch_len(payload, blocks), len, "{payload} and {blocks}");
    }
}

#[test]
fn a_log_is_whole_units_and_so_is_where_it_starts() {
    let batch = encode_batch(
        US,
        Generation(1),
        0,
        &Content::records(vec![1; 32]),
        4 * UNIT,
    );
    let checked = |len: usize, start| {
        let wanted = Wanted {
            lineage: US,
            start,
            writers: Writers::Nodes,
        };
        let found = scan(&batch[..len], wanted);
        found.map(|found| found.contents.len())
    };
    assert_eq!(checked(4 * UNIT, 0), Ok(1));
    for (len, start) in [(0, 0), (UNIT - 512, 0), (4 * UNIT, 512), (UNIT - 512, 512)] {
        let why = checked(len, start).unwrap_err();
        let why = why.to_string();
        assert!(why.contains("not multiples"), "{len} from {start}: {why}");
    }
}

#[test]
fn a_record_is_for_blocks_of_the_largest_volume() {
    const END: u64 = 1 << 38;
    let checked = |start, blocks| {
        let record = Record {
            kind: RecordKind::Present,
            blocks,
            start,
            epoch: Epoch(1),
            sequence: 1,
        };
        let mut bytes = Writer::bare();
        record.encode(&mut bytes);
        Record::decode_all(&bytes.into_bytes()).is_ok()
    };
    for (start, blocks, legal) in [
        (0, 1, true),
        (END - 1, 1, true),
        (END - 1, 2, false),
        (END, 0, true),
        (END, 1, false),
        (END + 1, 0, false),
        (u64::MAX, 1, false),
    ] {
        assert_eq!(checked(start, blocks), legal, "{blocks} from {start} on");
    }
}
