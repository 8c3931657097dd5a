//! Which calls have not returned for long, so that somebody can be told, and does not take up what others need.

use std::time::Duration;

use archipelago_protocol::Lineage;
use archipelago_protocol::control::Wait;
use archipelago_protocol::object::ObjectOp;

use crate::backend::{FileBackend, Pending};
use crate::layout::FileId;
use crate::transfer::Way;

/// A call that takes longer keeps a worker of the ring from others for longer than they shall wait.
const SLOW_SECONDS: u64 = 2;
/// Waits that are told: the oldest. More say nothing more.
const TOLD_MAX: usize = 8;

/// Jobs that consist of many calls, and take their time: when one of those calls returned last.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: u64,
    /// In seconds, as [`FileBackend::seconds`].
    last: u64,
}

impl Steps {
    fn look(&mut self, done: u64, seconds: u64) {
        if std::mem::replace(&mut self.done, done) != done {
            self.last = seconds;
        }
    }
}

impl FileBackend {
    /// Time goes on. Once a call hangs, the ring may have a worker for each call: others on the same file will hang, too.
    pub(crate) fn look_at(&mut self, now: Duration) {
        self.seconds = now.as_secs();
        self.look_after_reserve();
        self.listings.look(self.slow.steps(), self.seconds);
        self.deletions.look(self.deleter.steps(), self.seconds);
        let (mut calls, mut hangs) = (0, false);
        for (pending, since) in self.pending.iter().zip(&self.since) {
            let on_ring = match pending {
                Some(Pending::Transfer(transfer)) => !transfer.open.alone.get(),
                Some(Pending::Sync { .. }) => true,
                _ => false,
            };
            if on_ring {
                calls += 1;
                hangs |= self.seconds.saturating_sub(*since) >= SLOW_SECONDS;
            }
        }
        self.source.spare_workers(if hangs { calls } else { 0 });
    }

    /// The calls that have been under way for a second or longer, the oldest first.
    pub(crate) fn told_waits(&self) -> Vec<Wait> {
        let mut waits: Vec<Wait> = (0..self.pending.len())
            .filter_map(|index| self.wait(index))
            .filter(|wait| wait.seconds > 0)
            .collect();
        waits.sort_by_key(|wait| std::cmp::Reverse(wait.seconds));
        waits.truncate(TOLD_MAX);
        waits
    }

    fn wait(&self, index: usize) -> Option<Wait> {
        let pool = self.layout.directory().display();
        let on = |what: &str, id: FileId| {
            let path = self.layout.file(id);
            (id.object.lineage, format!("{what} {}", path.display()))
        };
        let mut since = self.since[index];
        let (lineage, what) = match self.pending.get(index)?.as_ref()? {
            Pending::Open(awaited) => on("open of", awaited.id),
            Pending::Sync { open, .. } => on("sync of", open.id),
            Pending::Transfer(transfer) if transfer.way == Way::Read => {
                on("read of", transfer.open.id)
            }
            Pending::Transfer(transfer) => on("write to", transfer.open.id),
            Pending::SyncPool { .. } => (Lineage::CATALOGUE, format!("sync of {pool}")),
            Pending::Slow { op, id, .. } => match op {
                ObjectOp::List => {
                    since = since.max(self.listings.last);
                    (Lineage::CATALOGUE, format!("listing of {pool}"))
                }
                ObjectOp::StatPool => (Lineage::CATALOGUE, format!("look at {pool}")),
                ObjectOp::DeleteLineage | ObjectOp::Delete | ObjectOp::Punch => {
                    since = since.max(self.deletions.last);
                    let path = self.layout.lineage(id.lineage);
                    (id.lineage, format!("deletion in {}", path.display()))
                }
                ObjectOp::ReadSwapped => on("read of", FileId::locate(*id, 0).0),
                _ => on("swap of", FileId::locate(*id, 0).0),
            },
        };
        Some(Wait {
            lineage,
            what,
            seconds: self.seconds.saturating_sub(since),
        })
    }
}
