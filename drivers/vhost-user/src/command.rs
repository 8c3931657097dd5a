//! Commands of a connection's thread to the device on the data thread.
//!
//! Invariants
//! - Work that could block, map or allocate much is done before a command is sent: the device only applies the result.
//! - Each command is answered once, when it has taken effect: a stopped ring has drained, no request names removed memory. A device that
//!   ends drops the sender of the answer, which the waiting thread sees.

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
    /// Removes a memory slot.
    RemoveSlot {
        /// Guest-physical address.
        guest: u64,
        /// Front-end address.
        user: u64,
        /// Bytes.
        len: u64,
    },
    /// Replaces all memory slots.
    SetSlots(Vec<GuestSlot>),
    /// Number of entries of a ring.
    RingSize(u16, u16),
    /// Addresses of a ring.
    RingAddresses(u16, RingAddresses),
    /// Index at which a ring goes on.
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
    /// The region that records requests in flight.
    InFlight {
        /// The mapping.
        region: Region,
        /// Offset of the area in it.
        start: u64,
        /// Queues it has room for.
        queues: u16,
        /// Entries of each.
        size: u16,
    },
    /// Asks for the visible state of the rings; answered with [`Answer::Rings`].
    Look,
    /// Resets the device to its state at power-on, except memory.
    Reset,
    /// The front end has disconnected.
    Disconnected,
    /// Ends the device.
    Detach,
}

/// The result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Done.
    Done,
    /// The ring has stopped; it goes on at this index.
    Base(u16),
    /// The visible state of the rings.
    Rings(RingsSeen),
    /// Nothing was changed, for this reason.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No queue has the index.
    #[error("there is no such queue")]
    NoSuchQueue,
    /// The ring must be stopped before it is set up.
    #[error("the ring is running")]
    RingRuns,
    /// An illegal size of a ring.
    #[error("a ring of {0} entries is not a power of two in 1..={RING_SIZE_MAX}")]
    RingSize(u16),
    /// The kick eventfd cannot be watched: the errno, if there is one.
    #[error("the kick eventfd cannot be watched (errno {0:?})")]
    Unwatched(Option<i32>),
    /// Features that were not offered.
    #[error("features {0:#x} were not offered")]
    Features(u64),
    /// The memory overlaps a slot.
    #[error("the memory slot overlaps another one")]
    SlotsOverlap,
    /// There is no such memory slot.
    #[error("there is no such memory slot")]
    NoSuchSlot,
    /// The limit of memory slots is reached.
    #[error("there are {MEMORY_SLOTS_MAX} memory slots already")]
    TooManySlots,
    /// The volume peer accepts no more regions.
    #[error("the volume peer has no room for a region")]
    TooManyRegions,
}

/// A command, and the channel for its answer.
#[derive(Debug)]
pub struct Message {
    pub(crate) command: Command,
    pub(crate) reply: Sender<Answer>,
}

/// The channel to the device: commands, and the doorbell that wakes the device's thread.
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
