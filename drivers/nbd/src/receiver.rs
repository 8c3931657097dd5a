//! The input of a client: headers of requests, and the data of writes, which is received into its cell.
//!
//! Headers are received into a small buffer, many with one call. Data of a write that lands in the buffer is copied to the cell; the rest
//! of the data is received into the cell, and the headers behind it with the same call.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use archipelago_runtime::{Part, receive_now};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::layout::{INPUT_AT, INPUT_LEN, SCRAP_AT, SCRAP_LEN, cell_at};
use crate::memory::Memory;
use archipelago_nbd_protocol::request::HEADER_LEN;

/// A cell that is being filled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Filling {
    pub(crate) cell: u16,
    pub(crate) len: u32,
    filled: u32,
}

impl Filling {
    /// The first `len` bytes of `cell` are still to be received.
    pub(crate) fn new(cell: u16, len: u32) -> Self {
        Filling {
            cell,
            len,
            filled: 0,
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.filled == self.len
    }

    fn rest(&self) -> Part {
        Part {
            offset: cell_at(self.cell) + self.filled as usize,
            len: (self.len - self.filled) as usize,
        }
    }
}

/// Where the next bytes go.
#[derive(Debug)]
pub(crate) enum Target<'a> {
    /// Headers.
    Input,
    /// Data of a write, then headers.
    Cell(&'a mut Filling),
    /// Nowhere: so many bytes of data of a refused write, then headers.
    Scrap(&'a mut u32),
}

/// The result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    Some,
    /// Nothing has come.
    Nothing,
    /// The client sends nothing more.
    End,
    /// The connection has failed.
    Failed,
}

/// The input of one connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The bytes of the buffer that are not parsed begin here.
    start: usize,
    end: usize,
    /// The socket may be readable.
    readable: bool,
}

impl Receiver {
    pub(crate) fn new() -> Self {
        Receiver {
            start: 0,
            end: 0,
            readable: true,
        }
    }

    /// Data has come, or the client has disconnected.
    pub(crate) fn signal(&mut self) {
        self.readable = true;
    }

    pub(crate) fn is_readable(&self) -> bool {
        self.readable
    }

    /// Whether the other side of `socket` has disconnected, so that nobody reads what is sent. Looked at once for each signal.
    pub(crate) fn take_hangup(&mut self, socket: impl AsFd) -> bool {
        if !std::mem::take(&mut self.readable) {
            return false;
        }
        let mut polled = [PollFd::new(socket.as_fd(), PollFlags::empty())];
        let looked = poll(&mut polled, PollTimeout::ZERO);
        let events = polled[0].revents();
        looked.is_ok() && events.is_some_and(|events| events.contains(PollFlags::POLLHUP))
    }

    /// Whether everything received was parsed.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The next header, if it was received; it stays until [`Receiver::skip_header`].
    pub(crate) fn header(&self, memory: &Memory) -> Option<[u8; HEADER_LEN]> {
        if self.end - self.start < HEADER_LEN {
            return None;
        }
        let mut header = [0; HEADER_LEN];
        memory.read(INPUT_AT + self.start, &mut header);
        Some(header)
    }

    /// Removes the header, which was parsed.
    pub(crate) fn skip_header(&mut self) {
        self.start += HEADER_LEN;
    }

    /// Takes up to `max` bytes of the buffer.
    fn take(&mut self, max: usize) -> Part {
        let len = max.min(self.end - self.start);
        let part = Part {
            offset: INPUT_AT + self.start,
            len,
        };
        self.start += len;
        part
    }

    /// Moves data of a write from the buffer into its cell.
    pub(crate) fn fill(&mut self, memory: &Memory, filling: &mut Filling) {
        let rest = filling.rest();
        let part = self.take(rest.len);
        memory.copy(part, rest.offset);
        filling.filled += u32::try_from(part.len).unwrap_or(0);
    }

    /// Discards data of a refused write.
    pub(crate) fn scrap(&mut self, left: &mut u32) {
        let dropped = self.take(*left as usize).len;
        *left -= u32::try_from(dropped).unwrap_or(0);
    }

    /// Receives into `target`. All data in the buffer was taken out before.
    pub(crate) fn receive(
        &mut self,
        socket: impl AsFd,
        memory: &Memory,
        target: Target<'_>,
    ) -> Received {
        self.compact(memory);
        let first = match &target {
            Target::Input => Part::default(),
            Target::Cell(filling) => filling.rest(),
            Target::Scrap(left) => Part {
                offset: SCRAP_AT,
                len: SCRAP_LEN.min(**left as usize),
            },
        };
        debug_assert!(first.len == 0 || self.is_empty());
        let input = Part {
            offset: INPUT_AT + self.end,
            // Headers are received only behind all of the data.
            len: match &target {
                Target::Scrap(left) if **left as usize > first.len => 0,
                _ => INPUT_LEN - self.end,
            },
        };
        let received = match receive_now(socket, memory.span(), &[first, input]) {
            Ok(0) => return Received::End,
            Ok(received) => received,
            Err(error) => match error.kind() {
                ErrorKind::WouldBlock => {
                    self.readable = false;
                    return Received::Nothing;
                }
                ErrorKind::Interrupted => return Received::Some,
                _ => return Received::Failed,
            },
        };
        // Fewer bytes than there was room for: the socket is empty, and later data is signalled.
        self.readable = received == first.len + input.len;
        let data = received.min(first.len);
        self.end += received - data;
        let data = u32::try_from(data).unwrap_or(0);
        match target {
            Target::Input => {}
            Target::Cell(filling) => filling.filled += data,
            Target::Scrap(left) => *left -= data,
        }
        Received::Some
    }

    /// Moves the unparsed bytes, less than a header, to the front of the buffer.
    fn compact(&mut self, memory: &Memory) {
        let len = self.end - self.start;
        if self.start > 0 && len > 0 {
            let offset = INPUT_AT + self.start;
            memory.copy(Part { offset, len }, INPUT_AT);
        }
        (self.start, self.end) = (0, len);
    }
}
