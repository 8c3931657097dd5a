//! One client: its socket, and the state of its connection.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use archipelago_endpoint::{Wakeups, WatchId};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};

use crate::config::CONNECTIONS_MAX;
use crate::negotiation::Negotiation;
use crate::transmission::Transmission;

/// Requested size of the kernel's send buffer: several cells. The kernel sets what the host allows.
const SEND_BUFFER: usize = 1 << 20;

/// The state of a connection.
#[derive(Debug)]
pub(crate) enum Stage {
    Handshake(Box<Negotiation>),
    Transmission(Box<Transmission>),
    /// It has ended.
    Over,
}

/// One client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: UnixStream,
    watch: WatchId,
    place: u8,
    /// A signal was requested for when the socket can be written.
    awaits_room: bool,
    pub(crate) stage: Stage,
}

impl Connection {
    /// Serves the client at `socket`, whose handshake ends by `deadline`.
    ///
    /// # Errors
    /// The kernel's error.
    pub(crate) fn new(
        socket: UnixStream,
        place: u8,
        deadline: Duration,
        wakeups: &mut impl Wakeups,
    ) -> std::io::Result<Connection> {
        socket.set_nonblocking(true)?;
        // The result does not matter: the default size works too.
        let _kept = setsockopt(&socket, SndBuf, &SEND_BUFFER);
        let watched = OwnedFd::from(socket.try_clone()?);
        let watch = wakeups.watch_marked(watched, place)?;
        Ok(Connection {
            socket,
            watch,
            place,
            awaits_room: false,
            stage: Stage::Handshake(Box::new(Negotiation::new(deadline))),
        })
    }

    /// Mark of a socket that can be written again.
    fn room_mark(&self) -> u8 {
        // Above the marks of readable sockets, one for each place.
        const FIRST: u8 = 32;
        const { assert!(CONNECTIONS_MAX < FIRST as usize && 2 * FIRST <= 64) }
        self.place + FIRST
    }

    /// Passes signals on to the handshake or the transmission.
    pub(crate) fn signal(&mut self, marks: u64) {
        let has_room = marks & 1 << self.room_mark() != 0;
        if has_room {
            self.awaits_room = false;
        }
        let has_input = marks & 1 << self.place != 0;
        match &mut self.stage {
            Stage::Handshake(negotiation) if has_input || has_room => negotiation.signal(),
            Stage::Transmission(transmission) => {
                if has_input {
                    transmission.signal_input();
                }
                if has_room {
                    transmission.signal_output();
                }
            }
            Stage::Handshake(_) | Stage::Over => {}
        }
    }

    /// Requests a signal for when the socket can be written.
    pub(crate) fn await_room(&mut self, wakeups: &mut impl Wakeups) {
        if !std::mem::replace(&mut self.awaits_room, true) {
            wakeups.await_writable(self.watch, self.room_mark());
        }
    }

    /// Ends the connection in both directions; pieces in flight finish.
    pub(crate) fn shut_down(&mut self) {
        // The client may have disconnected already.
        let _disconnected = self.socket.shutdown(std::net::Shutdown::Both);
        match &mut self.stage {
            Stage::Handshake(_) => self.stage = Stage::Over,
            Stage::Transmission(transmission) => transmission.break_off(),
            Stage::Over => {}
        }
    }

    /// Ends the watch of the socket, and the connection.
    pub(crate) fn end(self, wakeups: &mut impl Wakeups) {
        let _gone = self.socket.shutdown(std::net::Shutdown::Both);
        wakeups.unwatch(self.watch);
    }
}
