//! An endpoint as its host sees it, whatever protocol it speaks.

use std::fmt;
use std::time::Duration;

use archipelago_protocol::{Error, Lineage, OnFull};
use archipelago_runtime::Progress;

/// What an endpoint waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    /// Nothing: it has work now.
    Ready,
    /// The volume peer, perhaps among others: the driver must be polled after each sleep of the thread.
    Waiting,
    /// One of its wake-ups, or a call of its host. Until then it needs no poll; the other side has been asked to notify it.
    Idle,
}

/// Why an endpoint cannot open its volume for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shortage {
    /// No slot is free; requests wait.
    Waits,
    /// There was no space for as long as the volume's policy waits; requests fail.
    Reported,
}

/// How far a detach may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Refused while a client is connected.
    IfUnused,
    /// Disconnects the clients.
    Force,
}

/// The half of an endpoint that serves requests. Lives on the data thread, which never blocks in it.
pub trait Driver {
    /// The volume that is served.
    fn lineage(&self) -> Lineage;

    /// Does a bounded part of the pending work.
    fn poll(&mut self) -> Progress;

    /// Asks the other side for notifications, and looks for work once more. [`Activity::Ready`]: work has come meanwhile. Always
    /// followed by [`Driver::wake`] before the next poll.
    fn prepare_sleep(&mut self) -> Activity;

    /// Ends what [`Driver::prepare_sleep`] has begun: the other side need not notify while the driver is polled.
    fn wake(&mut self);

    /// Sets what writes without space in the pool do from now on. Writes that wait already are answered at once if the policy is
    /// [`OnFull::Report`].
    fn set_on_full(&mut self, policy: OnFull);

    /// Why the volume cannot be opened for now, and since when. The shortage of an open volume is reported by the volume peer.
    fn shortage(&self) -> Option<(Shortage, Duration)>;

    /// Whether the endpoint has been detached, so that the driver can be dropped.
    fn is_finished(&self) -> bool;
}

/// From a seed the data thread makes a [`Driver`], with its volume peer `V` and its event loop `W`.
pub trait Seed<V, W>: Send + fmt::Debug {
    /// Makes the driver; called on the data thread.
    ///
    /// # Errors
    /// The kernel's error, if a descriptor cannot be watched.
    fn build(self: Box<Self>, volumes: V, wakeups: W) -> std::io::Result<Box<dyn Driver>>;
}

/// The half of an endpoint that control sees.
pub trait Endpoint: Send + fmt::Debug {
    /// Figures since it was attached, by name, in the order in which they are shown.
    fn counters(&self) -> Vec<(&'static str, u64)>;

    /// The number of connected clients; `None`: this kind does not know it.
    fn clients(&self) -> Option<u64> {
        None
    }

    /// Why no client can be served, although nothing has failed.
    fn problem(&self) -> Option<String>;

    /// Reports that the volume has `size` bytes now; the other side is notified.
    fn resized(&self, size: u64);

    /// Disconnects, waits until nothing is in flight and the volume is closed, and ends the endpoint, which can then be dropped. Never
    /// called on the data thread, which it waits for.
    ///
    /// # Errors
    /// [`InUse`](archipelago_protocol::ErrorCode::InUse) while a client is connected, unless forced; nothing has changed then.
    fn detach(&mut self, how: Detach) -> Result<(), Error>;
}
