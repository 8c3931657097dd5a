//! A status request in progress: the page of runs that it fills, from one or more answers of the mapper.
//!
//! A run is written only when the next one differs from it, or when the page ends. So neighbouring runs differ in their state.

use std::ops::Range;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::{MapRuns, STATUS_ENTRY_LEN, StatusRun};

use crate::blocks::{block_end, block_start};
use crate::memory::{GuestMemory, RequestBytes};

/// Most answers of the mapper for one page: the work of each is bounded, so a status of 1 PiB also ends soon.
const ANSWERS_MAX: u16 = 64;

/// The state of a request's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StatusCursor {
    /// The run that has not been written yet.
    last: Option<StatusRun>,
    /// Number of runs written.
    written: u16,
    /// Number of answers added.
    answers: u16,
    /// There was no room for a run.
    full: bool,
}

impl StatusCursor {
    /// Adds an answer of the mapper about the blocks of `range` to the page of request `request`. Returns how many bytes of the range the
    /// page covers now.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`]: the answer covers more than was asked for. [`ErrorCode::Invalid`]: the page's memory was removed.
    pub(crate) fn add(
        &mut self,
        memory: &GuestMemory,
        request: u32,
        runs: &MapRuns,
        range: Range<u64>,
    ) -> Result<u64, ErrorCode> {
        self.answers += 1;
        let (mut covered, mut at) = (range.start, block_start(range.start));
        for run in runs.iter() {
            at += run.len;
            if at > block_end(range.end) {
                return Err(ErrorCode::Internal);
            }
            // Only the part of the first and the last block that was asked for counts.
            let len = at.min(range.end) - covered;
            if !self.push(memory, request, StatusRun { len, ..run })? {
                self.full = true;
                break;
            }
            covered += len;
        }
        Ok(covered - range.start)
    }

    /// Adds `run`. Returns whether there was room.
    fn push(
        &mut self,
        memory: &GuestMemory,
        request: u32,
        run: StatusRun,
    ) -> Result<bool, ErrorCode> {
        match &mut self.last {
            Some(last) if last.state == run.state => last.len += run.len,
            Some(last) => {
                if u64::from(self.written) + 1 >= room(memory, request) {
                    return Ok(false);
                }
                write(memory, request, self.written, last.encode())?;
                self.written += 1;
                *last = run;
            }
            None => self.last = Some(run),
        }
        Ok(true)
    }

    /// Whether the page can take another answer.
    pub(crate) fn has_room(&self) -> bool {
        !self.full && self.answers < ANSWERS_MAX
    }

    /// Writes the last run, and the end of the page.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`]: the page's memory was removed.
    pub(crate) fn finish(self, memory: &GuestMemory, request: u32) -> Result<(), ErrorCode> {
        let mut end = self.written;
        if let Some(last) = self.last {
            write(memory, request, end, last.encode())?;
            end += 1;
        }
        if u64::from(end) < room(memory, request) {
            write(memory, request, end, [0; STATUS_ENTRY_LEN as usize])?;
        }
        Ok(())
    }
}

/// Number of runs that fit into the page.
fn room(memory: &GuestMemory, request: u32) -> u64 {
    memory.len(request) / u64::from(STATUS_ENTRY_LEN)
}

fn write(memory: &GuestMemory, request: u32, index: u16, entry: [u8; 8]) -> Result<(), ErrorCode> {
    let len = u64::from(STATUS_ENTRY_LEN);
    let skip = u64::from(index) * len;
    memory.write(RequestBytes { request, skip, len }, &entry)
}
