//! Making durable: who waits for what, and what a failure means for the others ([`crate::unsynced`]).

use std::io;
use std::rc::Rc;

use archipelago_protocol::object::ObjectReply;
use archipelago_protocol::{ErrorCode, Lineage};

use crate::backend::{FileBackend, Pending};
#[cfg(test)]
use crate::errors::Failed;
use crate::errors::{is_of_one_file, sync_code_of};
use crate::files::Open;
use crate::jobs::Job;
use crate::slow::Line;
use crate::transfer::Way;

impl FileBackend {
    /// Makes what was written to `open` durable.
    pub(crate) fn start_sync(&mut self, ticket: u64, open: Rc<Open>) {
        self.counters.file_syncs += 1;
        let fresh = open.fresh.get();
        let waiting = 1 + u32::from(fresh);
        let index = self.insert(Pending::Sync {
            ticket,
            open: Rc::clone(&open),
            began: self.files.now(),
            waiting,
            failed: None,
        });
        self.source.sync(&open.file, index as u64);
        if fresh {
            self.send_names(index, open.id.object.lineage);
        }
    }

    /// Has the names of the files of `lineage` made durable, for what is at `index`.
    pub(crate) fn send_names(&self, index: usize, lineage: Lineage) {
        self.slow
            .send(Line::Swaps(lineage), index, Job::Names(lineage));
    }

    /// What a sync on the ring came to, if it failed.
    pub(crate) fn sync_failure(&mut self, result: i32) -> Option<ErrorCode> {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(-result))?;
        if !is_of_one_file(&error) {
            self.lose_unsynced();
        }
        Some(sync_code_of(&error))
    }

    /// A sync failed, of whatever: what is not durable may be gone. What is under way may have lost to it, too.
    pub(crate) fn lose_unsynced(&mut self) {
        self.files.lose_unsynced();
        for pending in self.pending.iter_mut().flatten() {
            match pending {
                Pending::Transfer(transfer) if transfer.durable && transfer.way == Way::Write => {
                    transfer.failed = Some(ErrorCode::SyncFailed);
                }
                Pending::Sync { open, failed, .. } if open.unsynced.is_lost() => {
                    *failed = Some(ErrorCode::SyncFailed);
                }
                _ => {}
            }
        }
    }

    /// One of several answers that make something durable.
    pub(crate) fn on_part(&mut self, index: usize, code: Option<ErrorCode>) {
        match self.pending.get_mut(index) {
            Some(Some(Pending::Transfer(transfer))) => {
                transfer.waiting -= 1;
                transfer.failed = transfer.failed.or(code);
                if transfer.waiting > 0 {
                    return;
                }
                if transfer.failed.is_none() {
                    transfer.open.fresh.set(false);
                }
                self.finish_transfer(index, Ok(()));
            }
            Some(Some(Pending::Sync {
                began,
                waiting,
                failed,
                open,
                ticket,
            })) => {
                *waiting -= 1;
                *failed = failed.or(code);
                if *waiting > 0 {
                    return;
                }
                let (ticket, mut failed) = (*ticket, *failed);
                if failed.is_some() {
                    open.unsynced.told();
                } else {
                    open.fresh.set(false);
                    if !open.unsynced.synced(*began) {
                        failed = Some(ErrorCode::SyncFailed);
                    }
                }
                self.remove(index);
                self.answer(
                    ticket,
                    failed.map_or_else(|| ObjectReply::done(0), ObjectReply::failed),
                );
            }
            _ => {}
        }
    }

    /// The sync of what a predecessor wrote failed. Another try might succeed, and nobody hear of what is gone.
    pub(crate) fn suspect_all(&mut self) {
        self.files.suspect_all();
        self.untold = true;
    }

    /// What the thread of pool syncs says when one of them has failed; a disk that does so cannot be had.
    #[cfg(test)]
    pub(crate) fn fail_pool_sync(&mut self) {
        let (ticket, began) = (u64::MAX, self.files.now());
        let index = self.insert(Pending::SyncPool { ticket, began });
        let failed = Failed::sync(&io::Error::from_raw_os_error(libc::EIO));
        self.on_slow(index, Err(failed));
        self.done.retain(|(ticket, _)| *ticket != u64::MAX);
    }
}
