//! Reading on in a log to which others append meanwhile.
//!
//! Invariants
//! - What is not whole at the position is the end, not damage: somebody may just be appending it. Who appends there is refused by
//!   the backend if it is more than that.
//! - A sector of a later position, where the next batch should be, shows that the log has gone round: what stood there was read
//!   by a checkpoint, and is in the catalogue's pages.

use archipelago_protocol::Generation;
use archipelago_protocol::Lineage;
use archipelago_protocol::log_sector::Sector;

use super::batch::{Batch, Content, decode, units_of};
use super::{Log, UNIT};
use crate::disk::Disk;
use crate::failure::Outcome;
use crate::format::Unreadable;

/// Bytes that are read at a time: most changes of others that a node reads on fit.
const PIECE: usize = 16 << 10;

/// What stands behind what was read before.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// So many batches, in order, with the generations of their writers. The position is behind them.
    Batches(Vec<(Generation, Content)>),
    /// The log has gone round: the checkpoint has to be read.
    Overwritten,
}

/// What stands at a position.
enum Found {
    Batch(Batch),
    /// The batch is longer than what was read: so many bytes.
    Longer(usize),
    End,
    Overwritten,
}

impl Log {
    /// Reads what was appended since, and moves the position behind it.
    pub(crate) async fn follow(&mut self, disk: &Disk) -> Outcome<Followed> {
        let mut batches = Vec::new();
        let mut piece = PIECE;
        loop {
            let place = self.position % self.len;
            let rest = usize::try_from(self.len - place).unwrap_or(usize::MAX);
            let bytes = disk.read(self.id, place, piece.min(rest)).await;
            let bytes = bytes.map_err(|failure| self.missing(failure))?;
            piece = PIECE;
            let mut at = 0;
            while at < bytes.len() {
                let found = find(&bytes[at..], self.id.lineage, self.position);
                match found.map_err(|why| self.unreadable(why))? {
                    Found::Batch(batch) => {
                        at += usize::try_from(batch.len).expect("it was read");
                        self.position += batch.len;
                        batches.push((Generation(batch.generation), batch.content));
                    }
                    Found::Longer(len) => {
                        piece = len;
                        break;
                    }
                    Found::End => return Ok(Followed::Batches(batches)),
                    Found::Overwritten => return Ok(Followed::Overwritten),
                }
            }
        }
    }
}

/// What `bytes`, read at `position` up to somewhere before the end of the circle, begin with.
fn find(bytes: &[u8], lineage: Lineage, position: u64) -> Result<Found, Unreadable> {
    let Some(first) = Sector::open(bytes, lineage).filter(|first| !first.is_blank()) else {
        return Ok(Found::End);
    };
    if first.position > position {
        return Ok(Found::Overwritten);
    }
    if !first.is_of(position, 0) {
        return Ok(Found::End);
    }
    let Ok(units) = units_of(&first) else {
        return Ok(Found::End);
    };
    match decode(bytes, lineage, position) {
        Ok(batch) => Ok(Found::Batch(batch)),
        // A batch is never longer than `BATCH_MAX`: whatever says so is none, and not read.
        Err(_cut) if units * UNIT > bytes.len() && units * UNIT <= super::BATCH_MAX => {
            Ok(Found::Longer(units * UNIT))
        }
        Err(problem) => match problem.into() {
            unsupported @ Unreadable::Unsupported(_) => Err(unsupported),
            Unreadable::Damaged(_) => Ok(Found::End),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use archipelago_protocol::log_sector::blank;
    use archipelago_protocol::object::{ObjectId, ObjectReply};

    use super::super::encode_batch;
    use super::*;
    use crate::task::Scheduler;
    use crate::tests::run_task;

    const US: Lineage = Lineage(5);
    const LEN: usize = 32 * UNIT;

    fn batch(position: u64, generation: u64, payload: usize) -> Vec<u8> {
        let content = Content::records(vec![9; payload]);
        encode_batch(US, Generation(generation), position, &content, 0)
    }

    /// What who has read to `position` finds: generations, and where the reader is then; `None`: it was overwritten.
    fn followed(bytes: &[u8], position: u64) -> Option<(Vec<u64>, u64)> {
        let log = Log {
            id: ObjectId::log(US, 1),
            len: LEN as u64,
            start: 0,
            position,
            generation: Generation(1),
            token: Generation(1),
        };
        let scheduler = Rc::new(Scheduler::default());
        let disk = Rc::new(Disk::new(&scheduler, 256 << 10));
        let (task_disk, log) = (Rc::clone(&disk), Rc::new(RefCell::new(log)));
        let task_log = Rc::clone(&log);
        let task = async move {
            let mut log = task_log.borrow().clone();
            let followed = log.follow(&task_disk).await;
            *task_log.borrow_mut() = log;
            followed
        };
        let followed = run_task(&scheduler, &disk, task, |request| {
            let at = usize::try_from(request.offset).unwrap();
            let read = bytes[at..][..request.len as usize].to_vec();
            (ObjectReply::done(request.len), read)
        });
        match followed.unwrap() {
            Followed::Batches(batches) => {
                let generations = batches.iter().map(|(generation, _)| generation.0);
                let position = log.borrow().position;
                Some((generations.collect(), position))
            }
            Followed::Overwritten => None,
        }
    }

    #[test]
    fn who_reads_on_finds_what_others_appended_and_not_what_they_overwrite() {
        let mut log = blank(US, 0..LEN as u64);
        assert_eq!(followed(&log, 0), Some((vec![], 0)));
        // Of several writers, in any order of their generations; one longer than what is read at a time.
        let (mut end, mut starts) = (0, Vec::new());
        for (generation, payload) in [(7, 10), (3, 60_000), (7, 10), (4, 6000)] {
            let bytes = batch(end as u64, generation, payload);
            log[end..end + bytes.len()].copy_from_slice(&bytes);
            starts.push(end as u64);
            end += bytes.len();
        }
        assert_eq!(followed(&log, 0), Some((vec![7, 3, 7, 4], end as u64)));
        assert_eq!(followed(&log, starts[2]), Some((vec![7, 4], end as u64)));
        // Just being appended: its last sector is not there yet.
        let torn = [&log[..end - 512], &blank(US, end as u64 - 512..LEN as u64)].concat();
        assert_eq!(followed(&torn, 0), Some((vec![7, 3, 7], starts[3])));
        // The log has gone round over the first.
        let again = batch(LEN as u64, 7, 10);
        log[..again.len()].copy_from_slice(&again);
        assert_eq!(followed(&log, 0), None);
        assert_eq!(
            followed(&log, LEN as u64),
            Some((vec![7], LEN as u64 + 4096))
        );
        assert_eq!(followed(&log, starts[1]), Some((vec![3, 7, 4], end as u64)));
        // Where the circle closes.
        let last = (LEN - UNIT) as u64;
        let closing = batch(last, 8, 10);
        log[LEN - UNIT..].copy_from_slice(&closing);
        assert_eq!(followed(&log, last), Some((vec![8, 7], LEN as u64 + 4096)));
    }
}
