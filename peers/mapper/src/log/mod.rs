//! A log: an object of fixed size, written in full when it is made, then overwritten in a circle.
//!
//! Invariants
//! - Positions only grow; a batch at position `p` stands at `p` modulo the log's length and never wraps.
//! - One batch in flight at a time. So a bad batch with a valid later one behind it is damage, not a torn tail.
//! - Every sector is whole at any time, also of a torn append. So one that is not is damage ([`archipelago_protocol::log_sector`]).
//! - Where completed writes are durable, nothing is written ahead: what was never appended reads as zeros, and counts as blank.
//! - Nothing is appended over a position that the head still needs. What lies before it may be lost.
//! - The catalogue's log has several writers, each with a generation of its own. An append that is not at the end of all others is
//!   refused by the backend; so who has read to a position has read what everybody else has.
//! - A session that may not have ended is sealed off before its log is replayed: what it appends afterwards is refused.

mod batch;
mod follow;
mod record;
mod scan;
#[cfg(test)]
mod tests;

use std::ops::Range;

use archipelago_protocol::log_sector::{SECTOR_LEN, Sector, blank, first_damaged};
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Generation};

use crate::disk::{Appended, Disk, final_sync, name_of};
use crate::failure::{Failure, Outcome};
use crate::format::Unreadable;

use batch::{HEAD_LEN, UNIT_CONTENT};
use scan::{Scan, Step, scan_known};

pub(crate) use archipelago_protocol::log_sector::UNIT;
pub(crate) use batch::{Content, POSITION_MAX, batch_len, encode_batch};
pub(crate) use follow::Followed;
pub(crate) use record::{Record, RecordKind};
pub(crate) use scan::{Wanted, Writers, scan};

/// Largest batch in bytes: one durable write, copied through the channel's arena.
pub(crate) const BATCH_MAX: usize = 256 * 1024;

/// Longest log: what a backend must have room for in one object; a replay reads all of it.
pub(crate) const LOG_LEN_MAX: u64 = 128 << 20;

/// Records that fit into a unit for sure, be it a batch's first.
pub(crate) const RECORDS_PER_UNIT: usize = (UNIT_CONTENT - HEAD_LEN) / Record::LEN;

/// What is known of a log's end before it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Nothing: all of it is read, and a whole batch behind a bad one tells of damage.
    Unknown,
    /// The batches go on up to this position, of a session that died while the machine lives: what is behind them is one
    /// append that was in flight.
    AtLeast(u64),
}

/// A log and where it is written next.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    pub(crate) id: ObjectId,
    pub(crate) len: u64,
    /// What the head needs for a replay begins here.
    pub(crate) start: u64,
    /// The next batch.
    pub(crate) position: u64,
    /// Of the batches that are appended. Of a volume's log that of the session that the head names, so that a replay finds them; of
    /// the catalogue's the writer's own.
    pub(crate) generation: Generation,
    /// What appends have to show: the generation, or that to come of a session which has sealed the log and not begun yet.
    pub(crate) token: Generation,
}

impl Log {
    pub(crate) fn used(&self) -> u64 {
        self.position - self.start
    }

    pub(crate) fn is_half_full(&self) -> bool {
        self.used() * 2 >= self.len
    }

    /// Longest batch of this log.
    pub(crate) fn batch_max(&self, io_len_max: usize) -> usize {
        let quarter = usize::try_from(self.len / 4).unwrap_or(usize::MAX);
        BATCH_MAX.min(quarter).min(io_len_max) / UNIT * UNIT
    }

    /// Whether `len` bytes in batches of at most `batch_max` fit, with the padding at the end of the circle.
    pub(crate) fn has_room(&self, len: usize, batch_max: usize) -> bool {
        self.used() + len as u64 + batch_max as u64 <= self.len
    }

    /// Bytes of batches that an empty log has room for.
    pub(crate) fn len_max(&self, batch_max: usize) -> usize {
        let len = self.len.saturating_sub(batch_max as u64);
        usize::try_from(len).unwrap_or(usize::MAX)
    }

    /// How many records always have room in batches of at most `batch_max`, also if a flush journals blocks in between.
    pub(crate) fn records_room(&self, batch_max: usize) -> usize {
        let data = (self.len / 8).min(batch_max as u64);
        let kept = self.used() + batch_max as u64 + data;
        let units = self.len.saturating_sub(kept) / UNIT as u64;
        usize::try_from(units).map_or(usize::MAX, |units| units.saturating_mul(RECORDS_PER_UNIT))
    }

    fn remaining(&self) -> u64 {
        self.len - self.position % self.len
    }

