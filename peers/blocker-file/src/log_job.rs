//! A thread's job on a log: finds its end, raises its token, or compares a repeated append with the stored bytes.
//!
//! A log's file begins with a block for its token ([`LOG_HEADER_LEN`]), made with the file. So a seal writes in place, and needs no space.

use std::fs::File;
use std::os::unix::fs::FileExt;

use archipelago_blocker::logs::{LogState, decode_token, encode_token, find_end};
use archipelago_protocol::log_sector::SECTOR_LEN;
use archipelago_protocol::{ErrorCode, Generation};
use xseg::Span;

use crate::errors::{Failed, code_of};
use crate::layout::{FileId, LOG_HEADER_LEN};
use crate::spans::gather;
use crate::unaligned::AlignedBuffer;

/// A job on a log.
#[derive(Debug)]
pub(crate) struct LogJob {
    pub(crate) id: FileId,
    pub(crate) file: File,
    /// Offsets, lengths and addresses must be multiples of this.
    pub(crate) unit: usize,
    pub(crate) task: LogTask,
    /// A seal failed, or the writes of a predecessor may not be durable: the token is written again before it counts.
    pub(crate) token_in_doubt: bool,
}

#[derive(Debug)]
pub(crate) enum LogTask {
    /// Find end, token and length; `hint` is the end that its client expects.
    Inspect { hint: u64 },
    /// Raise the token.
    Seal { token: Generation },
    /// Check whether the bytes in this memory are stored at this place.
    Compare { place: u64, memory: Vec<Span> },
}

/// The result of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) enum LogDone {
    Inspected {
        state: LogState,
        /// Bytes of the log.
        len: u64,
    },
    Sealed,
    /// The log has this token, which is higher than the requested one.
    Refused(Generation),
    Compared {
        equal: bool,
    },
}

impl LogJob {
    pub(crate) fn run(&self) -> Result<LogDone, Failed> {
        match &self.task {
            LogTask::Inspect { hint } => self.inspect(*hint),
            LogTask::Seal { token } => self.seal(*token),
            LogTask::Compare { place, memory } => {
                let bytes = gather(memory);
                let there = self.read(*place, bytes.len())?;
                let equal = there == bytes;
                Ok(LogDone::Compared { equal })
            }
        }
    }

    fn inspect(&self, hint: u64) -> Result<LogDone, Failed> {
        let token = self.token()?;
        if self.token_in_doubt {
            self.write_token(token)?;
        }
        let file_len = self.file.metadata()?.len();
        let len = file_len.saturating_sub(LOG_HEADER_LEN);
        let mut read = |places: std::ops::Range<u64>| {
            let len = usize::try_from(places.end - places.start);
            self.read(places.start, len.map_err(|_long| ErrorCode::Internal)?)
        };
        let end = find_end(self.id.object.lineage, len, hint, &mut read)?;
        let state = LogState { token, end };
        Ok(LogDone::Inspected { state, len })
    }

    fn seal(&self, token: Generation) -> Result<LogDone, Failed> {
        let there = self.token()?;
        if there > token {
            return Ok(LogDone::Refused(there));
        }
        if there < token || self.token_in_doubt {
            self.write_token(token)?;
        }
        Ok(LogDone::Sealed)
    }

    fn token(&self) -> Result<Generation, Failed> {
        let mut block = AlignedBuffer::new(header_len(), self.unit);
        block.fill_from(&self.file, 0)?;
        let sector = block.bytes().first_chunk::<SECTOR_LEN>();
        let token = sector.and_then(|sector| decode_token(self.id.object.lineage, sector));
        token.ok_or_else(|| {
            tracing::error!("{:?}: the token of the log is damaged", self.id.object);
            ErrorCode::Damaged.into()
        })
    }

    fn write_token(&self, token: Generation) -> Result<(), Failed> {
        let mut block = AlignedBuffer::new(header_len(), self.unit);
        let sector = encode_token(self.id.object.lineage, token);
        block.bytes_mut()[..SECTOR_LEN].copy_from_slice(&sector);
        self.file.write_all_at(block.bytes(), 0)?;
        self.file.sync_data().map_err(|error| Failed::sync(&error))
    }

    /// Bytes of the log; zeros beyond its end.
    fn read(&self, place: u64, len: usize) -> Result<Vec<u8>, ErrorCode> {
        let at = LOG_HEADER_LEN + place;
        let unit = self.unit as u64;
        let start = at / unit * unit;
        let before = usize::try_from(at - start).map_err(|_long| ErrorCode::Internal)?;
        let mut around = AlignedBuffer::new((before + len).next_multiple_of(self.unit), self.unit);
        around
            .fill_from(&self.file, start)
            .map_err(|error| code_of(&error))?;
        Ok(around.bytes()[before..before + len].to_vec())
    }
}

/// Makes the block for the token at the beginning of a log's file, if it has none.
pub(crate) fn make_header(file: &File) -> std::io::Result<()> {
    if file.metadata()?.len() >= LOG_HEADER_LEN {
        return Ok(());
    }
    let block = AlignedBuffer::new(header_len(), header_len());
    file.write_all_at(block.bytes(), 0)
}

fn header_len() -> usize {
    usize::try_from(LOG_HEADER_LEN).expect("4096")
}
