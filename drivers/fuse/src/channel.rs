//! The channel of an open file: opened by the node, opened again by itself when its process dies, given up if others may have had the
//! volume meanwhile.
//!
//! | state | leaves it when |
//! |---|---|
//! | closed | somebody opens the file: live |
//! | live | the process behind it dies or stops: away, if the volume is kept; else closed |
//! | away | it is open again: live; others may have had the volume: closed |

use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

use archipelago_protocol::{Access, Error, Name};
use archipelago_segment::{VolumeClient, loss_marker};
use nix::sys::eventfd::EventFd;

use crate::job::Incarnation;
use crate::opener::{Connection, Opener};
use crate::reopening::Reopening;

#[derive(Debug)]
enum State {
    Closed,
    Live(Box<Connection>),
    Away {
        access: Access,
        /// Marker of the channel that has ended: see [`loss_marker`].
        marker: PathBuf,
        reopening: Reopening,
    },
}

/// What became of a channel that was away.
#[derive(Debug)]
pub(crate) enum Return {
    /// It is open again; the file has so many bytes. `lost`: acknowledged writes are not there any more.
    Live { size: u64, lost: bool },
    /// Others may have had the volume: whoever has the file open is not served any more.
    Ended(Error),
}

/// The channel, if there is one.
#[derive(Debug)]
pub(crate) struct Channel {
    opener: Opener,
    state: State,
    /// Of the connection, or of the last one. One that is opened again is the same.
    incarnation: Incarnation,
}

impl Channel {
    pub(crate) fn new(opener: Opener) -> Channel {
        Channel {
            opener,
            state: State::Closed,
            incarnation: Incarnation(0),
        }
    }

    /// What it is a channel to.
    pub(crate) fn name(&self) -> &Name {
        self.opener.name()
    }

    /// The client, as long as the endpoint is there.
    pub(crate) fn live(&mut self) -> Option<&mut VolumeClient> {
        self.client().filter(|client| !client.is_gone())
    }

    /// The client, also of an endpoint that has gone: it still has requests to give back.
    pub(crate) fn client(&mut self) -> Option<&mut VolumeClient> {
        match &mut self.state {
            State::Live(connection) => Some(&mut connection.client),
            State::Closed | State::Away { .. } => None,
        }
    }

    /// Whether its endpoint has gone and it will be opened again: requests wait for that.
    pub(crate) fn is_kept(&self) -> bool {
        match &self.state {
            State::Live(connection) => connection.reservation.is_some(),
            State::Away { .. } => true,
            State::Closed => false,
        }
    }

    /// Whether it is being opened again.
    pub(crate) fn is_away(&self) -> bool {
        matches!(self.state, State::Away { .. })
    }

    /// What is readable when the client has something to do.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Live(connection) => Some(connection.client.as_fd()),
            State::Closed | State::Away { .. } => None,
        }
    }

    /// The incarnation that serves, now or once the channel is back.
    pub(crate) fn incarnation(&mut self) -> Option<Incarnation> {
        (self.is_kept() || self.live().is_some()).then_some(self.incarnation)
    }

    /// The incarnation that serves `access`, if one does.
    pub(crate) fn serves(&mut self, access: Access) -> Option<Incarnation> {
        let served = match &self.state {
            State::Live(connection) => connection.access,
            State::Away { access, .. } => *access,
            State::Closed => return None,
        };
        (served >= access).then(|| self.incarnation()).flatten()
    }

    /// Opens it so that it serves `access` and what it served before; nothing is in flight, and it is not away. Gives the file's size.
    ///
    /// # Errors
    /// What the node says. Who had it open to be read has it still, if the node lets them.
    pub(crate) fn open(&mut self, access: Access) -> Result<u64, Error> {
        let readers = self.live().is_some();
        if readers && let Err(error) = self.close() {
            tracing::warn!("`{}`, open to be read: {error}", self.name());
        }
        self.state = State::Closed;
        match self.opener.open(access) {
            Ok(connection) => {
                if !readers {
                    self.incarnation.0 += 1;
                }
                let size = connection.size;
                self.state = State::Live(Box::new(connection));
                Ok(size)
            }
            Err(error) => {
                if readers && let Ok(connection) = self.opener.open(Access::Read) {
                    self.state = State::Live(Box::new(connection));
                }
                Err(error)
            }
        }
    }

    /// Its endpoint has gone, and all requests were given back: begins to open it again, if it is kept. `false`: it is closed now.
    pub(crate) fn leave(&mut self, doorbell: &Arc<EventFd>) -> bool {
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
        let opener = self.opener.clone();
        match Reopening::start(opener, access, reservation, Arc::clone(doorbell)) {
            Ok(reopening) => {
                self.state = State::Away {
                    access,
                    marker: loss_marker(&socket),
                    reopening,
                };
                true
            }
            Err(error) => {
                tracing::error!("opening `{}` again: {error}", self.name());
                false
            }
        }
    }

    /// What became of it, if it was away and is not any more.
    pub(crate) fn come_back(&mut self) -> Option<Return> {
        let State::Away {
            marker, reopening, ..
        } = &self.state
        else {
            return None;
        };
        let reopened = reopening.take()?;
        // Whoever closed the volume has done so before it was open again.
        let lost = reopened.lost || std::fs::remove_file(marker).is_ok();
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

    /// Closes it; nothing is in flight. Of a channel that ended before, whoever used it has been told, or will be.
    ///
    /// # Errors
    /// What was lost.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
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
