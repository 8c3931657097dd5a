//! The state that the two directions of a connection share with its volume: requests in flight, and replies that wait to be sent.
//!
//! Invariants
//! - Each accepted request is answered once, unless the connection breaks off before.
//! - Waiting replies, and those on their way, have at most [`WAITING_MAX`] bytes together, except for a single read that is longer: the
//!   receiver reserves room for the reply before it sends the request to the volume.
//! - Data is copied out of a buffer as soon as the volume is done with it, whatever the client does; only the pieces of a read with one
//!   reply wait for each other.

use std::cell::RefCell;
use std::rc::Rc;

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::losses::ReportedLosses;
use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::reply::{Done, ReplyHeader, errno, extent};
use archipelago_nbd_protocol::request::{Header, Terms};
use archipelago_nbd_protocol::requests::{Held, REQUESTS, Requests};
use archipelago_nbd_protocol::wire::{Errno, REPLY_HEADER_MAX};
use archipelago_protocol::ErrorCode;
use archipelago_protocol::status::STATUS_PAGE_MAX;
use archipelago_segment::Buffer;
use tokio::sync::Notify;

use crate::flights::Requester;
use crate::volume::Volume;

/// Most bytes of replies that wait or are on their way.
const WAITING_MAX: usize = 8 << 20;
/// Capacity that is kept for the next replies when all are sent.
const KEPT: usize = 256 << 10;

/// Whether the connection takes requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// No further requests; those in flight are answered.
    Finishing,
    /// Broken off: replies are dropped.
    Broken,
}

/// The resources of a request in flight.
#[derive(Default)]
struct Pending {
    /// Bytes reserved for the replies to its completed pieces, and not released yet.
    promised: usize,
    /// For a read with one reply: the data of its pieces, by their numbers.
    data: Vec<Option<(Buffer, u32)>>,
}

impl Held for Pending {
    fn clear(&mut self) {
        self.promised = 0;
        self.data.clear();
    }
}

struct Replies {
    phase: Phase,
    requests: Requests<Pending>,
    /// Replies to be sent.
    waiting: Vec<u8>,
    /// Bytes of replies on their way.
    sending: usize,
    /// Bytes reserved for replies to requests in flight.
    promised: usize,
}

impl Replies {
    fn load(&self) -> usize {
        self.promised + self.waiting.len() + self.sending
    }
}

/// A connection, as its two directions and its volume use it.
pub(crate) struct Link {
    pub(crate) terms: Terms,
    pub(crate) volume: Rc<Volume>,
    reported: ReportedLosses,
    replies: RefCell<Replies>,
    /// Signalled when there is something to send.
    sendable: Notify,
    /// Signalled when there is room for another request or reply.
    room: Notify,
}

/// Most bytes of the reply to a piece of a request.
pub(crate) fn reply_len(command: Command, range: Range) -> usize {
    let data = match command {
        Command::Read => range.len,
        Command::BlockStatus { .. } => STATUS_PAGE_MAX,
        _ => 0,
    };
    REPLY_HEADER_MAX + data as usize
}

