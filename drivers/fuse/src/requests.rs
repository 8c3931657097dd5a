//! Requests under way on one open file: sent in pieces over a channel, sent again over the next one, answered.
//!
//! | a piece | leaves it when |
//! |---|---|
//! | has not begun | there is room in the channel: in flight |
//! | in flight | it is answered: done. Its channel ends and is kept: unanswered; is not kept: failed |
//! | unanswered | there is a channel again: in flight. The outage has lasted too long, or others may have had the volume: failed |
//!
//! Invariants
//! - Each request is answered once. When the channel of a volume that is kept ends, what was not answered is sent again over the next
//!   one, before anything newer; so is nothing else. Requests wait for that, in bounds ([`Outage`]), and fail then until it is back.
//! - Writes that were lost fail the next flush.
//! - Requests that change the file are carried out together, but for one that changes a part of a sector: that one is alone.

use std::collections::VecDeque;
use std::time::Duration;

use archipelago_kept_volume::{Carrier, Outage};
use archipelago_protocol::ErrorCode;
use archipelago_runtime::{Clock, SystemClock};
use archipelago_segment::{Finished, Request, SubmitError, VolumeOptions};

use crate::job::Io;
use crate::operation::{Operation, Step};
use crate::pieces::Piece;
use crate::slab::Slab;

/// Bytes of a buffer.
const BUFFER_LEN: u32 = 128 << 10;
/// Buffers of an open file: 4 MiB, of which only what is used takes memory. Enough pieces in flight for a disk.
pub(crate) const OPTIONS: VolumeOptions = VolumeOptions {
    buffers: 32,
    buffer_len: BUFFER_LEN as usize,
};

/// Operations under way that change the file.
#[derive(Debug, Default)]
struct Changing {
    count: usize,
    /// The one of them is alone.
    exclusive: bool,
}

impl Changing {
    fn may_begin(&self, exclusive: bool) -> bool {
        !self.exclusive && (self.count == 0 || !exclusive)
    }
}

/// A request in flight.
#[derive(Debug, Clone, Copy)]
struct Flight {
    operation: usize,
    piece: Piece,
    step: Step,
    /// A former channel has not answered it.
    resent: bool,
}

/// Whether a piece could be sent.
enum Sent {
    Yes,
    NoRoom,
    Gone,
}

/// Requests under way.
pub(crate) struct Requests<C = SystemClock> {
    operations: Slab<Operation>,
    /// Operations of which some pieces have not begun.
    begun: VecDeque<usize>,
    /// By their tokens.
    flights: Slab<Flight>,
    /// In flight when the channel ended: sent again first.
    unanswered: VecDeque<Flight>,
    changing: Changing,
    outage: Outage<C>,
    /// Acknowledged writes were lost and no flush has reported it: the next one fails.
    unreported_loss: bool,
    /// Of requests that were answered with an error, to be logged.
    failed: VecDeque<ErrorCode>,
}

