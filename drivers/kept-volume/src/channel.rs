//! The channel of an open volume: opened by the node, opened again by itself when its process dies, given up if others may have had the
//! volume meanwhile.
//!
//! | state | leaves it when |
//! |---|---|
//! | closed | somebody opens the volume: live |
//! | live | the process behind it dies or stops, or the node goes while a reader asks for more: away, if the volume is kept; else closed |
//! | away | it is open again: live; others may have had the volume: closed |

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use archipelago_protocol::{Access, Error, ErrorCode, Name};
use archipelago_segment::{VolumeClient, loss_marker};
use nix::sys::eventfd::EventFd;

use crate::opener::{Connection, Opener};
use crate::reopening::Reopening;
use crate::reservation::Reservation;

#[derive(Debug)]
enum State {
    Closed,
    Live(Box<Connection>),
    Away(Away),
}

/// A channel that is to be opened again.
#[derive(Debug)]
struct Away {
    access: Access,
    /// Marker of the channel that has ended: see [`loss_marker`].
    marker: PathBuf,
    reservation: Arc<Reservation>,
    /// `None`: there was no thread for it yet.
    reopening: Option<Reopening>,
}

impl Away {
    /// That which was open for `access` at `socket`.
    fn new(access: Access, socket: &Path, reservation: Arc<Reservation>) -> Away {
        Away {
            access,
            marker: loss_marker(socket),
            reservation,
            reopening: None,
        }
    }

    /// Begins to open it, if that has not begun.
    fn start(&mut self, opener: &Opener, doorbell: &Arc<EventFd>) {
        if self.reopening.is_none() {
            let (opener, doorbell) = (opener.clone(), Arc::clone(doorbell));
            let reservation = Arc::clone(&self.reservation);
            let started = Reopening::start(opener, self.access, reservation, doorbell);
            self.reopening = started
                .inspect_err(|error| tracing::error!("opening a volume again, later: {error}"))
                .ok();
        }
    }
}

/// One channel of a volume: those who opened the volume over another one are not served any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation(u64);

/// What became of a channel that was away.
#[derive(Debug)]
pub enum Return {
    /// It is open again.
    Live {
        /// Bytes of the volume.
        size: u64,
        /// Acknowledged writes are not there any more.
        lost: bool,
    },
    /// Others may have had the volume: whoever has it open is not served any more.
    Ended(Error),
}

/// The channel, if there is one.
#[derive(Debug)]
pub struct Channel {
    opener: Opener,
    state: State,
    /// Of the connection, or of the last one. One that is opened again is the same.
    incarnation: Incarnation,
}

impl Channel {
    /// The channel of what `opener` opens, closed.
    #[must_use]
    pub fn new(opener: Opener) -> Channel {
        Channel {
            opener,
            state: State::Closed,
            incarnation: Incarnation(0),
        }
    }

    /// The channel of what `opener` has opened, and `connection` is.
    #[must_use]
    pub fn opened(opener: Opener, connection: Connection) -> Channel {
        Channel {
            state: State::Live(Box::new(connection)),
            ..Channel::new(opener)
        }
    }

    /// What it is a channel to.
    #[must_use]
    pub fn name(&self) -> &Name {
        self.opener.name()
    }

    /// The client, as long as the endpoint is there.
    pub fn live(&mut self) -> Option<&mut VolumeClient> {
        self.client().filter(|client| !client.is_gone())
    }

    /// The client, also of an endpoint that has gone: it still has requests to give back.
    pub fn client(&mut self) -> Option<&mut VolumeClient> {
        match &mut self.state {
            State::Live(connection) => Some(&mut connection.client),
            State::Closed | State::Away(_) => None,
        }
    }

