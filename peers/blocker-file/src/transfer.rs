//! One read or write of one file: its bytes, its alignment, its progress.
//!
//! | stage | who moves its bytes | ends with |
//! |---|---|---|
//! | [`Stage::Queued`] | nobody: another transfer has the file | the file is free |
//! | [`Stage::Paused`] | nobody: data writes are paused | the gate is open |
//! | [`Stage::Moving`] | the ring | its event |
//! | [`Stage::OnThread`] | a thread that may block | its result |
//! | [`Stage::MakingDurable`] | nobody: they are moved | the results of a sync, of the data and the name |

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{FLAG_DURABLE, ObjectKind, ObjectOp, ObjectRequest};
use archipelago_runtime::{Durability, Source};
use xseg::{Region, Span};

use crate::errors::code_of;
use crate::open_file::OpenFile;
use crate::reserve::Claim;
use crate::spans::Direction;
use crate::unaligned::UnalignedTransfer;

/// Immediate retries of a write without space: the first has always been enough, and each costs a full pool a call.
const REFUSALS_MAX: u8 = 3;

/// Whether a transfer is aligned as the medium requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// Its place and its memory are.
    Whole,
    /// Its place is, its memory is not: it goes through a buffer.
    Memory,
    /// Its place is not: the blocks around it are read, changed and written, while it uses the file alone.
    Place,
}

/// The stage of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It waits for its file.
    Queued,
    /// It is a data write, and data writes are paused.
    Paused,
    /// The ring moves its bytes.
    Moving,
    /// A thread moves its bytes.
    OnThread,
    /// Its bytes are moved; so many results are still to come before it is durable.
    MakingDurable(u32),
}

/// The durability of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// It may be lost in a power cut.
    Written,
    /// It is durable when it is answered.
    Durable,
    /// As `Durable`, in a log.
    Appended,
}

/// The consequence of a result of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// Submit again: for the rest, or because the call was interrupted.
    Again,
    /// Submit again: the file system had no space for a moment.
    Refused,
    /// All bytes are moved, or it failed.
    Ended(Result<(), ErrorCode>),
}

/// A read or write under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    ticket: u64,
    open: Rc<OpenFile>,
    direction: Direction,
    /// Offset in the file.
    offset: u64,
    len: u32,
    kept: Kept,
    memory: Vec<Span>,
    /// The buffer in place of `memory`.
    buffer: Option<Region>,
    /// Bytes moved so far: the kernel may move fewer than requested.
    moved: u32,
    /// How often the file system has reported a lack of space.
    refusals: u8,
    stage: Stage,
    /// Why it is not durable, although its bytes were moved.
    failed: Option<ErrorCode>,
}

impl Transfer {
    /// The transfer for `request`, at `offset` of the file.
    pub(crate) fn new(
        ticket: u64,
        open: Rc<OpenFile>,
        request: &ObjectRequest,
        offset: u64,
        memory: Vec<Span>,
    ) -> Self {
        Transfer {
            ticket,
            open,
            direction: match request.op {
                ObjectOp::Read => Direction::Read,
                _ => Direction::Write,
            },
            offset,
            len: request.len,
            kept: match request.op {
                ObjectOp::Append => Kept::Appended,
                _ if request.flags & FLAG_DURABLE != 0 => Kept::Durable,
                _ => Kept::Written,
            },
            memory,
            buffer: None,
            moved: 0,
            refusals: 0,
            stage: Stage::Queued,
            failed: None,
        }
    }

    pub(crate) fn ticket(&self) -> u64 {
        self.ticket
    }