impl<C: Clock> Requests<C> {
    /// None yet.
    pub(crate) fn new(outage: Outage<C>) -> Requests<C> {
        Requests {
            operations: Slab::default(),
            begun: VecDeque::new(),
            flights: Slab::default(),
            unanswered: VecDeque::new(),
            changing: Changing::default(),
            outage,
            unreported_loss: false,
            failed: VecDeque::new(),
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// How long they have waited for the channel.
    pub(crate) fn outage(&self) -> &Outage<C> {
        &self.outage
    }

    /// Whether acknowledged writes were lost, which no flush has reported.
    pub(crate) fn has_unreported_loss(&self) -> bool {
        self.unreported_loss
    }

    /// Nobody is left to whom a loss has to be reported.
    pub(crate) fn forget_loss(&mut self) {
        self.unreported_loss = false;
    }

    /// Why the next of the requests that have failed has failed.
    pub(crate) fn next_failure(&mut self) -> Option<ErrorCode> {
        self.failed.pop_front()
    }

    /// Begins `io` on a file of `size` bytes; gives it back if it has to wait for others.
    pub(crate) fn begin(&mut self, io: Io, size: u64) -> Option<Io> {
        if let Some(exclusive) = Operation::would_change(&io)
            && !self.changing.may_begin(exclusive)
        {
            return Some(io);
        }
        let operation = Operation::begin(io, size, BUFFER_LEN)?;
        if operation.changes() {
            self.changing.count += 1;
            self.changing.exclusive = operation.is_exclusive();
        }
        let index = self.operations.insert(operation);
        self.begun.push_back(index);
        None
    }

    /// The channel has ended and is to be opened again: requests wait.
    pub(crate) fn channel_left(&mut self) {
        self.outage.begin();
    }

    /// The channel is back; `lost`: acknowledged writes are not there any more. How long it was away, and how many requests are sent again.
    pub(crate) fn channel_returned(&mut self, lost: bool) -> (Duration, usize) {
        self.unreported_loss |= lost;
        let count = self.unanswered.len();
        (self.outage.back(count), count)
    }

    /// The channel has ended for good.
    pub(crate) fn channel_ended(&mut self) {
        self.outage.end();
        self.fail_all();
    }

    /// Whether requests wait that have waited for as long as they may: they are to fail.
    pub(crate) fn have_waited_too_long(&self) -> bool {
        self.outage.is_over_limit() && !(self.unanswered.is_empty() && self.begun.is_empty())
    }

    /// Fails everything that has begun; nothing is in flight.
    pub(crate) fn fail_all(&mut self) {
        let unanswered = std::mem::take(&mut self.unanswered);
        let begun = std::mem::take(&mut self.begun);
        for flight in &unanswered {
            if let Some(operation) = self.operations.get_mut(flight.operation) {
                operation.ended(Err(ErrorCode::Unavailable));
            }
        }
        let unanswered = unanswered.into_iter().map(|flight| flight.operation);
        for index in unanswered.chain(begun) {
            if let Some(operation) = self.operations.get_mut(index) {
                operation.give_up(ErrorCode::Unavailable);
            }
            self.answer_done(index);
        }
    }

    /// Sends as many pieces as there is room for.
    pub(crate) fn send(&mut self, carrier: &mut impl Carrier) {
        if carrier.is_away() || !self.send_unanswered(carrier) {
            return;
        }
        while let Some(&index) = self.begun.front() {
            let operation = self.operations.get_mut(index);
            let Some(piece) = operation.and_then(|one| one.next_piece()) else {
                self.begun.pop_front();
                self.answer_done(index);
                continue;
            };
            let sent = self.send_piece(carrier, index, piece, false);
            let Some(operation) = self.operations.get_mut(index) else {
                continue;
            };
            match sent {
                Sent::Yes => operation.began(),
                Sent::NoRoom => return,
                Sent::Gone => operation.give_up(ErrorCode::Unavailable),
            }
        }
    }

    /// Sends again what the former channel has not answered; whether all of it is sent.
    fn send_unanswered(&mut self, carrier: &mut impl Carrier) -> bool {
        while let Some(&Flight {
            operation, piece, ..
        }) = self.unanswered.front()
        {
            // It counts as in flight all the while.
            if !matches!(self.send_piece(carrier, operation, piece, true), Sent::Yes) {
                return false;
            }
            self.unanswered.pop_front();
        }
        true
    }

    fn send_piece(
        &mut self,
        carrier: &mut impl Carrier,
        index: usize,
        piece: Piece,
        resent: bool,
    ) -> Sent {
        let disconnected = match carrier.is_kept() {
            // It waits, and is sent over the next channel.
            true => Sent::NoRoom,
            false => Sent::Gone,
        };
        if !carrier.is_live() {
            return disconnected;
        }
        let Some(operation) = self.operations.get_mut(index) else {
            return Sent::Gone;
        };
        let mut buffer = None;
        if operation.needs_buffer(piece) {
            buffer = carrier.buffer();
            if buffer.is_none() {
                return Sent::NoRoom;
            }
        }
        let (step, request) = operation.request(piece, buffer);
        let flight = Flight {
            operation: index,
            piece,
            step,
            resent,
        };
        let token = self.flights.insert(flight);
        match carrier.submit(token as u64, request) {
            Ok(()) => Sent::Yes,
            Err(refused) => {
                self.flights.remove(token);
                match refused {
                    SubmitError::Full(_) => Sent::NoRoom,
                    SubmitError::Gone(_) => disconnected,
                }
            }
        }
    }

    /// A request of the channel is done.
    pub(crate) fn finished(&mut self, finished: Finished, carrier: &mut impl Carrier) {
        let token = usize::try_from(finished.token).unwrap_or(usize::MAX);
        let Some(flight) = self.flights.remove(token) else {
            return;
        };
        let mut result = finished.result;
        if result == Err(ErrorCode::Unavailable) && !carrier.is_live() && carrier.is_kept() {
            return self.unanswered.push_back(flight);
        }
        if flight.piece == Piece::Flush && result.is_ok() && self.unreported_loss {
            self.unreported_loss = false;
            result = Err(ErrorCode::SyncFailed);
        }
        let Some(operation) = self.operations.get_mut(flight.operation) else {
            return;
        };
        if result.is_ok()
            && let Some(next) = operation.stepped(flight.piece, flight.step, finished.buffer)
        {
            match self.send_step(carrier, flight, next) {
                Ok(()) => return,
                // From its first step on.
                Err(_gone) if carrier.is_kept() => return self.unanswered.push_back(flight),
                Err(code) => result = Err(code),
            }
        }
        if flight.resent {
            self.outage.answered();
        }
        if let Some(operation) = self.operations.get_mut(flight.operation) {
            operation.ended(result);
            // A seek goes on behind what it has seen.
            if operation.next_piece().is_some() && !self.begun.contains(&flight.operation) {
                self.begun.push_back(flight.operation);
            }
        }
        self.answer_done(flight.operation);
    }

    /// Sends the second step of a piece, for which the first has just made room.
    fn send_step(
        &mut self,
        carrier: &mut impl Carrier,
        flight: Flight,
        request: Request,
    ) -> Result<(), ErrorCode> {
        let step = Step::WriteSector;
        let token = self.flights.insert(Flight { step, ..flight });
        carrier.submit(token as u64, request).map_err(|_refused| {
            self.flights.remove(token);
            ErrorCode::Unavailable
        })
    }

    /// Answers operation `index` if it is done.
    fn answer_done(&mut self, index: usize) {
        let operation = self.operations.get_mut(index);
        let done = operation.is_some_and(|one| one.is_done());
        if !done || self.begun.contains(&index) {
            return;
        }
        let Some(operation) = self.operations.remove(index) else {
            return;
        };
        if operation.changes() {
            self.changing.count -= 1;
            self.changing.exclusive = false;
        }
        self.failed.extend(operation.failure());
        operation.answer();
    }
}

#[cfg(test)]
mod tests;
