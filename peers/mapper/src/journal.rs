//! The presence journal: what became present and is not logged yet, in memory that outlives the process.
//!
//! The mapper says what to keep; a shell gives the memory ([`JournalMemory`], a mapped file in the run directory); the
//! record format in between is here ([`JournalArea`]), so that it is tested without a file. It survives the death of
//! every process of ours, and is void after a power cut: the boot id tells.
//!
//! Layout: 128 bytes head (envelope, boot id 16 bytes, at this place in every later version, generation u64, slots u64); two marks of 24 bytes: crc u32, 0 u32,
//! generation u64, position u64; then slots of 48 bytes: crc u32, kind u8, 3 × 0, blocks u32, 0 u32, sequence u64,
//! generation u64, first block u64, epoch u64. The record with sequence `n` stands in slot `n` modulo the count.
//!
//! Invariants
//! - A record is whole when `append` returns. A death inside `append` leaves a slot that fails its checksum.
//! - Marks are written by turns, so one of them is whole at any time: the log is durable up to there at least.
//! - Only what the log covers is overwritten. So the newest unbroken run of sequence numbers holds all that is needed,
//!   and replaying it in order is right even if the log has its older part already: the last word on each block wins.

use std::collections::BTreeMap;
use std::fmt;

use archipelago_protocol::{Epoch, ErrorCode, Generation, Lineage};

use crate::format::{ENVELOPE_LEN, Problem, Reader, Unreadable, Writer};

const MAGIC: [u8; 8] = *b"ARCHJRNL";
/// Bytes of the envelope in versions 1 and 2.
const ENVELOPE_LEN_BEFORE_3: usize = 40;
/// Bytes of the head; the marks follow.
pub const HEAD_LEN: usize = 128;
/// Bytes of a mark.
pub const MARK_LEN: usize = 24;
const MARKS: usize = 2;
/// Where the slots begin, right behind the marks.
pub const SLOTS_AT: usize = HEAD_LEN + MARKS * MARK_LEN;
/// Bytes of a slot.
pub const SLOT_LEN: usize = 48;

/// Bytes of a journal with room for `records`.
#[must_use]
pub const fn len_for(records: usize) -> usize {
    SLOTS_AT + records * SLOT_LEN
}

/// A first write, or blocks that became zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalRecord {
    /// Counts without gaps from 1 in each generation.
    pub sequence: u64,
    /// First block.
    pub start: u64,
    /// How many.
    pub blocks: u32,
    /// Where they are present; for zeros, the epoch of the time.
    pub epoch: Epoch,
    /// Zeros instead of presence.
    pub zero: bool,
}

/// The journal has no room: what it holds must be logged first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the presence journal is full")]
pub struct JournalFull;

/// A journal of this boot that another version of the program wrote. It may hold writes that were acknowledged, so it is not
/// ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct UnsupportedJournal {
    why: String,
}

/// What a journal held when its process died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Of the session that wrote it.
    pub generation: Generation,
    /// The position up to which its log is durable, or one shortly before that; `None`: no mark is whole.
    pub logged: Option<u64>,
    /// In order, without gaps.
    pub records: Vec<JournalRecord>,
}

/// The journal of an open volume.
pub trait Journal: fmt::Debug {
    /// Adds a record. It survives the death of this process from the return on.
    ///
    /// # Errors
    /// [`JournalFull`]; nothing changed.
    fn append(&mut self, record: JournalRecord) -> Result<(), JournalFull>;

    /// The records up to `sequence` are covered by the log.
    fn truncate(&mut self, sequence: u64);

    /// The log is durable up to `position`, which never falls: a replay need not look for more than what was in flight
    /// behind it, and finds damage if it does not get there.
    fn mark(&mut self, position: u64);
}

/// Where journals are.
pub trait JournalStore: fmt::Debug {
    /// Sees to it that [`JournalStore::open`] of `lineage` will have memory. Whatever an older journal holds stays.
    ///
    /// # Errors
    /// Why there is none; nothing changed.
    fn prepare(&mut self, _lineage: Lineage) -> Result<(), ErrorCode> {
        Ok(())
    }

    /// A new, empty journal of `generation`, in place of any older one of `lineage`.
    ///
    /// # Errors
    /// Why there is no memory for it; the volume is not opened then.
    fn open(
        &mut self,
        lineage: Lineage,
        generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode>;

    /// What the last journal of `lineage` holds, if it is of this boot.
    ///
    /// # Errors
    /// [`UnsupportedJournal`].
    fn load(&mut self, lineage: Lineage) -> Result<Option<Recovered>, UnsupportedJournal>;

    /// Whose journals are in use.
    fn in_use(&self) -> Vec<Lineage> {
        Vec::new()
    }

    /// Forgets the journal of `lineage`. Removing nothing is no error.
    fn remove(&mut self, lineage: Lineage);
}

/// Bytes that outlive the process. Written by this process only.
pub trait JournalMemory: fmt::Debug {
    /// How many.
    fn size(&self) -> u64;

