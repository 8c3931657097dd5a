//! Replies on their way to the client: several are sent with one call, their data from where the volume has put it.
//!
//! Invariants
//! - Replies are sent in the order in which they were pushed. The header of reply `n` is in slot `n % OUTPUT_SLOTS`, which is free because
//!   the number of waiting replies is limited.
//! - The cell of a reply is free once its last byte was sent.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use archipelago_runtime::{PARTS_MAX, Part, send_now};

use crate::cells::Cells;
use crate::layout::{CELLS, OUTPUT_AT, OUTPUT_SLOT_LEN, OUTPUT_SLOTS, cell_at};
use crate::memory::Memory;
use archipelago_nbd_protocol::reply::ReplyHeader;
use archipelago_nbd_protocol::requests::REQUESTS;

/// Waiting replies from which on no request is received: the limit for a client that sends and does not read.
const WAITING_MAX: usize = 128;
const _: () = assert!(
    // The waiting ones, one for each request in flight, one for each cell.
    WAITING_MAX + REQUESTS as usize + CELLS as usize <= OUTPUT_SLOTS
);
/// Most bytes sent in one turn, so that a client that reads fast does not delay others.
const BYTES_PER_TURN: usize = 1 << 20;

/// A reply, or a part of one.
#[derive(Debug, Clone, Copy)]
struct Reply {
    header: Part,
    data: Option<Data>,
}

/// Data of a reply: bytes from the start of a cell.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Data {
    pub(crate) cell: u16,
    pub(crate) len: u32,
}

impl Reply {
    fn parts(&self) -> [Part; 2] {
        let data = self.data.map_or(Part::default(), |data| Part {
            offset: cell_at(data.cell),
            len: data.len as usize,
        });
        [self.header, data]
    }
}

/// The result of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    /// There was nothing to send.
    Nothing,
    /// Something was sent.
    Some,
    /// The socket is full: to be tried again once it can be written.
    Blocked,
    /// The client has disconnected.
    Disconnected,
}

/// The replies of one connection.
#[derive(Debug)]
pub(crate) struct Sender {
    queue: VecDeque<Reply>,
    /// Bytes of the first reply that were sent.
    sent: usize,
    /// Number of replies pushed so far.
    pushed: usize,
    blocked: bool,
}

impl Sender {
    pub(crate) fn new() -> Self {
        Sender {
            queue: VecDeque::with_capacity(OUTPUT_SLOTS),
            sent: 0,
            pushed: 0,
            blocked: false,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Whether another request may be received.
    pub(crate) fn has_room(&self) -> bool {
        self.queue.len() < WAITING_MAX
    }

    /// The socket may be writable again.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Queues a header, and the data that follows it.
    pub(crate) fn push(&mut self, memory: &Memory, header: &ReplyHeader, data: Option<Data>) {
        let offset = OUTPUT_AT + self.pushed % OUTPUT_SLOTS * OUTPUT_SLOT_LEN;
        memory.write(offset, header.bytes());
        let len = header.bytes().len();
        self.push_part(Part { offset, len }, data);
    }

    /// Queues more data of the same reply.
    pub(crate) fn push_data(&mut self, data: Data) {
        self.push_part(Part::default(), Some(data));
    }

    fn push_part(&mut self, header: Part, data: Option<Data>) {
        debug_assert!(self.queue.len() < OUTPUT_SLOTS);
        self.queue.push_back(Reply { header, data });
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// Sends as much as the socket takes, up to the limit of a turn. `calls` counts the system calls.
    pub(crate) fn send(
        &mut self,
        socket: impl AsFd,
        memory: &Memory,
        cells: &mut Cells,
        mut calls: impl FnMut(),
    ) -> Sent {
        if self.queue.is_empty() || self.blocked {
            return Sent::Nothing;
        }
        let mut total = 0;
        while total < BYTES_PER_TURN && !self.queue.is_empty() {
            let mut parts = [Part::default(); PARTS_MAX];
            let (count, asked) = self.gather(&mut parts);
            calls();
            let sent = match send_now(&socket, memory.span(), &parts[..count]) {
                Ok(sent) => sent,
                Err(error) => match error.kind() {
                    std::io::ErrorKind::Interrupted => continue,
                    std::io::ErrorKind::WouldBlock => 0,
                    _ => return Sent::Disconnected,
                },
            };
            self.advance(sent, cells);
            total += sent;
            if sent < asked {
                self.blocked = true;
                return Sent::Blocked;
            }
        }
        Sent::Some
    }

    /// The parts to send next: their number, and their bytes.
    fn gather(&self, parts: &mut [Part; PARTS_MAX]) -> (usize, usize) {
        let (mut count, mut bytes, mut skip) = (0, 0, self.sent);
        for reply in &self.queue {
            for part in reply.parts() {
                let skipped = skip.min(part.len);
                skip -= skipped;
                let part = Part {
                    offset: part.offset + skipped,
                    len: part.len - skipped,
                };
                if part.len == 0 {
                    continue;
                }
                if count == PARTS_MAX || bytes >= BYTES_PER_TURN {
                    return (count, bytes);
                }
                parts[count] = part;
                count += 1;
                bytes += part.len;
            }
        }
        (count, bytes)
    }

    fn advance(&mut self, sent: usize, cells: &mut Cells) {
        self.sent += sent;
        while let Some(reply) = self.queue.front() {
            let len: usize = reply.parts().iter().map(|part| part.len).sum();
            if self.sent < len {
                break;
            }
            self.sent -= len;
            if let Some(data) = reply.data {
                cells.put(data.cell);
            }
            self.queue.pop_front();
        }
    }
}
