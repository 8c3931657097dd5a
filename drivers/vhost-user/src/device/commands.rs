//! Commands of the front end's thread: those that came, and those whose answer has to wait.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tracing::warn;

use crate::command::{Answer, Message};

/// How long a command waits with requests that wait for room: as long as they may take to go on when there is some.
const RECALL_AFTER: Duration = Duration::from_secs(1);
/// Between two recalls for one command: what was being tried during the first waits again by then.
const RECALL_INTERVAL: Duration = Duration::from_millis(50);

/// When a command is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The ring has drained; then `Closed` if it was the last one.
    Stopped(u16),
    /// The volume is closed, if no ring is started by then.
    Closed(Answer),
    /// Retired memory is named by nobody, new memory is known to the volume peer.
    MemorySettled,
    /// No request older than this generation is in flight.
    Newer(u64),
    /// Rings have drained without answers, and the volume is closed.
    Reset,
    /// As `Reset`, and memory is given back.
    Disconnected,
    /// As `Disconnected`; the device ends.
    Detached,
}

impl Until {
    /// Whether requests that wait for room hold the command up.
    fn waits_for_room(self) -> bool {
        match self {
            Until::Stopped(_) | Until::Closed(_) | Until::MemorySettled | Until::Newer(_) => true,
            // These have everything answered at once.
            Until::Reset | Until::Disconnected | Until::Detached => false,
        }
    }
}

/// A command that is not done yet.
#[derive(Debug)]
struct Pending {
    until: Until,
    /// When the volume is to give back what waits for room: the command does not wait with it.
    recall_at: Duration,
    reply: Sender<Answer>,
}

/// The commands of one device.
#[derive(Debug)]
pub(super) struct Commands {
    receiver: Receiver<Message>,
    pending: Vec<Pending>,
}

impl Commands {
    pub(super) fn new(receiver: Receiver<Message>) -> Self {
        Commands {
            receiver,
            pending: Vec::new(),
        }
    }

    /// The next command that has come.
    pub(super) fn next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    /// Whether none has come.
    pub(super) fn none_came(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Drops the commands that have come: their callers see that the reply was dropped.
    pub(super) fn refuse_all(&mut self) {
        while self.next().is_some() {}
    }

    /// Has a command wait from `now` on.
    pub(super) fn wait(&mut self, until: Until, now: Duration, reply: Sender<Answer>) {
        self.pending.push(Pending {
            until,
            recall_at: now + RECALL_AFTER,
            reply,
        });
    }

    /// Whether some command waits.
    pub(super) fn any_waits(&self) -> bool {
        !self.pending.is_empty()
    }

    /// What the command at `index` waits for; `None`: there are not so many.
    pub(super) fn until(&self, index: usize) -> Option<Until> {
        self.pending.get(index).map(|pending| pending.until)
    }

    /// The command at `index` waits for something else now.
    pub(super) fn set_until(&mut self, index: usize, until: Until) {
        self.pending[index].until = until;
    }

    /// Answers the command at `index`; another one takes its place.
    pub(super) fn answer(&mut self, index: usize, answer: Answer) {
        reply(&self.pending.swap_remove(index).reply, answer);
    }

    /// When the next recall is.
    pub(super) fn recall_due(&self) -> Option<Duration> {
        let held_up = self.pending.iter().filter(|it| it.until.waits_for_room());
        held_up.map(|pending| pending.recall_at).min()
    }

    /// Whether what waits for room is to be recalled now for the command at `index`; the next time is later.
    pub(super) fn take_recall(&mut self, index: usize, now: Duration) -> bool {
        let pending = &mut self.pending[index];
        if now < pending.recall_at || !pending.until.waits_for_room() {
            return false;
        }
        pending.recall_at = now + RECALL_INTERVAL;
        true
    }
}

/// Sends the answer to a command.
pub(super) fn reply(to: &Sender<Answer>, answer: Answer) {
    if to.send(answer).is_err() {
        warn!("nobody waits for {answer:?} any more");
    }
}
