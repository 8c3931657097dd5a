//! What a replay finds: the batches from the head's position on, and whether what stands behind the last is damage.
//!
//! Invariants
//! - What an append left torn was never acknowledged; what was acknowledged and is not whole is damage.
//! - Who knows how far a session had appended reads no further than the append that may have been in flight.

use std::ops::RangeInclusive;

use archipelago_protocol::log_sector::{SECTOR_LEN, Sector, UNIT, first_damaged};
use archipelago_protocol::{Generation, Lineage};

use super::batch::{Content, POSITION_MAX, decode, units_of};
use crate::format::{Problem, Unreadable};

/// Which batches a replay takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) lineage: Lineage,
    /// From this position on.
    pub(crate) start: u64,
    pub(crate) writers: Writers,
}

/// Who appends to a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writers {
    /// One session after the other: generations only rise, from the `oldest` to the `newest`. Others are leftovers.
    Sessions {
        oldest: Generation,
        newest: Generation,
    },
    /// Several at a time, each with a generation of its own: whatever was appended belongs to the log.
    Nodes,
}

impl Writers {
    /// Generations that a batch may have behind one of generation `last`, or as the first.
    fn after(self, last: Option<u64>) -> RangeInclusive<u64> {
        match self {
            Writers::Sessions { oldest, newest } => last.unwrap_or(oldest.0)..=newest.0,
            Writers::Nodes => 0..=u64::MAX,
        }
    }
}

/// What a replay found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// What the batches say, in order.
    pub(crate) contents: Vec<Content>,
    /// The position behind the last.
    pub(crate) end: u64,
}

/// What a replay found that does not have the whole log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Found(Scan),
    /// It needs what lies before this position, too.
    ReadOn(u64),
}

/// Checks the end of the batches, at `place` of the whole `log`: whether an append may have been torn there, or none was.
///
/// An acknowledged batch had all of its sectors as they should be. If its first one is not whole, or another one of as
/// many as it says, that is damage; if it is what was there before, nothing was acknowledged.
fn judge_end(log: &[u8], lineage: Lineage, place: usize, end: u64) -> Result<(), usize> {
    let damaged = |len: usize| first_damaged(log, lineage, place..log.len().min(place + len));
    if let Some(at) = damaged(SECTOR_LEN) {
        return Err(at);
    }
    damaged(begun_len(log, lineage, place, end)).map_or(Ok(()), Err)
}

/// As many bytes as the batch at position `end`, at `place` of the `log`, says that it has; 0: none begins there.
fn begun_len(log: &[u8], lineage: Lineage, place: usize, end: u64) -> usize {
    let begun = Sector::open(&log[place..], lineage).filter(|first| first.is_of(end, 0));
    let units = begun.and_then(|first| units_of(&first).ok()).unwrap_or(0);
    units.saturating_mul(UNIT)
}

/// Finds the batches in the `bytes` of a whole log. What follows a torn or missing batch is its tail.
///
/// # Errors
/// What is damaged: a bad batch with a valid one behind it, a last one that no torn append leaves so, or one that this
/// program cannot read.
pub(crate) fn scan(bytes: &[u8], wanted: Wanted) -> Result<Scan, Unreadable> {
    let (found, end) = batches(bytes, wanted)?;
    let Some(why) = end else { return Ok(found) };
    let len = bytes.len() as u64;
    let generations = wanted.writers.after(None);
    let mut later = found.end + UNIT as u64;
    while later < wanted.start + len {
        let place = usize::try_from(later % len).expect("inside the bytes");
        let batch = decode(&bytes[place..], wanted.lineage, later);
        if batch.is_ok_and(|batch| generations.contains(&batch.generation)) {
            let bad = found.end;
            return Err(Unreadable::Damaged(format!(
                "the batch at position {bad} is bad ({why}), one at {later} follows it"
            )));
        }
        later += UNIT as u64;
    }
    checked(bytes, wanted, found)
}

/// The same in a log of which `bytes` holds what lies before position `read_to`, and zeros in place of the rest. Its batches
/// are known to go on to `known` at least.
///
/// # Errors
/// What is damaged: a bad batch before `known`, a last one that no torn append leaves so, or one that this program cannot read.
pub(crate) fn scan_known(
    bytes: &[u8],
    wanted: Wanted,
    known: u64,
    read_to: u64,
) -> Result<Step, Unreadable> {
    let (found, end) = batches(bytes, wanted)?;
    let Some(why) = end else {
        return Ok(Step::Found(found));
    };
    let len = bytes.len() as u64;
    let place = usize::try_from(found.end % len).expect("inside the bytes");
    let begun = begun_len(bytes, wanted.lineage, place, found.end).max(UNIT) as u64;
    let needed = found.end.saturating_add(begun).min(wanted.start + len);
    if needed > read_to {
        return Ok(Step::ReadOn(needed));
    }
    if found.end < known {
        return Err(Unreadable::Damaged(format!(
            "the batch at position {} is bad ({why}), and batches were appended up to {known}",
            found.end
        )));
    }
    checked(bytes, wanted, found).map(Step::Found)
}

/// What was found, if nothing is wrong with its end.
fn checked(bytes: &[u8], wanted: Wanted, found: Scan) -> Result<Scan, Unreadable> {
    let place = found.end % bytes.len() as u64;
    let place = usize::try_from(place).expect("inside the bytes");
    match judge_end(bytes, wanted.lineage, place, found.end) {
        Ok(()) => Ok(found),
        Err(at) => Err(Unreadable::Damaged(format!(
            "its last batch, at position {}, is no torn append: the sector at byte {at} is not what was ever written there",
            found.end
        ))),
    }
}

/// The batches from the start on, and why what follows the last is none; `None`: the circle is full.
fn batches(bytes: &[u8], wanted: Wanted) -> Result<(Scan, Option<Problem>), Unreadable> {
    let Wanted { lineage, start, .. } = wanted;
    let len = bytes.len() as u64;
    if len == 0 || !len.is_multiple_of(UNIT as u64) || !start.is_multiple_of(UNIT as u64) {
        return Err(Unreadable::Damaged(format!(
            "length {len} and start {start} are not multiples of {UNIT}"
        )));
    }
    if start > POSITION_MAX {
        return Err(Unreadable::Damaged(format!(
            "start {start} is beyond {POSITION_MAX}"
        )));
    }
    let at = |position: u64| {
        let offset = usize::try_from(position % len).expect("inside the bytes");
        decode(&bytes[offset..], lineage, position)
    };
    let mut found = Scan {
        contents: Vec::new(),
        end: start,
    };
    let mut last = None;
    let why = loop {
        match at(found.end) {
            Ok(batch) if !wanted.writers.after(last).contains(&batch.generation) => {
                break Problem::Field("generation");
            }
            Ok(batch) => {
                last = Some(batch.generation);
                found.end += batch.len;
                if found.end - start > len {
                    return Err(Unreadable::Damaged(format!(
                        "the batches from position {start} on overlap"
                    )));
                }
                if !batch.content.is_empty() {
                    found.contents.push(batch.content);
                }
            }
            Err(problem) => break problem,
        }
        if found.end - start == len {
            return Ok((found, None));
        }
    };
    if let unsupported @ Unreadable::Unsupported(_) = why.into() {
        return Err(unsupported);
    }
    Ok((found, Some(why)))
}

#[cfg(test)]
mod tests;
