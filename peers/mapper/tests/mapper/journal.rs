//! The presence journal: what is found after a death at any byte.

use archipelago_doubles::JournalBytes;
use archipelago_mapper::journal::{
    HEAD_LEN, Journal, JournalArea, JournalFull, JournalMemory, JournalRecord, SLOT_LEN, SLOTS_AT,
    len_for, load,
};
use archipelago_protocol::{Epoch, Generation, Lineage};

const US: Lineage = Lineage(3);

fn record(sequence: u64) -> JournalRecord {
    JournalRecord {
        sequence,
        start: sequence * 10,
        blocks: 2,
        epoch: Epoch(1),
        zero: sequence.is_multiple_of(3),
    }
}

fn area(slots: usize) -> JournalBytes {
    JournalBytes::new(vec![0; len_for(slots)])
}

#[test]
fn records_are_found_in_order_also_after_the_circle_closed() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    for sequence in 1..=4 {
        journal.append(record(sequence)).unwrap();
    }
    assert_eq!(journal.append(record(5)), Err(JournalFull));
    journal.truncate(2);
    journal.append(record(5)).unwrap();
    journal.append(record(6)).unwrap();
    assert_eq!(journal.append(record(7)), Err(JournalFull));
    let found = load(&memory, 7, US).unwrap();
    assert_eq!(found.generation, Generation(2));
    assert_eq!(found.records, (3..=6).map(record).collect::<Vec<_>>());
}

#[test]
fn a_death_inside_an_append_loses_only_that_record() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    for sequence in 1..=3 {
        journal.append(record(sequence)).unwrap();
    }
    memory.flip(SLOTS_AT + SLOT_LEN * 3 + 20, 1);
    assert_eq!(
        load(&memory, 7, US).unwrap().records,
        vec![record(1), record(2)]
    );
}

#[test]
fn what_lies_before_damage_is_not_replayed_without_what_was_damaged() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    for sequence in 1..=4 {
        journal.append(record(sequence)).unwrap();
    }
    memory.flip(SLOTS_AT + SLOT_LEN * 2 + 20, 1);
    assert_eq!(
        load(&memory, 7, US).unwrap().records,
        vec![record(3), record(4)]
    );
}

#[test]
fn another_boot_lineage_or_generation_finds_nothing() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    journal.append(record(1)).unwrap();
    assert_eq!(load(&memory, 8, US), None);
    assert_eq!(load(&memory, 7, Lineage(4)), None);
    JournalArea::create(memory.clone(), 7, US, Generation(3));
    assert!(load(&memory, 7, US).unwrap().records.is_empty());
    assert_eq!(load(&area(0), 7, US), None);
}

#[test]
fn a_death_inside_a_mark_leaves_the_one_before_it() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    let logged = || load(&memory, 7, US).unwrap().logged;
    assert_eq!(logged(), None);
    journal.mark(4096);
    assert_eq!(logged(), Some(4096));
    journal.mark(8192);
    journal.mark(12288);
    assert_eq!(logged(), Some(12288));
    memory.flip(HEAD_LEN + 20, 1);
    assert_eq!(logged(), Some(8192));
    // Those of an older session say nothing of this one's.
    JournalArea::create(memory.clone(), 7, US, Generation(3));
    assert_eq!(logged(), None);
}

#[test]
fn memory_without_room_for_a_record_is_no_journal() {
    let memory = area(1);
    assert_eq!(memory.size(), len_for(1) as u64);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    journal.append(record(1)).unwrap();
    assert_eq!(journal.append(record(2)), Err(JournalFull));
    assert_eq!(load(&memory, 7, US).unwrap().records, vec![record(1)]);
    let none = area(0);
    let mut journal = JournalArea::create(none.clone(), 7, US, Generation(2));
    assert_eq!(journal.append(record(1)), Err(JournalFull));
    assert_eq!(load(&none, 7, US), None);
}