    pub(crate) fn open(&self) -> &Rc<OpenFile> {
        &self.open
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    pub(crate) fn set_stage(&mut self, stage: Stage) {
        self.stage = stage;
    }

    pub(crate) fn is_write(&self) -> bool {
        self.direction == Direction::Write
    }

    /// Whether it writes blocks of a volume.
    pub(crate) fn is_data_write(&self) -> bool {
        self.is_write() && self.open.id().object.kind == ObjectKind::Data
    }

    /// Whether it is a write that is durable when it is answered.
    pub(crate) fn is_durable_write(&self) -> bool {
        self.kept != Kept::Written && self.is_write()
    }

    /// Whether it appends to a log: it uses the file alone, and the log waits for its end.
    pub(crate) fn is_append(&self) -> bool {
        self.kept == Kept::Appended
    }

    /// Whether it may still move bytes of data: a paused write does not before the gate is open.
    pub(crate) fn holds_up_gate(&self) -> bool {
        self.is_data_write() && !matches!(self.stage, Stage::Paused | Stage::MakingDurable(_))
    }

    /// How much of the reserve the write may take; `None` for data.
    pub(crate) fn reserve_claim(&self) -> Option<Claim> {
        match (self.direction, self.open.id().object.kind) {
            (Direction::Read, _) | (Direction::Write, ObjectKind::Data) => None,
            // An append is durable; any other write makes a new log.
            (Direction::Write, ObjectKind::Log) if self.kept == Kept::Written => Some(Claim::Half),
            (Direction::Write, _) => Some(Claim::All),
        }
    }

    /// How it is aligned for a medium that needs multiples of `alignment`.
    pub(crate) fn fit(&self, alignment: u32) -> Fit {
        if !self.open.is_direct() {
            return Fit::Whole;
        }
        let (unit, wide) = (alignment as usize, u64::from(alignment));
        if !self.offset.is_multiple_of(wide) || !self.len.is_multiple_of(alignment) {
            return Fit::Place;
        }
        let fits = |span: &Span| {
            span.address().addr().is_multiple_of(unit) && span.len().is_multiple_of(unit)
        };
        if self.memory.iter().all(fits) {
            Fit::Whole
        } else {
            Fit::Memory
        }
    }

    /// Uses `buffer`, which is at least as long, in place of its memory.
    pub(crate) fn use_buffer(&mut self, buffer: Region) -> Result<(), ErrorCode> {
        if self.is_write() {
            let mut bytes = vec![0; self.len as usize];
            self.copy(&mut bytes);
            buffer
                .write(0, &bytes)
                .map_err(|_short| ErrorCode::Internal)?;
        }
        self.buffer = Some(buffer);
        Ok(())
    }

    /// Ends the transfer with `result`: data that was read into its buffer is copied to its memory. Returns the buffer.
    pub(crate) fn take_buffer(&mut self, result: Result<(), ErrorCode>) -> Option<Region> {
        let buffer = self.buffer.take()?;
        if self.direction == Direction::Read && result.is_ok() {
            let mut bytes = vec![0; self.len as usize];
            // The buffer is as long as the transfer.
            if buffer.read(0, &mut bytes).is_ok() {
                self.copy(&mut bytes);
            }
        }
        Some(buffer)
    }

    /// The list of spans, empty, for another transfer.
    pub(crate) fn into_spans(mut self) -> Vec<Span> {
        self.memory.clear();
        self.memory
    }

    /// Has the ring move the rest of its bytes.
    pub(crate) fn submit(&mut self, source: &Source, token: u64) {
        self.stage = Stage::Moving;
        let (file, at) = (self.open.file(), self.offset + u64::from(self.moved));
        let rest;
        let spans = if self.moved == 0 && self.buffer.is_none() {
            self.memory.as_slice()
        } else {
            rest = self.rest();
            rest.as_slice()
        };
        match self.direction {
            Direction::Read => source.read(file, spans, at, token),
            Direction::Write => {
                let durability = match self.kept {
                    Kept::Written => Durability::Later,
                    Kept::Durable | Kept::Appended => Durability::Now,
                };
                source.write(file, spans, at, durability, token);
            }
        }
    }

    /// Handles the ring's result: a count, or a negative errno.
    pub(crate) fn on_moved(&mut self, result: i32) -> Moved {
        match (u32::try_from(result), self.direction) {
            (Err(_negative), _) if is_interrupted(result) => Moved::Again,
            (Err(_negative), _) if self.may_retry(-result) => Moved::Refused,
            (Err(_negative), _) => {
                let error = io::Error::from_raw_os_error(-result);
                Moved::Ended(Err(code_of(&error)))
            }
            (Ok(0), Direction::Read) => {
                self.zero_rest();
                Moved::Ended(Ok(()))
            }
            (Ok(0), Direction::Write) => Moved::Ended(Err(ErrorCode::NoSpace)),
            (Ok(count), _) => {
                self.moved += count;
                if self.moved >= self.len {
                    Moved::Ended(Ok(()))
                } else {
                    Moved::Again
                }
            }
        }
    }

    /// Whether the ring's `result` is that of a failed sync; so is that of a failed durable write.
    pub(crate) fn is_failed_sync(&self, result: i32) -> bool {
        match self.stage {
            Stage::MakingDurable(_) => result < 0,
            Stage::Moving => self.is_durable_write() && result < 0 && !is_interrupted(result),
            Stage::Queued | Stage::Paused | Stage::OnThread => false,
        }
    }

    /// Moves all bytes by plain calls, which only copy memory.
    pub(crate) fn move_now(&mut self, source: &Source) -> Result<(), ErrorCode> {
        loop {
            let (rest, at) = (self.rest(), self.offset + u64::from(self.moved));
            if rest.is_empty() {
                return Ok(());
            }
            let moved = match self.direction {
                Direction::Read => source.read_now(self.open.file(), &rest, at),
                Direction::Write => {
                    source.write_now(self.open.file(), &rest, at, Durability::Later)
                }
            };
            match (moved, self.direction) {
                (Err(error), _) if self.may_retry(error.raw_os_error().unwrap_or_default()) => {}
                (Err(error), _) => return Err(code_of(&error)),
                (Ok(0), Direction::Read) => {
                    self.zero_rest();
                    return Ok(());
                }
                (Ok(0), Direction::Write) => return Err(ErrorCode::NoSpace),
                (Ok(count), _) => self.moved += u32::try_from(count).unwrap_or(u32::MAX),
            }
        }
    }

    /// The transfer for a thread, which moves whole units; a write may take `claim` of the reserve.
    pub(crate) fn for_thread(
        &self,
        unit: u32,
        claim: Option<Claim>,
    ) -> Result<UnalignedTransfer, ErrorCode> {
        let file = self.open.file().as_fd().try_clone_to_owned();
        Ok(UnalignedTransfer {
            file: file.map_err(|error| code_of(&error))?.into(),
            direction: self.direction,
            offset: self.offset,
            len: self.len as usize,
            unit: unit as usize,
            memory: self.memory.clone(),
            claim,
        })
    }

    /// Records that a sync failed while the transfer was under way: a durable write may have lost data by it.
    pub(crate) fn mark_lost(&mut self) {
        if self.is_durable_write() {
            self.failed = Some(ErrorCode::SyncFailed);
        }
    }

    /// Handles one of the results of making it durable. Returns whether that was the last.
    pub(crate) fn part_done(&mut self, failed: Option<ErrorCode>) -> bool {
        let Stage::MakingDurable(waiting) = self.stage else {
            return false;
        };
        self.stage = Stage::MakingDurable(waiting - 1);
        self.failed = self.failed.or(failed);
        if waiting == 1 && self.failed.is_none() {
            self.open.name_synced();
        }
        waiting == 1
    }

    /// `result`, unless a failed sync may have dropped the moved bytes.
    pub(crate) fn outcome(&self, result: Result<(), ErrorCode>) -> Result<(), ErrorCode> {
        result.and(self.failed.map_or(Ok(()), Err))
    }

    /// Whether a write that failed with `errno` is to be tried again at once; counts it.
    ///
    /// A file system whose free blocks are reserved by others for a moment reports a lack of space: ext4 does so for a few of 100,000
    /// writes that allocate in many sparse files at once, and not a second time.
    fn may_retry(&mut self, errno: i32) -> bool {
        let retry = errno == libc::ENOSPC && self.is_write() && self.refusals < REFUSALS_MAX;
        self.refusals += u8::from(retry);
        retry
    }

    /// The memory of the bytes that are still to be moved.
    fn rest(&self) -> Vec<Span> {
        let whole = match &self.buffer {
            Some(buffer) => vec![
                buffer
                    .span(0, u64::from(self.len))
                    .expect("a buffer is as long as its transfer"),
            ],
            None => self.memory.clone(),
        };
        let mut skip = self.moved as usize;
        let mut rest = Vec::with_capacity(whole.len());
        for span in whole {
            let done = skip.min(span.len());
            skip -= done;
            if done < span.len() {
                rest.push(
                    span.part(done, span.len() - done)
                        .expect("a part of itself"),
                );
            }
        }
        rest
    }

    /// Copies the bytes to be written into `bytes`, or the read ones from there.
    fn copy(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for span in &self.memory {
            let (part, after) = rest.split_at_mut(span.len());
            match self.direction {
                Direction::Read => span.write(part),
                Direction::Write => span.read(part),
            }
            rest = after;
        }
    }

    /// Fills the rest with zeros: a read beyond the end of a file.
    fn zero_rest(&self) {
        for span in self.rest() {
            // A few pages at a time: the end of a file is rare.
            span.write(&vec![0; span.len()]);
        }
    }

    /// Bytes moved so far.
    #[cfg(test)]
    pub(crate) fn moved(&self) -> u32 {
        self.moved
    }
}

/// Whether the call was interrupted, and moved nothing.
fn is_interrupted(result: i32) -> bool {
    matches!(-result, libc::EAGAIN | libc::EINTR)
}
