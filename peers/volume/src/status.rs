//! A status in work: the page of runs that a request fills, answer by answer of the mapper.
//!
//! The last run is kept back until the next one differs from it or the page ends, so neighbours differ in their state.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::{STATUS_ENTRY_LEN, StatusRun};

use crate::memory::{GuestMemory, RequestBytes};

/// Requests to the mapper for one page: what each costs is bounded, so a status of 1 PiB ends soon too.
const ASKS_MAX: u16 = 64;

/// How far the page of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StatusCursor {
    /// The run that is not written yet.
    last: Option<StatusRun>,
    /// Runs that are written.
    written: u16,
    /// Answers that are used.
    asks: u16,
}

impl StatusCursor {
    /// Adds `run` to the page of request `request`. Whether there was room.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`]: the page's memory has gone.
    pub(crate) fn add(
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

    /// An answer was used. Whether another one may be asked for.
    pub(crate) fn note_answer(&mut self) -> bool {
        self.asks += 1;
        self.asks < ASKS_MAX
    }

    /// Writes what is left, and the end of the page.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`]: the page's memory has gone.
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

/// Runs that the page has room for.
fn room(memory: &GuestMemory, request: u32) -> u64 {
    memory.len(request) / u64::from(STATUS_ENTRY_LEN)
}

fn write(memory: &GuestMemory, request: u32, index: u16, entry: [u8; 8]) -> Result<(), ErrorCode> {
    let len = u64::from(STATUS_ENTRY_LEN);
    let skip = u64::from(index) * len;
    memory.write(RequestBytes { request, skip, len }, &entry)
}