    /// Whether its endpoint has gone and it will be opened again: requests wait for that.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        match &self.state {
            State::Live(connection) => connection.reservation.is_some(),
            State::Away(_) => true,
            State::Closed => false,
        }
    }

    /// Whether it is being opened again.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self.state, State::Away(_))
    }

    /// What is readable when the client has something to do.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Live(connection) => Some(connection.client.as_fd()),
            State::Closed | State::Away(_) => None,
        }
    }

    /// The incarnation that serves, now or once the channel is back.
    pub fn incarnation(&mut self) -> Option<Incarnation> {
        (self.is_kept() || self.live().is_some()).then_some(self.incarnation)
    }

    /// The incarnation that serves `access`, if one does.
    pub fn serves(&mut self, access: Access) -> Option<Incarnation> {
        let served = match &self.state {
            State::Live(connection) => connection.access,
            State::Away(away) => away.access,
            State::Closed => return None,
        };
        (served >= access).then(|| self.incarnation()).flatten()
    }

    /// Whether it is away and nobody is opening it, for want of a thread: [`Channel::come_back`] tries again.
    #[must_use]
    pub fn wants_thread(&self) -> bool {
        matches!(&self.state, State::Away(away) if away.reopening.is_none())
    }

    /// Opens it so that it serves `access` and what it served before; nothing is in flight, and it is not away. Gives the volume's size.
    ///
    /// # Errors
    /// What the node says. Who had it open to be read has it still, if the node lets them, or once it is back: then it is away.
    pub fn open(&mut self, access: Access, doorbell: &Arc<EventFd>) -> Result<u64, Error> {
        let (live, kept) = (self.live().is_some(), self.is_kept());
        let readers = self.take_for_more();
        let held = readers.as_ref().map(|away| Arc::clone(&away.reservation));
        match self.opener.open(access, held.as_deref()) {
            Ok(connection) => {
                if !live && !kept {
                    self.incarnation.0 += 1;
                }
                let size = connection.size;
                self.state = State::Live(Box::new(connection));
                Ok(size)
            }
            Err(error) => {
                let again = match &held {
                    Some(held) => self.opener.reopen(Access::Read, held),
                    None if live => self.opener.open(Access::Read, None),
                    None => return Err(error),
                };
                match (again, readers) {
                    (Ok(connection), _) => self.state = State::Live(Box::new(connection)),
                    (Err(again), Some(mut away)) if again.code != ErrorCode::Stale => {
                        away.start(&self.opener, doorbell);
                        self.state = State::Away(away);
                    }
                    (Err(_), _) => {}
                }
                Err(error)
            }
        }
    }

    /// Closes what is open to be read. Its reservation, if it has one, goes on.
    fn take_for_more(&mut self) -> Option<Away> {
        let State::Live(readers) = &self.state else {
            return None;
        };
        let (access, socket) = (readers.access, &readers.socket);
        let reservation = readers.reservation.clone();
        let away = reservation.map(|reservation| Away::new(access, socket, reservation));
        if let Err(error) = self.close() {
            tracing::warn!("`{}`, open to be read: {error}", self.name());
        }
        away
    }

    /// Its endpoint has gone, and all requests were given back: begins to open it again, if it is kept. `false`: it is closed now.
    pub fn leave(&mut self, doorbell: &Arc<EventFd>) -> bool {
        let former = std::mem::replace(&mut self.state, State::Closed);
        let State::Live(former) = former else {
            return false;
        };
        let Connection {
            access,
            socket,
            reservation: Some(reservation),
            ..
        } = *former
        else {
            return false;
        };
        let mut away = Away::new(access, &socket, reservation);
        away.start(&self.opener, doorbell);
        self.state = State::Away(away);
        true
    }

    /// What became of it, if it was away and is not any more.
    pub fn come_back(&mut self, doorbell: &Arc<EventFd>) -> Option<Return> {
        let State::Away(away) = &mut self.state else {
            return None;
        };
        away.start(&self.opener, doorbell);
        let reopened = away.reopening.as_ref()?.take()?;
        // Whoever closed the volume has done so before it was open again.
        let lost = reopened.lost || std::fs::remove_file(&away.marker).is_ok();
        self.opener = reopened.opener;
        Some(match reopened.result {
            Ok(connection) => {
                let size = connection.size;
                self.state = State::Live(Box::new(connection));
                Return::Live { size, lost }
            }
            Err(error) => {
                self.state = State::Closed;
                Return::Ended(error)
            }
        })
    }

    /// Drops it, whatever its state: the endpoint closes the volume by itself, and the reservation ends.
    pub fn give_up(&mut self) {
        self.state = State::Closed;
    }

    /// Closes it; nothing is in flight. Of a channel that ended before, whoever used it has been told, or will be.
    ///
    /// # Errors
    /// What was lost.
    pub fn close(&mut self) -> Result<(), Error> {
        match std::mem::replace(&mut self.state, State::Closed) {
            State::Live(connection) if !connection.client.is_gone() => {
                // The reservation ends behind the close.
                let Connection {
                    client,
                    reservation: _kept,
                    ..
                } = *connection;
                client.close()
            }
            _ => Ok(()),
        }
    }
}
