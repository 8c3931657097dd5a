//! Requests in flight over the channel of a volume: sent, sent again over the next channel, given back.
//!
//! | a piece of a request | leaves it when |
//! |---|---|
//! | in flight | the volume answers; or its channel ends: unanswered |
//! | unanswered | there is a channel again: in flight; it is taken out to fail |
//!
//! Invariants
//! - Each piece that was submitted is given back once.
//! - What a dead channel has not answered is sent over the next one before anything newer, and so is nothing else.
//! - Whoever submits has a place, so that there is a token and a buffer for each piece, also on the next channel.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use archipelago_kept_volume::{Carrier, Outage};
use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::pieces::Range;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::VolumeOp;
use archipelago_runtime::{Clock, SystemClock};
use archipelago_segment::{Buffer, Finished, Request, SubmitError};

use crate::places::PLACES;

/// Whoever is answered.
pub(crate) trait Requester {
    /// The volume has answered a piece; a read's `buffer` is to be given back.
    fn piece_done(
        &self,
        request: u16,
        piece: u16,
        range: Range,
        result: Result<(), ErrorCode>,
        buffer: Option<Buffer>,
    );
}

/// A piece of a request.
pub(crate) struct Flight {
    /// Whose.
    pub(crate) requester: Rc<dyn Requester>,
    /// Place of the request there.
    pub(crate) request: u16,
    /// Number of the piece.
    pub(crate) piece: u16,
    pub(crate) command: Command,
    pub(crate) range: Range,
}

impl Flight {
    /// The request to the volume, with a `buffer` if it needs one; `None`: there is none.
    fn request(&self, buffer: impl FnOnce() -> Option<Buffer>) -> Option<Request> {
        let Range { offset, len } = self.range;
        Some(match self.command.operation() {
            Some(VolumeOp::Read) => Request::Read {
                offset,
                len,
                buffer: buffer()?,
            },
            Some(VolumeOp::Write { durable }) => Request::Write {
                offset,
                len,
                buffer: buffer()?,
                durable,
            },
            Some(VolumeOp::BlockStatus) => Request::Status {
                offset,
                range: u64::from(len),
                buffer: buffer()?,
            },
            Some(VolumeOp::Discard) => Request::Discard { offset, len },
            Some(VolumeOp::WriteZeroes { unmap, durable }) => Request::WriteZeroes {
                offset,
                len,
                keep_space: !unmap,
                durable,
            },
            // What there is nothing to do for was answered before: at worst it waits for others.
            Some(VolumeOp::Flush) | None => Request::Flush,
        })
    }
}

struct InFlight {
    flight: Flight,
    /// A former channel has not answered it.
    resent: bool,
}

/// A piece whose channel has ended.
struct Unanswered {
    flight: Flight,
    /// A buffer of that channel: the data of a write is in it.
    buffer: Option<Buffer>,
}

/// A piece that is done.
pub(crate) struct Answered {
    pub(crate) flight: Flight,
    pub(crate) result: Result<(), ErrorCode>,
    pub(crate) buffer: Option<Buffer>,
}

/// Pieces under way.
pub(crate) struct Flights<C = SystemClock> {
    /// By their tokens.
    in_flight: Vec<Option<InFlight>>,
    free: Vec<usize>,
    /// In flight when the channel ended: sent again first.
    unanswered: VecDeque<Unanswered>,
    outage: Outage<C>,
}

impl<C: Clock> Flights<C> {
    /// None yet.
    pub(crate) fn new(outage: Outage<C>) -> Flights<C> {
        Flights {
            in_flight: (0..PLACES).map(|_| None).collect(),
            free: (0..PLACES).rev().collect(),
            unanswered: VecDeque::new(),
            outage,
        }
    }

    /// Whether nothing is under way.
    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == PLACES && self.unanswered.is_empty()
    }

    /// How long pieces have waited for the channel.
    pub(crate) fn outage(&self) -> &Outage<C> {
        &self.outage
    }

    /// Sends a piece, with the `data` of a write. Gives back what has to fail: the channel has been away for too long.
    pub(crate) fn submit(
        &mut self,
        carrier: &mut impl Carrier,
        flight: Flight,
        data: &[u8],
    ) -> Option<Flight> {
        if carrier.is_away() {
            return Some(flight);
        }
        let request = flight.request(|| {
            let mut buffer = carrier.buffer()?;
            buffer.write(0, data);
            Some(buffer)
        });
        let Some(request) = request else {
            return Some(flight);
        };
        self.send(carrier, flight, request, false);
        None
    }

    fn send(&mut self, carrier: &mut impl Carrier, flight: Flight, request: Request, resent: bool) {
        let Some(token) = self.free.pop() else {
            debug_assert!(false, "whoever submits has a place");
            let buffer = request.into_buffer();
            return self.unanswered.push_back(Unanswered { flight, buffer });
        };
        match carrier.submit(token as u64, request) {
            Ok(()) => self.in_flight[token] = Some(InFlight { flight, resent }),
            Err(refused) => {
                debug_assert!(!matches!(refused, SubmitError::Full(_)));
                self.free.push(token);
                let (SubmitError::Full(request) | SubmitError::Gone(request)) = refused;
                let buffer = request.into_buffer();
                self.unanswered.push_back(Unanswered { flight, buffer });
            }
        }
    }

    /// A request of the channel is done; `None`: it was not answered, and waits for the next channel.
    pub(crate) fn finished(
        &mut self,
        finished: Finished,
        carrier: &mut impl Carrier,
    ) -> Option<Answered> {
        let token = usize::try_from(finished.token).ok()?;
        let InFlight { flight, resent } = self.in_flight.get_mut(token)?.take()?;
        self.free.push(token);
        let Finished { result, buffer, .. } = finished;
        // A channel gives back all that was answered before it is gone.
        if !carrier.is_live() {
            self.unanswered.push_back(Unanswered { flight, buffer });
            return None;
        }
        if resent {
            self.outage.answered();
        }
        Some(Answered {
            flight,
            result,
            buffer,
        })
    }

    /// The channel has ended and is to be opened again.
    pub(crate) fn channel_left(&mut self) {
        self.outage.begin();
    }

    /// The channel is back: sends what was not answered. How long the channel was away, and how many pieces are sent again.
    pub(crate) fn channel_returned(&mut self, carrier: &mut impl Carrier) -> (Duration, usize) {
        let unanswered = std::mem::take(&mut self.unanswered);
        let count = unanswered.len();
        let away = self.outage.back(count);
        for Unanswered { flight, buffer } in unanswered {
            let request = flight.request(|| {
                let mut next = carrier.buffer()?;
                if let (Command::Write { .. }, Some(written)) = (flight.command, &buffer) {
                    let mut data = vec![0; flight.range.len as usize];
                    written.read(0, &mut data);
                    next.write(0, &data);
                }
                Some(next)
            });
            match request {
                Some(request) => self.send(carrier, flight, request, true),
                None => {
                    debug_assert!(!carrier.is_live(), "each place has its buffer");
                    self.unanswered.push_back(Unanswered { flight, buffer });
                }
            }
        }
        (away, count)
    }

    /// Takes out what waits for the channel: the pieces, and their buffers.
    pub(crate) fn take_unanswered(
        &mut self,
    ) -> impl Iterator<Item = (Flight, Option<Buffer>)> + use<C> {
        let unanswered = std::mem::take(&mut self.unanswered);
        let parts = |Unanswered { flight, buffer }| (flight, buffer);
        unanswered.into_iter().map(parts)
    }
}

#[cfg(test)]
mod tests;