    /// Copies bytes at `offset` out; inside the length.
    fn read(&self, offset: u64, into: &mut [u8]);

    /// Copies bytes to `offset`; inside the length.
    fn write(&mut self, offset: u64, bytes: &[u8]);
}

/// A journal in a piece of memory.
#[derive(Debug)]
pub struct JournalArea<M> {
    memory: M,
    generation: Generation,
    slots: u64,
    /// The oldest record that is still needed.
    tail: u64,
    /// The next record.
    next: u64,
    /// Where the next mark goes, the older one.
    next_mark: usize,
}

fn slots_in(len: u64) -> u64 {
    len.saturating_sub(SLOTS_AT as u64) / SLOT_LEN as u64
}

fn slot_at(slot: u64) -> u64 {
    SLOTS_AT as u64 + slot * SLOT_LEN as u64
}

fn mark_at(mark: usize) -> u64 {
    (HEAD_LEN + mark * MARK_LEN) as u64
}

impl<M: JournalMemory> JournalArea<M> {
    /// Makes `memory` the empty journal of a session. Its old content is void.
    pub fn create(mut memory: M, boot: u128, lineage: Lineage, generation: Generation) -> Self {
        let slots = slots_in(memory.size());
        let mut head = Writer::sealed(MAGIC, lineage);
        head.lineage(Lineage(boot));
        head.u64(generation.0);
        head.u64(slots);
        head.pad_to(HEAD_LEN);
        if slots > 0 {
            // Slots carry the generation: those of an older one need not be cleared.
            memory.write(0, &head.seal());
        }
        JournalArea {
            memory,
            generation,
            slots,
            tail: 1,
            next: 1,
            next_mark: 0,
        }
    }
}

/// What the journal in `memory` holds; `None`: none of this lineage and boot.
///
/// # Errors
/// [`UnsupportedJournal`].
pub fn load<M: JournalMemory>(
    memory: &M,
    boot: u128,
    lineage: Lineage,
) -> Result<Option<Recovered>, UnsupportedJournal> {
    if slots_in(memory.size()) == 0 {
        return Ok(None);
    }
    let mut head = [0; HEAD_LEN];
    memory.read(0, &mut head);
    let problem = match Reader::open(MAGIC, Some(lineage), &head) {
        Ok(opened) => return Ok(recovered(memory, opened.fields, boot)),
        Err(problem) => problem,
    };
    match Unreadable::from(problem) {
        Unreadable::Unsupported(why) if boot_of(&head, problem) == Some(boot) => {
            Err(UnsupportedJournal { why })
        }
        // Of another boot, or of nobody's.
        Unreadable::Unsupported(_) | Unreadable::Damaged(_) => Ok(None),
    }
}

/// The boot id in a head that has this `problem`. It stands right behind the envelope, which was shorter before version 3.
fn boot_of(head: &[u8; HEAD_LEN], problem: Problem) -> Option<u128> {
    let at = match problem {
        Problem::Version(1 | 2) => ENVELOPE_LEN_BEFORE_3,
        _ => ENVELOPE_LEN,
    };
    let lineage = Reader::new(&head[at..]).lineage()?;
    Some(lineage.0)
}

/// What the records behind a head say, whose fields are `head`.
fn recovered<M: JournalMemory>(memory: &M, mut head: Reader<'_>, boot: u128) -> Option<Recovered> {
    let slots = slots_in(memory.size());
    if head.lineage() != Some(Lineage(boot)) {
        return None;
    }
    let generation = Generation(head.u64()?);
    if head.u64() != Some(slots) {
        return None;
    }
    head.padding().ok()?;
    let mut found = BTreeMap::new();
    // In the order of the first round.
    for slot in (1..slots).chain([0]) {
        let mut bytes = [0; SLOT_LEN];
        memory.read(slot_at(slot), &mut bytes);
        if bytes == [0; SLOT_LEN] {
            // Never written, so those behind it were not either: most of a journal, most of the time.
            break;
        }
        if let Some(record) = decode_slot(&bytes, generation)
            && record.sequence % slots == slot
        {
            found.insert(record.sequence, record);
        }
    }
    // The newest unbroken run.
    let mut records: Vec<JournalRecord> = Vec::new();
    for (sequence, record) in found.into_iter().rev() {
        if records
            .last()
            .is_some_and(|newer| newer.sequence != sequence + 1)
        {
            break;
        }
        records.push(record);
    }
    records.reverse();
    let marks = (0..MARKS).filter_map(|mark| {
        let mut bytes = [0; MARK_LEN];
        memory.read(mark_at(mark), &mut bytes);
        decode_mark(&bytes, generation)
    });
    Some(Recovered {
        generation,
        logged: marks.max(),
        records,
    })
}

/// `fields` behind their checksum.
fn with_crc(fields: &[u8]) -> Vec<u8> {
    let mut bytes = crc32c::crc32c(fields).to_le_bytes().to_vec();
    bytes.extend_from_slice(fields);
    bytes
}

/// What stands behind a checksum that is right.
fn behind_crc(bytes: &[u8]) -> Option<Reader<'_>> {
    let mut fields = Reader::new(bytes);
    let crc = fields.u32()?;
    (crc32c::crc32c(fields.rest()) == crc).then_some(fields)
}

