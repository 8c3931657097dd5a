//! The regions of a client, and which of them its server has mapped.
//!
//! Invariants
//! - Announcements and withdrawals are sent in the order in which they were made, so that an id can be used again.
//! - An answer contains the serial number of its announcement, so a late answer never makes a later region ready.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use super::message::Message;
use super::socket;
use crate::region::{REGIONS_MAX, Region, RegionId};

/// Most announcements without an acknowledgement: few enough that the answers fit into any socket buffer.
const UNACKNOWLEDGED_MAX: usize = 16;

#[derive(Debug)]
struct Known {
    id: RegionId,
    region: Region,
    serial: u64,
    answer: Option<bool>,
}

#[derive(Debug)]
enum Outgoing {
    Add { serial: u64 },
    Remove { id: RegionId },
}

/// The regions of a client, except its arena.
#[derive(Debug, Default)]
pub(crate) struct Announced {
    regions: Vec<Known>,
    outbox: VecDeque<Outgoing>,
    unacknowledged: usize,
    serials: u64,
}

impl Announced {
    /// Adds a region, in place of an older one with its number, to be sent. `false`: there are too many.
    pub(crate) fn add(&mut self, id: RegionId, region: Region) -> bool {
        self.regions.retain(|known| known.id != id);
        // One entry is reserved for the arena.
        if self.regions.len() + 1 >= REGIONS_MAX {
            return false;
        }
        self.serials += 1;
        let serial = self.serials;
        self.regions.push(Known {
            id,
            region,
            serial,
            answer: None,
        });
        self.outbox.push_back(Outgoing::Add { serial });
        true
    }

    /// Removes a region; the removal is to be sent.
    pub(crate) fn remove(&mut self, id: RegionId) {
        self.regions.retain(|known| known.id != id);
        self.outbox.push_back(Outgoing::Remove { id });
    }

    /// The server is new and has no regions yet.
    pub(crate) fn start_again(&mut self) {
        self.unacknowledged = 0;
        self.outbox.clear();
        for known in &mut self.regions {
            known.answer = None;
            self.outbox.push_back(Outgoing::Add {
                serial: known.serial,
            });
        }
    }

    /// There is no server, so nothing needs to be sent: everything will be announced to the next one.
    pub(crate) fn keep_silent(&mut self) {
        self.outbox.clear();
    }

    /// Handles the server's answer to an announcement.
    pub(crate) fn acknowledged(&mut self, serial: u64, errno: u64) {
        self.unacknowledged = self.unacknowledged.saturating_sub(1);
        // An unknown serial belongs to a region that was removed before the answer arrived.
        if let Some(known) = self.regions.iter_mut().find(|known| known.serial == serial) {
            known.answer = Some(errno == 0);
            if errno != 0 {
                tracing::error!(region = known.id.0, errno, "the server cannot map a region");
            }
        }
    }

    /// Whether the server has the region.
    pub(crate) fn is_ready(&self, id: RegionId) -> bool {
        self.regions
            .iter()
            .any(|known| known.id == id && known.answer == Some(true))
    }

    /// Whether the server has answered the announcement of every region.
    pub(crate) fn are_answered(&self) -> bool {
        self.regions.iter().all(|known| known.answer.is_some())
    }

    /// Sends as many messages as the socket and the limit of acknowledgements allow.
    pub(crate) fn send(&mut self, socket: &OwnedFd) {
        while let Some(next) = self.outbox.front() {
            let sent = match next {
                Outgoing::Remove { id } => {
                    socket::send(socket, &Message::RegionRemove { id: id.0 }, &[])
                }
                Outgoing::Add { serial } => {
                    let known = self.regions.iter().find(|known| known.serial == *serial);
                    let Some(known) = known else {
                        // The region was removed before it was sent.
                        self.outbox.pop_front();
                        continue;
                    };
                    if self.unacknowledged == UNACKNOWLEDGED_MAX {
                        return;
                    }
                    let (fd, offset) = known.region.descriptor();
                    let (id, len) = (known.id.0, known.region.len());
                    let message = Message::RegionAdd {
                        id,
                        serial: *serial,
                        offset,
                        len,
                    };
                    let sent = socket::send(socket, &message, &[fd.as_fd()]);
                    self.unacknowledged += usize::from(sent.is_ok());
                    sent
                }
            };
            if sent.is_err() {
                // A full buffer drains, and the next call on the socket finds a disconnect.
                return;
            }
            self.outbox.pop_front();
        }
    }
}
