//! Ports: the two kinds of ends of a channel, over any transport.
//!
//! Invariants
//! - Each submission is answered exactly once, or its channel breaks.
//! - A client never has more requests in flight than it has credits, so neither ring can overflow.
//! - No call blocks, and none makes a system call except for the doorbell that wakes a sleeper.

use crate::entry::{Completion, Submission};
use crate::region::{Region, RegionId, RegionTable};

/// Why a call of a port failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// All credits are in use: nothing has changed; continue after a completion.
    #[error("no credit left on the channel")]
    Full,
    /// The other side has disconnected or broke the protocol: reconnect, or close the port.
    #[error("the channel is broken")]
    Broken,
}

/// The end of a channel that sends requests.
pub trait ClientPort {
    /// Number of requests that can be submitted before one completes.
    fn credits(&self) -> usize;

    /// Queues `submission`; the server may see it before [`ClientPort::publish`].
    ///
    /// `cookie` is returned with the completion; the port sets `submission.tag`.
    ///
    /// # Errors
    /// [`PortError::Full`] changes nothing. [`PortError::Broken`]: the channel has ended.
    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError>;

    /// Publishes what was submitted, and rings the server's doorbell if the server sleeps. Call it once per batch.
    fn publish(&mut self);

    /// The next completion and the cookie of its request, in the order in which the server completed them.
    fn complete(&mut self) -> Option<(u64, Completion)>;

    /// Adds `region` as `id`. The server can use it once [`ClientPort::region_ready`] returns `true`.
    ///
    /// # Errors
    /// [`PortError::Full`]: too many regions. [`PortError::Broken`]: the channel has ended.
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError>;

    /// Whether the server has acknowledged region `id`.
    fn region_ready(&self, id: RegionId) -> bool;

    /// Removes region `id`. The caller has no request in flight that names it.
    fn remove_region(&mut self, id: RegionId);

    /// The channel's own memory, [`RegionId::ARENA`]: for data that is not in a guest's memory.
    fn arena(&self) -> &Region;

    /// Number of connections of this port so far: a change means that the server was replaced.
    fn incarnation(&self) -> u64;

    /// Whether a live server is connected.
    fn is_connected(&self) -> bool;

    /// Announces `submission` as number `number`: each successor of the server receives it before any request, and its completion belongs
    /// to `cookie`. So what was opened at the server is opened there again. An earlier announcement with this number is replaced.
    fn announce(&mut self, _number: u32, _cookie: u64, _submission: Submission) {
        // A server in the same thread has no successor.
    }

    /// Withdraws the announcement `number`: it is not open any more.
    fn withdraw(&mut self, _number: u32) {}

    /// Announces sleep; `false`: something has arrived, do not sleep. A call of [`ClientPort::wake`] must follow.
    fn prepare_sleep(&mut self) -> bool;

    /// Withdraws the announcement of sleep.
    fn wake(&mut self);
}

/// The end of a channel that answers requests.
pub trait ServerPort {
    /// The next request: a private copy, of which only the tag has been validated.
    fn accept(&mut self) -> Option<Submission>;

    /// Answers the request with the tag `completion.tag`. There is always room.
    fn complete(&mut self, completion: Completion);

    /// Publishes completions, and rings the client's doorbell if the client sleeps. Call it once per batch.
    fn publish(&mut self);

    /// The memory that requests of this channel may use.
    fn regions(&self) -> &RegionTable;

    /// Ends the channel because its client violated the protocol of the layer above.
    fn break_channel(&mut self, why: &str);

    /// Whether the client has disconnected or its channel was broken. Answers to it are dropped.
    fn is_closed(&self) -> bool;

    /// Announces sleep; `false`: something has arrived, do not sleep. A call of [`ServerPort::wake`] must follow.
    fn prepare_sleep(&mut self) -> bool;

    /// Withdraws the announcement of sleep.
    fn wake(&mut self);
}