    /// Appends one batch durably. The caller holds the log's lock and has asked for room.
    ///
    /// The position moves only when the batch is durable; after a failure it is not known what the medium holds.
    pub(crate) async fn append(
        log: &std::cell::RefCell<Log>,
        disk: &Disk,
        content: &Content,
    ) -> Outcome<()> {
        let len = content.batch_len() as u64;
        let now = log.borrow().clone();
        if now.remaining() < len {
            // Empty, up to the end of the circle.
            let rest = usize::try_from(now.remaining()).expect("shorter than a batch");
            Self::put(log, disk, &Content::default(), rest).await?;
        }
        Self::put(log, disk, content, 0).await
    }

    async fn put(
        log: &std::cell::RefCell<Log>,
        disk: &Disk,
        content: &Content,
        len_min: usize,
    ) -> Outcome<()> {
        let now = log.borrow().clone();
        let appended = match now.put_at(disk, now.position, content, len_min).await? {
            (Appended::Refused { end, .. }, _) if end < now.start => {
                now.fill_up(disk, end).await?;
                now.put_at(disk, now.position, content, len_min).await?
            }
            appended => appended,
        };
        match appended {
            (Appended::Done, end) => {
                log.borrow_mut().position = end;
                Ok(())
            }
            (Appended::Refused { why, .. }, _) => Err(why),
        }
    }

    /// Appends one batch at `position`: what became of it, and the position behind it.
    async fn put_at(
        &self,
        disk: &Disk,
        position: u64,
        content: &Content,
        len_min: usize,
    ) -> Outcome<(Appended, u64)> {
        let batch = encode_batch(self.id.lineage, self.generation, position, content, len_min);
        let end = position + batch.len() as u64;
        let appended = disk.append(self.id, position, self.token, batch).await;
        Ok((appended.map_err(final_sync)?, end))
    }

    /// Brings a log that ends at `end`, before all that the head needs, to the start of what it needs: with batches that say nothing.
    ///
    /// A batch was read although its append had failed, and the head that was stored then needs nothing in front of its end. If the
    /// batch was never durable, a power cut takes it, and the log ends before the head's start.
    async fn fill_up(&self, disk: &Disk, mut end: u64) -> Outcome<()> {
        tracing::warn!(
            "{} ends at position {end} and begins at {}: a batch that nobody needs was lost",
            name_of(self.id),
            self.start
        );
        while end < self.start {
            let rest = (self.start - end).min(self.len - end % self.len);
            let len = usize::try_from(rest).map_or(BATCH_MAX, |rest| rest.min(BATCH_MAX));
            match self.put_at(disk, end, &Content::default(), len).await? {
                (Appended::Done, behind) => end = behind,
                (Appended::Refused { why, .. }, _) => return Err(why),
            }
        }
        Ok(())
    }

    /// Makes a new log, durably: writes it in full, so that no append needs room or changes its length. Where completed writes are
    /// durable the length is enough: only the end is written.
    pub(crate) async fn create(disk: &Disk, id: ObjectId, len: u64) -> Outcome<()> {
        let mut at = match disk.is_durable() {
            true => len.saturating_sub(UNIT as u64),
            false => 0,
        };
        while at < len {
            let end = len.min(at + BATCH_MAX as u64);
            let blank = blank(id.lineage, at..end);
            disk.write(id, at, &blank).await?;
            at = end;
        }
        disk.sync(id).await
    }

    /// Keeps every session before `generation` from appending, whatever it has in flight. A replay afterwards finds all that
    /// they have appended.
    pub(crate) async fn seal(&mut self, disk: &Disk, generation: Generation) -> Outcome<()> {
        let sealed = disk.seal(self.id, generation).await;
        sealed.map_err(|failure| self.missing(failure))?;
        self.token = generation;
        Ok(())
    }

    /// Reads what was appended since `start`; the position is behind it afterwards. What is not of `writers` is not there: an append
    /// that failed may have left it.
    pub(crate) async fn replay(
        &mut self,
        disk: &Disk,
        writers: Writers,
        reach: Reach,
    ) -> Outcome<Vec<Content>> {
        let wanted = Wanted {
            lineage: self.id.lineage,
            start: self.start,
            writers,
        };
        let Scan { contents, end } = match reach {
            Reach::Unknown => {
                let bytes = self.read(disk).await?;
                scan(&bytes, wanted).map_err(|why| self.unreadable(why))?
            }
            Reach::AtLeast(known) => self.scan_known(disk, wanted, known).await?,
        };
        self.position = end;
        Ok(contents)
    }

    /// Of this log's session, and of no other.
    pub(crate) fn of_session(&self) -> Writers {
        Writers::Sessions {
            oldest: self.generation,
            newest: self.generation,
        }
    }

