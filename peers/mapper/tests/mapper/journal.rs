//! The presence journal: what is found after a death at any byte.

use archipelago_doubles::JournalBytes;
use archipelago_mapper::journal::{
    HEAD_LEN, Journal, JournalArea, JournalFull, JournalMemory, JournalRecord, Recovered, SLOT_LEN,
    SLOTS_AT, len_for, load,
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

/// What is found of this boot and lineage.
fn found(memory: &JournalBytes, boot: u128, lineage: Lineage) -> Option<Recovered> {
    load(memory, boot, lineage).unwrap()
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
    let recovered = found(&memory, 7, US).unwrap();
    assert_eq!(recovered.generation, Generation(2));
    assert_eq!(recovered.records, (3..=6).map(record).collect::<Vec<_>>());
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
        found(&memory, 7, US).unwrap().records,
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
        found(&memory, 7, US).unwrap().records,
        vec![record(3), record(4)]
    );
}

#[test]
fn another_boot_lineage_or_generation_finds_nothing() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    journal.append(record(1)).unwrap();
    assert_eq!(found(&memory, 8, US), None);
    assert_eq!(found(&memory, 7, Lineage(4)), None);
    JournalArea::create(memory.clone(), 7, US, Generation(3));
    assert!(found(&memory, 7, US).unwrap().records.is_empty());
    assert_eq!(found(&area(0), 7, US), None);
}

#[test]
fn a_death_inside_a_mark_leaves_the_one_before_it() {
    let memory = area(4);
    let mut journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
    let logged = || found(&memory, 7, US).unwrap().logged;
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
    assert_eq!(found(&memory, 7, US).unwrap().records, vec![record(1)]);
    let none = area(0);
    let mut journal = JournalArea::create(none.clone(), 7, US, Generation(2));
    assert_eq!(journal.append(record(1)), Err(JournalFull));
    assert_eq!(found(&none, 7, US), None);
}

#[test]
fn a_journal_of_another_version_is_void_of_another_boot_only() {
    // Version at 8, boot id right behind the envelope, which had 40 bytes before version 3; features at 20.
    for (version, features, boot_at) in [(2, 0, 40), (4, 0, 48), (3, 1 << 31, 48)] {
        let memory = area(4);
        let _journal = JournalArea::create(memory.clone(), 7, US, Generation(2));
        let mut head = [0; HEAD_LEN];
        memory.read(0, &mut head);
        head[8] = version;
        head[20..24].copy_from_slice(&u32::to_le_bytes(features));
        head[40..64].fill(0);
        head[boot_at + 8] = 7;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), &head[20..]);
        head[16..20].copy_from_slice(&crc.to_le_bytes());
        memory.clone().write(0, &head);
        let unsupported = load(&memory, 7, US).unwrap_err();
        assert!(
            unsupported.to_string().contains("this program"),
            "{unsupported}"
        );
        assert_eq!(load(&memory, 8, US), Ok(None), "void since the reboot");
    }
}
