//! Commands of the front end's thread: the new ones, and those whose answer has to wait.

use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use tracing::warn;

use crate::command::{Answer, Message};

/// How long a command waits for requests that wait for space: long enough for them to go on when there is some.
const RECALL_AFTER: Duration = Duration::from_secs(1);
/// Pause between two recalls for one command: requests that were being tried during the first wait again by then.
const RECALL_INTERVAL: Duration = Duration::from_millis(50);

/// The condition for the answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Until {
    /// The ring has drained; then `Closed` if it was the last one.
    Stopped(u16),
    /// The volume is closed, if no ring is started by then.
    Closed(Answer),
    /// No request names retired memory, and the volume peer has added new memory.
    MemorySettled,
    /// No request older than this generation is in flight.
    Newer(u64),
    /// Rings have drained without answers, and the volume is closed.
    Reset,
    /// As `Reset`, and memory is unmapped.
    Disconnected,
    /// As `Disconnected`; the device ends.
    Detached,
}

impl Until {
    /// Whether requests that wait for space delay the command.
    fn waits_for_room(self) -> bool {
        match self {
            Until::Stopped(_) | Until::Closed(_) | Until::MemorySettled | Until::Newer(_) => true,
            // These commands have all requests answered at once.
            Until::Reset | Until::Disconnected | Until::Detached => false,
        }
    }
}

/// A command that is not done yet.
#[derive(Debug)]
struct Pending {
    until: Until,
    /// When the volume is to give back requests that wait for space, so that the command does not wait for them.
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

    /// The next new command.
    pub(super) fn next(&mut self) -> Option<Message> {
        self.receiver.try_recv().ok()
    }

    /// Whether there is no new command.
    pub(super) fn none_came(&self) -> bool {
        self.receiver.is_empty()
    }

    /// Drops the new commands: their callers see that the reply was dropped.
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

    /// The condition of the command at `index`; `None`: there are fewer.
    pub(super) fn until(&self, index: usize) -> Option<Until> {
        self.pending.get(index).map(|pending| pending.until)
    }

    /// Changes the condition of the command at `index`.
    pub(super) fn set_until(&mut self, index: usize, until: Until) {
        self.pending[index].until = until;
    }

    /// Answers the command at `index`; another one takes its place.
    pub(super) fn answer(&mut self, index: usize, answer: Answer) {
        reply(&self.pending.swap_remove(index).reply, answer);
    }

    /// The time of the next recall.
    pub(super) fn recall_due(&self) -> Option<Duration> {
        let held_up = self.pending.iter().filter(|it| it.until.waits_for_room());
        held_up.map(|pending| pending.recall_at).min()
    }

    /// Whether requests that wait for space are to be recalled now for the command at `index`; sets the time of its next recall.
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