    /// Reads no more than the batches that are known and what an append may have been writing behind them.
    async fn scan_known(&self, disk: &Disk, wanted: Wanted, known: u64) -> Outcome<Scan> {
        let known = known.max(self.start);
        if known - self.start > self.len {
            return Err(self.damaged(&format!("it cannot go on to position {known}")));
        }
        let mut bytes = vec![0; self.checked_len(disk).await?];
        let mut read_to = self.start;
        let mut needed = (known + UNIT as u64).min(self.start + self.len);
        loop {
            self.fill(disk, &mut bytes, read_to..needed).await?;
            read_to = needed;
            match scan_known(&bytes, wanted, known, read_to) {
                Ok(Step::Found(scan)) => return Ok(scan),
                Ok(Step::ReadOn(to)) => needed = to,
                Err(why) => return Err(self.unreadable(why)),
            }
        }
    }

    /// Reads what stands at `positions` to its place in `bytes`, those of the whole log.
    async fn fill(&self, disk: &Disk, bytes: &mut [u8], positions: Range<u64>) -> Outcome<()> {
        let mut at = positions.start;
        while at < positions.end {
            let place = at % self.len;
            let len = (positions.end - at).min(self.len - place);
            let to = usize::try_from(place).expect("inside the bytes");
            let len = usize::try_from(len).expect("inside the bytes");
            let found = disk.read(self.id, place, len).await;
            let mut found = found.map_err(|failure| self.missing(failure))?;
            self.fill_blanks(disk, &mut found, place);
            bytes[to..to + len].copy_from_slice(&found);
            at += len as u64;
        }
        Ok(())
    }

    /// All of it.
    async fn read(&self, disk: &Disk) -> Outcome<Vec<u8>> {
        let len = self.checked_len(disk).await?;
        let found = disk.read(self.id, 0, len).await;
        let mut found = found.map_err(|failure| self.missing(failure))?;
        self.fill_blanks(disk, &mut found, 0);
        Ok(found)
    }

    /// Puts blank sectors where `bytes`, read at `place`, are zeros, if nothing is written ahead in this pool.
    fn fill_blanks(&self, disk: &Disk, bytes: &mut [u8], place: u64) {
        if !disk.is_durable() {
            return;
        }
        for (sector, at) in bytes
            .chunks_exact_mut(SECTOR_LEN)
            .zip((place..).step_by(SECTOR_LEN))
        {
            if sector.iter().all(|byte| *byte == 0) {
                sector.copy_from_slice(&blank(self.id.lineage, at..at + SECTOR_LEN as u64));
            }
        }
    }

    /// Its length, if it is there as a whole.
    async fn checked_len(&self, disk: &Disk) -> Outcome<usize> {
        let len = usize::try_from(self.len)
            .map_err(|_too_large| self.damaged("its length is impossible"))?;
        // It was written in full; what is read beyond its end would look like the end of the batches.
        let found = disk.len(self.id).await;
        let found = found.map_err(|failure| self.missing(failure))?;
        if found < self.len {
            return Err(self.damaged(&format!("it has {found} bytes of {}", self.len)));
        }
        Ok(len)
    }

    fn missing(&self, failure: Failure) -> Failure {
        match failure.code {
            ErrorCode::NotFound => self.damaged("it is missing"),
            _ => failure,
        }
    }

    /// Whether anything but its creation, finished or not, has written into it.
    pub(crate) async fn is_used(&self, disk: &Disk) -> Outcome<bool> {
        let bytes = self.read(disk).await?;
        let is_unused = |bytes: &[u8]| {
            let sector = Sector::open(bytes, self.id.lineage);
            sector.is_some_and(|sector| sector.is_blank()) || bytes.iter().all(|byte| *byte == 0)
        };
        Ok(!bytes.chunks(SECTOR_LEN).all(is_unused))
    }

    /// Checks every sector, also those that no replay needs; where behind the end that a replay found an interrupted
    /// append has left something. For a check.
    pub(crate) async fn check_sectors(&self, disk: &Disk) -> Outcome<Option<u64>> {
        let bytes = self.read(disk).await?;
        if let Some(at) = first_damaged(&bytes, self.id.lineage, 0..bytes.len()) {
            return Err(self.damaged(&format!(
                "the sector at byte {at} is not what was ever written there"
            )));
        }
        let sectors = bytes.chunks(SECTOR_LEN);
        let whole = sectors.filter_map(|bytes| Sector::open(bytes, self.id.lineage));
        let appended = whole.filter(|sector| !sector.is_blank());
        let positions = appended.map(|sector| sector.position);
        Ok(positions
            .filter(|position| *position >= self.position)
            .min())
    }

    fn unreadable(&self, why: Unreadable) -> Failure {
        Failure::unreadable(&name_of(self.id), why)
    }

    pub(crate) fn damaged(&self, why: &str) -> Failure {
        self.unreadable(Unreadable::Damaged(why.to_owned()))
    }
}
