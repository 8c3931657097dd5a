//! What the thread of a connection asks of the device on the data thread.
//!
//! Invariants
//! - Everything that could block, map or allocate much has been done before a command is sent: the device only takes over.
//! - Each command is answered once, when it is true: a stopped ring has drained, removed memory is named by nobody. A
//!   device that goes away drops the answer's sender, which the waiting thread sees.

use std::fs::File;
use std::os::fd::OwnedFd;

use crossbeam_channel::Sender;
use xseg::Region;

use crate::dirty_log::DirtyLog;
use crate::memory::GuestSlot;
use crate::queue::RingAddresses;
use crate::ring_check::RingsSeen;

/// A change to the device.
#[derive(Debug)]
pub enum Command {
    /// A front end has connected.
    Connected,
    /// Negotiated virtio features.
    Features(u64),
    /// One more memory slot.
    AddSlot(GuestSlot),
    /// One memory slot less.
    RemoveSlot {
        /// Guest-physical address.
        guest: u64,
        /// Front-end address.
        user: u64,
        /// Bytes.
        len: u64,
    },
    /// All memory slots anew.
    SetSlots(Vec<GuestSlot>),
    /// Entries of a ring.
    RingSize(u16, u16),
    /// Places of a ring.
    RingAddresses(u16, RingAddresses),
    /// Where a ring goes on.
    RingBase(u16, u16),
    /// Stops a ring; answered with [`Answer::Base`].
    StopRing(u16),
    /// Starts a ring: the eventfd by which the guest kicks.
    Kick(u16, OwnedFd),
    /// The eventfd that interrupts the guest, if it wants any.
    Call(u16, Option<File>),
    /// The eventfd that says that a ring is broken.
    Error(u16, Option<File>),
    /// Whether a ring is served.
    Enable(u16, bool),
    /// The dirty log.
    Log(DirtyLog),
    /// Where requests in flight are noted.
    InFlight {
        /// The mapping.
        region: Region,
        /// Where the area starts in it.
        start: u64,
        /// Queues it has room for.
        queues: u16,
        /// Entries of each.
        size: u16,
    },
    /// Asks what the device sees of its rings; answered with [`Answer::Rings`].
    Look,
    /// Back to the state at power-on, memory excepted.
    Reset,
    /// The front end is gone.
    HangUp,
    /// Ends the device.
    Detach,
}

/// What came of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The ring has stopped; it goes on here.
    Base(u16),
    /// What is seen of the rings.
    Rings(RingsSeen),
    /// Nothing was changed, and why.
    Refused(&'static str),
}

/// A command and where its answer goes.
#[derive(Debug)]
pub struct Message {
    pub(crate) command: Command,
    pub(crate) reply: Sender<Answer>,
}
