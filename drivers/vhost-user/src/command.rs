//! What the thread of a connection asks of the device on the data thread.
//!
//! Invariants
//! - Everything that could block, map or allocate much has been done before a command is sent: the device only takes over.
//! - Each command is answered once, when it is true: a stopped ring has drained, removed memory is named by nobody. A
//!   device that goes away drops the answer's sender, which the waiting thread sees.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_channel::{Sender, bounded};
use xseg::Region;

use crate::config::RING_SIZE_MAX;
use crate::dirty_log::DirtyLog;
use crate::memory::{GuestSlot, MEMORY_SLOTS_MAX};
use crate::queue::RingAddresses;
use crate::ring_check::RingsSeen;
use crate::shared::signal;

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
    /// The eventfd that reports a broken ring.
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
    /// The front end has disconnected.
    Disconnected,
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
    Refused(Refusal),
}

/// Why a command has changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No queue has the index.
    #[error("there is no such queue")]
    NoSuchQueue,
    /// Only a stopped ring is set up.
    #[error("the ring is running")]
    RingRuns,
    /// A size that rings do not have.
    #[error("a ring of {0} entries is not a power of two in 1..={RING_SIZE_MAX}")]
    RingSize(u16),
    /// The kick eventfd cannot be watched: the errno, if there is one.
    #[error("the kick eventfd cannot be watched (errno {0:?})")]
    Unwatched(Option<i32>),
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// Memory that is there already.
    #[error("the memory slot overlaps another one")]
    SlotsOverlap,
    /// Memory that is not there.
    #[error("there is no such memory slot")]
    NoSuchSlot,
    /// More memory than there may be.
    #[error("there are {MEMORY_SLOTS_MAX} memory slots already")]
    TooManySlots,
    /// The volume peer takes no more regions.
    #[error("the volume peer has no room for a region")]
    TooManyRegions,
}

/// A command and where its answer goes.
#[derive(Debug)]
pub struct Message {
    pub(crate) command: Command,
    pub(crate) reply: Sender<Answer>,
}

/// The way to the device: a channel of commands, and the doorbell that wakes the device's thread.
#[derive(Debug, Clone)]
pub(crate) struct CommandChannel {
    commands: Sender<Message>,
    doorbell: Arc<File>,
}

impl CommandChannel {
    pub(crate) fn new(commands: Sender<Message>, doorbell: File) -> Self {
        CommandChannel {
            commands,
            doorbell: Arc::new(doorbell),
        }
    }

    /// Sends `command` to the device and waits for the answer. `None`: the device has ended.
    pub(crate) fn call(&self, command: Command) -> Option<Answer> {
        let (reply, answer) = bounded(1);
        self.commands.send(Message { command, reply }).ok()?;
        signal(&self.doorbell);
        answer.recv().ok()
    }
}