impl Link {
    pub(crate) fn new(terms: Terms, volume: Rc<Volume>) -> Self {
        Link {
            reported: volume.losses.reported(),
            terms,
            volume,
            replies: RefCell::new(Replies {
                phase: Phase::Open,
                requests: Requests::new(),
                waiting: Vec::new(),
                sending: 0,
                promised: 0,
            }),
            sendable: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Whether `command` is a read with one reply.
    pub(crate) fn is_whole(&self, command: Command) -> bool {
        command == Command::Read && !self.terms.structured
    }

    /// Waits for a place among the requests, and places `header`, which asks for `command`.
    pub(crate) async fn insert(&self, command: Command, header: &Header) -> u16 {
        loop {
            let room = self.room.notified();
            if let Some(index) = self.replies.borrow_mut().requests.insert(command, header) {
                return index;
            }
            room.await;
        }
    }

    /// Waits for room for a reply without data.
    pub(crate) async fn await_room(&self) {
        loop {
            let room = self.room.notified();
            if self.replies.borrow().load() < WAITING_MAX {
                return;
            }
            room.await;
        }
    }

    /// Waits for room for `len` bytes of replies, and reserves it.
    pub(crate) async fn promise(&self, len: usize) {
        loop {
            let room = self.room.notified();
            {
                let mut replies = self.replies.borrow_mut();
                if replies.load() == 0 || replies.load() + len <= WAITING_MAX {
                    replies.promised += len;
                    return;
                }
            }
            room.await;
        }
    }

    /// The range of the next piece of a request, without cutting it.
    pub(crate) fn next_range(&self, request: u16) -> Option<Range> {
        let mut replies = self.replies.borrow_mut();
        let (request, _) = replies.requests.get(request)?;
        request.next_range()
    }

    /// Cuts the next piece of a request.
    pub(crate) fn cut(&self, request: u16) -> Option<(u16, Range)> {
        let mut replies = self.replies.borrow_mut();
        let (request, held) = replies.requests.get(request)?;
        let range = request.next_range()?;
        if self.is_whole(request.command()) {
            held.data.push(None);
        }
        Some((request.cut(), range))
    }

    /// Queues the reply to an invalid request.
    pub(crate) fn refuse(&self, header: &Header, errno: Errno) {
        self.push(&ReplyHeader::refused(header, &self.terms, errno));
    }

    /// Queues the reply to a request that needs no operation.
    pub(crate) fn noop(&self, header: &Header) {
        self.push(&ReplyHeader::noop(header, &self.terms));
    }

    fn push(&self, reply: &ReplyHeader) {
        let mut replies = self.replies.borrow_mut();
        replies.waiting.extend(reply.bytes());
        self.sendable.notify_one();
    }

    /// Accepts no more requests; those in flight are answered.
    pub(crate) fn finish(&self) {
        let mut replies = self.replies.borrow_mut();
        if replies.phase == Phase::Open {
            replies.phase = Phase::Finishing;
        }
        self.sendable.notify_one();
    }

    /// Drops all replies: the client has disconnected or is cut off.
    pub(crate) fn break_off(&self) {
        let mut replies = self.replies.borrow_mut();
        replies.phase = Phase::Broken;
        replies.waiting = Vec::new();
        for index in 0..REQUESTS {
            if let Some((_, held)) = replies.requests.get(index) {
                for (buffer, _) in held.data.drain(..).flatten() {
                    self.volume.give_back(buffer);
                }
            }
        }
    }

    /// Waits for replies and moves them to `sending`, which the caller sends; `false`: there will be no more.
    pub(crate) async fn take_replies(&self, sending: &mut Vec<u8>) -> bool {
        sending.clear();
        sending.shrink_to(KEPT);
        loop {
            let sendable = self.sendable.notified();
            {
                let mut replies = self.replies.borrow_mut();
                replies.sending = 0;
                self.room.notify_one();
                if !replies.waiting.is_empty() {
                    std::mem::swap(&mut replies.waiting, sending);
                    replies.sending = sending.len();
                    return true;
                }
                if replies.phase != Phase::Open && replies.requests.is_empty() {
                    return false;
                }
            }
            sendable.await;
        }
    }
}

impl Requester for Link {
    fn piece_done(
        &self,
        index: u16,
        piece: u16,
        range: Range,
        result: Result<(), ErrorCode>,
        buffer: Option<Buffer>,
    ) {
        let mut replies = self.replies.borrow_mut();
        let replies = &mut *replies;
        let Some((request, held)) = replies.requests.get(index) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return self.give_back(buffer);
        };
        let (command, cookie) = (request.command(), request.cookie());
        let losses = &self.volume.losses;
        let result = losses.check(&self.reported, command, result);
        if replies.phase == Phase::Broken {
            return self.give_back(buffer);
        }
        let result = result.map_err(|code| {
            self.volume.log_failure(command, range.offset, code);
            errno(code)
        });
        request.piece_done(result);
        let is_done = request.is_done();
        held.promised += reply_len(command, range);
        // A read with one reply keeps its reserved room until it is answered.
        let kept = match is_done || !self.is_whole(command) {
            true => std::mem::take(&mut held.promised),
            false => 0,
        };
        let waiting = &mut replies.waiting;
        match command {
            Command::Read if self.is_whole(command) => {
                held.data[usize::from(piece)] = buffer.map(|buffer| (buffer, range.len));
            }
            Command::Read => {
                let done = if is_done { Done::Yes } else { Done::No };
                chunk(waiting, cookie, done, range, result, buffer.as_ref());
                self.give_back(buffer);
            }
            Command::BlockStatus { one } => {
                extents(waiting, cookie, one, range, result, buffer.as_ref());
                self.give_back(buffer);
            }
            _ => self.give_back(buffer),
        }
        if is_done {
            let is_answered = match command {
                Command::Read => !self.is_whole(command),
                Command::BlockStatus { .. } => true,
                _ => false,
            };
            if !is_answered {
                self.answer(replies, index);
            }
            replies.requests.remove(index);
            self.room.notify_one();
        }
        replies.promised -= kept;
        self.sendable.notify_one();
    }
}

impl Link {
    fn give_back(&self, buffer: Option<Buffer>) {
        if let Some(buffer) = buffer {
            self.volume.give_back(buffer);
        }
    }

