//! A connection in its handshake: the socket, the bytes of the state machine, the deadline.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use archipelago_nbd_protocol::handshake::{Broken, Handshake, Progress};
use archipelago_nbd_protocol::offer::Offer;
use archipelago_nbd_protocol::request::Terms;

/// Most bytes received in one turn: several options, and few of the skipped ones.
const BYTES_PER_TURN: usize = 16 << 10;

/// The result of a turn.
#[derive(Debug)]
pub(crate) enum Negotiated {
    /// It goes on once the socket is signalled.
    Waits,
    /// It goes on at once.
    Continues,
    /// The output waits for the client.
    Blocked,
    /// The transmission begins.
    Agreed(Terms),
    /// It has ended, perhaps because of invalid input.
    Ended(Option<Broken>),
}

/// The handshake with the client at one socket.
#[derive(Debug)]
pub(crate) struct Negotiation {
    handshake: Handshake,
    /// The received bytes of the next input.
    input: Vec<u8>,
    /// What follows once all output is sent.
    outcome: Progress,
    /// The socket may be readable or writable.
    signalled: bool,
    pub(crate) deadline: Duration,
}

impl Negotiation {
    pub(crate) fn new(deadline: Duration) -> Self {
        Negotiation {
            handshake: Handshake::new(),
            input: Vec::new(),
            outcome: Progress::Continues,
            signalled: true,
            deadline,
        }
    }

    /// The socket was signalled.
    pub(crate) fn signal(&mut self) {
        self.signalled = true;
    }

    /// Does a bounded part of the pending work.
    pub(crate) fn poll(&mut self, socket: &UnixStream, offer: &Offer<'_>) -> Negotiated {
        if !self.signalled {
            return Negotiated::Waits;
        }
        let negotiated = self.go_on(socket, offer);
        self.signalled = matches!(negotiated, Negotiated::Continues);
        negotiated
    }

    fn go_on(&mut self, mut socket: &UnixStream, offer: &Offer<'_>) -> Negotiated {
        let mut received = 0;
        loop {
            let output = self.handshake.output();
            if !output.is_empty() {
                match socket.write(output) {
                    Ok(sent) => {
                        output.drain(..sent);
                        continue;
                    }
                    Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        return Negotiated::Blocked;
                    }
                    Err(_gone) => return Negotiated::Ended(None),
                }
            }
            match self.outcome {
                // With one export, the answer was given at once.
                Progress::Continues
                | Progress::Names
                | Progress::Described
                | Progress::Chosen
                | Progress::StartTls => {}
                Progress::Agreed(terms) => return Negotiated::Agreed(terms),
                Progress::Aborted => return Negotiated::Ended(None),
            }
            if received >= BYTES_PER_TURN {
                return Negotiated::Continues;
            }
            let (had, wants) = (self.input.len(), self.handshake.wants());
            self.input.resize(wants, 0);
            match socket.read(&mut self.input[had..]) {
                Ok(0) => return Negotiated::Ended(None),
                Ok(len) => {
                    received += len;
                    self.input.truncate(had + len);
                }
                Err(error) => {
                    self.input.truncate(had);
                    match error.kind() {
                        ErrorKind::Interrupted => continue,
                        ErrorKind::WouldBlock => return Negotiated::Waits,
                        _ => return Negotiated::Ended(None),
                    }
                }
            }
            if self.input.len() == wants {
                match self.handshake.take_with(&self.input, offer) {
                    Ok(outcome) => self.outcome = outcome,
                    Err(broken) => return Negotiated::Ended(Some(broken)),
                }
                self.input.clear();
            }
        }
    }
}