fn encode_mark(position: u64, generation: Generation) -> Vec<u8> {
    let mut mark = Writer::bare();
    mark.u32(0);
    mark.u64(generation.0);
    mark.u64(position);
    with_crc(&mark.into_bytes())
}

fn decode_mark(bytes: &[u8; MARK_LEN], generation: Generation) -> Option<u64> {
    let mut fields = behind_crc(bytes)?;
    fields.zeros(4)?;
    (fields.u64()? == generation.0).then_some(())?;
    fields.u64()
}

fn encode_slot(record: &JournalRecord, generation: Generation) -> Vec<u8> {
    let mut slot = Writer::bare();
    slot.u8(if record.zero { 2 } else { 1 });
    slot.bytes(&[0; 3]);
    slot.u32(record.blocks);
    slot.u32(0);
    slot.u64(record.sequence);
    slot.u64(generation.0);
    slot.u64(record.start);
    slot.u64(record.epoch.0);
    with_crc(&slot.into_bytes())
}

fn decode_slot(bytes: &[u8; SLOT_LEN], generation: Generation) -> Option<JournalRecord> {
    let mut fields = behind_crc(bytes)?;
    let zero = match fields.u8()? {
        1 => false,
        2 => true,
        _ => return None,
    };
    fields.zeros(3)?;
    let blocks = fields.u32()?;
    fields.zeros(4)?;
    let sequence = fields.u64()?;
    if fields.u64()? != generation.0 {
        return None;
    }
    let (start, epoch) = (fields.u64()?, Epoch(fields.u64()?));
    Some(JournalRecord {
        sequence,
        start,
        blocks,
        epoch,
        zero,
    })
}

impl<M: JournalMemory> Journal for JournalArea<M> {
    fn append(&mut self, record: JournalRecord) -> Result<(), JournalFull> {
        debug_assert_eq!(record.sequence, self.next);
        if self.next - self.tail >= self.slots {
            return Err(JournalFull);
        }
        self.memory.write(
            slot_at(record.sequence % self.slots),
            &encode_slot(&record, self.generation),
        );
        self.next += 1;
        Ok(())
    }

    fn truncate(&mut self, sequence: u64) {
        self.tail = self.tail.max(sequence.saturating_add(1)).min(self.next);
    }

    fn mark(&mut self, position: u64) {
        if self.slots == 0 {
            // Too little memory for any.
            return;
        }
        self.memory.write(
            mark_at(self.next_mark),
            &encode_mark(position, self.generation),
        );
        self.next_mark = (self.next_mark + 1) % MARKS;
    }
}

/// No memory that outlives the process: for a mapper that checks a pool and opens no volume for writing.
#[derive(Debug, Clone, Copy)]
pub struct NoJournals;

/// A journal that is always full.
#[derive(Debug)]
struct NoJournal;

impl JournalStore for NoJournals {
    fn open(
        &mut self,
        _lineage: Lineage,
        _generation: Generation,
    ) -> Result<Box<dyn Journal>, ErrorCode> {
        Ok(Box::new(NoJournal))
    }

    fn load(&mut self, _lineage: Lineage) -> Result<Option<Recovered>, UnsupportedJournal> {
        Ok(None)
    }

    fn remove(&mut self, _lineage: Lineage) {}
}

impl Journal for NoJournal {
    fn append(&mut self, _record: JournalRecord) -> Result<(), JournalFull> {
        Err(JournalFull)
    }

    fn truncate(&mut self, _sequence: u64) {}

    fn mark(&mut self, _position: u64) {}
}