    /// Queues the one reply to a request: the data of all its pieces follows if they have succeeded.
    fn answer(&self, replies: &mut Replies, index: u16) {
        let Some((request, held)) = replies.requests.get(index) else {
            return;
        };
        let result = request.result();
        let header = ReplyHeader::simple(request.cookie(), result);
        replies.waiting.extend(header.bytes());
        for (buffer, len) in held.data.drain(..).flatten() {
            if result.is_ok() {
                append(&mut replies.waiting, &buffer, len);
            }
            self.volume.give_back(buffer);
        }
    }
}

/// Appends the first `len` bytes of `buffer`.
fn append(to: &mut Vec<u8>, buffer: &Buffer, len: u32) {
    let at = to.len();
    to.resize(at + len as usize, 0);
    buffer.read(0, &mut to[at..]);
}

/// Queues a chunk of a read: the data in `buffer`, or its error.
fn chunk(
    to: &mut Vec<u8>,
    cookie: u64,
    done: Done,
    range: Range,
    result: Result<(), Errno>,
    buffer: Option<&Buffer>,
) {
    match (result, buffer) {
        (Ok(()), Some(buffer)) => {
            to.extend(ReplyHeader::data(cookie, done, range.offset, range.len).bytes());
            append(to, buffer, range.len);
        }
        (result, _) => {
            let errno = result.err().unwrap_or(Errno::Io);
            to.extend(ReplyHeader::error_at(cookie, done, errno, range.offset).bytes());
        }
    }
}

/// Queues the extents in the page in `buffer`, or the error.
fn extents(
    to: &mut Vec<u8>,
    cookie: u64,
    one: bool,
    range: Range,
    result: Result<(), Errno>,
    buffer: Option<&Buffer>,
) {
    let runs = result.and_then(|()| {
        let page = buffer.ok_or(Errno::Io)?;
        page.status(u64::from(range.len)).map_err(errno)
    });
    let runs = match runs {
        Ok(runs) => runs,
        Err(errno) => return to.extend(ReplyHeader::error(cookie, errno).bytes()),
    };
    let count = if one { runs.len().min(1) } else { runs.len() };
    let header = ReplyHeader::extents(cookie, u32::try_from(count).unwrap_or(0));
    to.extend(header.bytes());
    for run in &runs[..count] {
        let len = u32::try_from(run.len).expect("no more than was asked for");
        to.extend(extent(len, run.state));
    }
}
