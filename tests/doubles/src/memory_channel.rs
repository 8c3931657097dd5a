//! The channel of a volume that a process keeps, in memory: for tests of tables of requests in flight.

use archipelago_kept_volume::Carrier;
use archipelago_segment::{Buffer, Request, SubmitError};

/// A channel whose requests need no buffers: flushes, and zeros that are written. The test answers them.
#[derive(Debug)]
pub struct MemoryChannel {
    /// It takes requests.
    pub live: bool,
    /// It is being opened again.
    pub away: bool,
    /// Requests that it does not take wait until it is back.
    pub kept: bool,
    /// Requests that it takes yet.
    pub room: usize,
    /// In flight: tokens, and where they write zeros; `None`: a flush.
    pub sent: Vec<(u64, Option<u64>)>,
}

impl MemoryChannel {
    /// A live one with room for `room` requests.
    #[must_use]
    pub fn new(kept: bool, room: usize) -> MemoryChannel {
        MemoryChannel {
            live: true,
            away: false,
            kept,
            room,
            sent: Vec::new(),
        }
    }
}

impl Carrier for MemoryChannel {
    fn is_live(&mut self) -> bool {
        self.live
    }

    fn is_away(&self) -> bool {
        self.away
    }

    fn is_kept(&self) -> bool {
        self.kept
    }

    fn buffer(&mut self) -> Option<Buffer> {
        None
    }

    fn submit(&mut self, token: u64, request: Request) -> Result<(), SubmitError> {
        if !self.live {
            return Err(SubmitError::Gone(request));
        }
        if self.room == 0 {
            return Err(SubmitError::Full(request));
        }
        self.room -= 1;
        self.sent.push(match request {
            Request::WriteZeroes { offset, .. } => (token, Some(offset)),
            Request::Flush => (token, None),
            other => panic!("{other:?}"),
        });
        Ok(())
    }
}
