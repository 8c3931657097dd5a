//! The socket at which clients of other processes connect.
//!
//! Invariants
//! - No call blocks: a client that connects and sends nothing occupies one of a bounded number of places.
//! - The socket's file appears under its name only when clients can connect, and with its final mode: access for its owner, and for its
//!   group if other users are admitted.
//! - A client is served only in a role to which its user is admitted, whatever role its hello claims.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::socket::{Backlog, UnixAddr, bind, listen};
use std::os::fd::AsRawFd;

use super::Violation;
use super::admission::Admission;
use super::message::{Message, Refusal, Unreadable};
use super::server::{Greeting, SharedServer};
use super::socket::{self, Peer, Received, Watch};

/// Most connections that have not sent a hello yet; if there is one more, the oldest is closed. A node has three roles of peers and at most
/// a few dozen endpoints.
const PENDING_MAX: usize = 64;

#[derive(Debug)]
struct Pending {
    socket: OwnedFd,
    peer: Peer,
}

/// A named socket to which clients connect.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    watch: Watch,
    admission: Admission,
    pending: Vec<Pending>,
    refused: u64,
    last_refusal: Option<Violation>,
}

impl Listener {
    /// Listens at `path` for the users in `admission`, in place of a socket that a dead process has left there. If other users than this
    /// one and root are admitted, the group of the socket has access; a directory with the set-group-ID bit sets the group.
    ///
    /// The file stays when the listener is dropped: by then, it may belong to a successor.
    ///
    /// # Errors
    /// `AddrInUse` if a running process listens there; otherwise the kernel's error for the socket or its file.
    pub fn bind(path: &Path, admission: Admission) -> io::Result<Listener> {
        match socket::connect_to(path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) => {}
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            _alive => return Err(io::ErrorKind::AddrInUse.into()),
        }
        let mut hidden = path.as_os_str().to_owned();
        hidden.push("~");
        let hidden = PathBuf::from(hidden);
        match fs::remove_file(&hidden) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = socket::unconnected()?;
        bind(socket.as_raw_fd(), &UnixAddr::new(&hidden)?)?;
        let mode = if admission.has_others() { 0o660 } else { 0o600 };
        fs::set_permissions(&hidden, fs::Permissions::from_mode(mode))?;
        listen(&socket, Backlog::new(64)?)?;
        fs::rename(&hidden, path)?;
        let watch = Watch::new()?;
        watch.add(&socket)?;
        Ok(Listener {
            listener: UnixListener::from(socket),
            watch,
            admission,
            pending: Vec::new(),
            refused: 0,
            last_refusal: None,
        })
    }

    /// The descriptor to watch for reading; it also covers connections without a hello, and never changes.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Number of connections refused so far, and the reason of the last refusal.
    #[must_use]
    pub fn refused(&self) -> (u64, Option<Violation>) {
        (self.refused, self.last_refusal)
    }

    /// The next client that has sent a hello. When [`Listener::fd`] is readable, call this until it returns `None`.
    pub fn accept(&mut self) -> Option<SharedServer> {
        self.take_connections();
        let mut index = 0;
        while index < self.pending.len() {
            let received = socket::next(&self.pending[index].socket);
            if matches!(received, Received::Nothing) {
                index += 1;
                continue;
            }
            let Pending { socket, peer } = self.pending.remove(index);
            match received {
                Received::Message(Message::Hello { role, .. }, _)
                    if !self.admission.admits(peer.uid, role) =>
                {
                    self.refuse(&socket, peer.uid, Refusal::Credentials, Violation::Role);
                }
                Received::Message(
                    Message::Hello {
                        role,
                        client_id,
                        incarnation,
                        size,
                        arena_len,
                    },
                    descriptors,
                ) => {
                    let greeting = Greeting {
                        role,
                        client_id,
                        incarnation,
                        size,
                        arena_len,
                        peer,
                    };
                    match SharedServer::welcome(socket, greeting, descriptors) {
                        Ok(server) => return Some(server),
                        Err((socket, violation)) => {
                            self.refuse(&socket, peer.uid, Refusal::Hello, violation);
                        }
                    }
                }
                Received::Unreadable(Unreadable::Version) => {
                    self.refuse(&socket, peer.uid, Refusal::Version, Violation::Message);
                }
                Received::Message(..) | Received::Unreadable(Unreadable::Garbage) => {
                    self.refuse(&socket, peer.uid, Refusal::Hello, Violation::Message);
                }
                Received::Nothing | Received::HungUp => {}
            }
        }
        None
    }

    /// Bounded: one call accepts at most as many connections as may wait.
    fn take_connections(&mut self) {
        for _ in 0..PENDING_MAX {
            let Ok((stream, _unnamed)) = self.listener.accept() else {
                return;
            };
            let socket = OwnedFd::from(stream);
            let Ok(peer) = socket::peer(&socket) else {
                continue;
            };
            if !self.admission.admits_user(peer.uid) {
                let (reason, violation) = (Refusal::Credentials, Violation::Credentials);
                self.refuse(&socket, peer.uid, reason, violation);
            } else if self.watch.add(&socket).is_ok() {
                if self.pending.len() == PENDING_MAX {
                    self.pending.remove(0);
                }
                self.pending.push(Pending { socket, peer });
            }
        }
    }

    fn refuse(&mut self, socket: &OwnedFd, uid: u32, refusal: Refusal, violation: Violation) {
        tracing::warn!(uid, %violation, ?refusal, "client turned away");
        self.refused += 1;
        self.last_refusal = Some(violation);
        let _gone_already = socket::send(
            socket,
            &Message::Refused {
                reason: refusal as u64,
            },
            &[],
        );
    }
}
