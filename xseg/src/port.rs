//! Ports: a peer's two kinds of end of a channel, whatever carries the channel.
//!
//! Invariants
//! - Each submission is answered exactly once, or its channel breaks.
//! - A client never has more requests in flight than it has credits, so neither ring can overflow.
//! - Nothing here blocks and nothing here is a system call, but for the doorbell that wakes a sleeper.

use crate::entry::{Completion, Submission};
use crate::region::{Region, RegionId, RegionTable};

/// Why a port could not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PortError {
    /// All credits are in flight: nothing changed, go on when a completion has come.
    #[error("no credit left on the channel")]
    Full,
    /// The other side has disconnected or broke the protocol: reconnect, or close the port.
    #[error("the channel is broken")]
    Broken,
}

/// The end of a channel that sends requests.
pub trait ClientPort {
    /// Requests that can still be submitted before one completes.
    fn credits(&self) -> usize;

    /// Queues `submission`; the server may see it before [`ClientPort::publish`].
    ///
    /// `cookie` comes back with the completion; `submission.tag` is set by the port.
    ///
    /// # Errors
    /// [`PortError::Full`] changes nothing. [`PortError::Broken`]: the channel has ended.
    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError>;

    /// Makes what was submitted visible and rings the server's doorbell if it sleeps. Once per batch.
    fn publish(&mut self);

    /// The next completion and the cookie of its request, in the order in which the server completed.
    fn complete(&mut self) -> Option<(u64, Completion)>;

    /// Lets the server use `region` under `id`, once [`ClientPort::region_ready`] returns `true`.
    ///
    /// # Errors
    /// [`PortError::Full`]: too many regions. [`PortError::Broken`]: the channel has ended.
    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError>;

    /// Whether the server has acknowledged region `id`.
    fn region_ready(&self, id: RegionId) -> bool;

    /// Takes region `id` back. The caller has no request in flight that names it.
    fn remove_region(&mut self, id: RegionId);

    /// The channel's own memory, [`RegionId::ARENA`]: for data that is in no guest's memory.
    fn arena(&self) -> &Region;

    /// Counts the connections of this port: a change means that the server was replaced.
    fn incarnation(&self) -> u64;

    /// Whether there is a live server behind the port.
    fn is_connected(&self) -> bool;

    /// Has each successor of the server get `submission`, with its completion for `cookie`, before any request: what was opened at
    /// the server as number `number` is opened there again. In place of what was announced as that number before.
    fn announce(&mut self, _number: u32, _cookie: u64, _submission: Submission) {
        // A server in the same thread has no successor.
    }

    /// What was announced as `number` is not open any more.
    fn withdraw(&mut self, _number: u32) {}

    /// Announces sleep; `false`: something has arrived, do not sleep. Pair with [`ClientPort::wake`].
    fn prepare_sleep(&mut self) -> bool;

    /// Takes the announcement of sleep back.
    fn wake(&mut self);
}

/// The end of a channel that answers requests.
pub trait ServerPort {
    /// Takes the next request: a private copy, validated by its tag only.
    fn accept(&mut self) -> Option<Submission>;

    /// Answers the request with `completion.tag`. There is always room.
    fn complete(&mut self, completion: Completion);

    /// Makes completions visible and rings the client's doorbell if it sleeps. Once per batch.
    fn publish(&mut self);

    /// The memory that requests of this channel may name.
    fn regions(&self) -> &RegionTable;

    /// Ends the channel because its client broke the protocol of the layer above.
    fn break_channel(&mut self, why: &str);

    /// Whether the client has disconnected or was cut off. Answers to it are dropped.
    fn is_closed(&self) -> bool;

    /// Announces sleep; `false`: something has arrived, do not sleep. Pair with [`ServerPort::wake`].
    fn prepare_sleep(&mut self) -> bool;

    /// Takes the announcement of sleep back.
    fn wake(&mut self);
}
