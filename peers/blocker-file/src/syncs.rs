//! Syncs of one file under way: what was written to it becomes durable, and its name if it is new.
//!
//! What a failure means for other files: [`crate::sync_state`].

use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::control::Wait;

use crate::calls::{Calls, Part, Token};
use crate::context::{Context, Replies};
use crate::layout::Layout;
use crate::open_file::OpenFile;
use crate::stall_detector::wait_on;
use crate::sync_state::LogicalTime;

/// A sync of a file, for one request.
#[derive(Debug)]
struct FileSync {
    ticket: u64,
    open: Rc<OpenFile>,
    /// What it covers.
    began: LogicalTime,
    /// Answers that are still to come.
    waiting: u32,
    failed: Option<ErrorCode>,
}

/// The syncs of a pool's files.
#[derive(Debug)]
pub(crate) struct Syncs {
    calls: Calls<FileSync>,
    count: u64,
}

impl Syncs {
    /// None yet, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        Syncs {
            calls: Calls::new(seconds),
            count: 0,
        }
    }

    /// Time goes on.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.calls.tick(seconds);
    }

    /// Syncs started so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Makes what was written to `open` durable.
    pub(crate) fn start(&mut self, ticket: u64, open: Rc<OpenFile>, context: &Context<'_>) {
        self.count += 1;
        let fresh = open.is_fresh();
        let index = self.calls.insert(FileSync {
            ticket,
            open: Rc::clone(&open),
            began: context.files.now(),
            waiting: 1 + u32::from(fresh),
            failed: None,
        });
        let token = Token {
            part: Part::Syncs,
            index,
        };
        context.source.sync(open.file(), token.to_bits());
        if fresh {
            let lineage = open.id().object.lineage;
            context.threads.sync_names(lineage, token);
        }
    }

    /// A sync failed, of whatever: those under way of files that may have lost something fail, too.
    pub(crate) fn mark_lost(&mut self) {
        for sync in self.calls.iter_mut() {
            if sync.open.sync_state().is_lost() {
                sync.failed = Some(ErrorCode::SyncFailed);
            }
        }
    }

    /// One of the answers for the sync at `index`; with the last one its request is answered.
    pub(crate) fn part_done(
        &mut self,
        index: usize,
        failed: Option<ErrorCode>,
        replies: &mut Replies,
    ) {
        let Some(sync) = self.calls.get_mut(index) else {
            return;
        };
        sync.waiting -= 1;
        sync.failed = sync.failed.or(failed);
        if sync.waiting > 0 {
            return;
        }
        let result = match sync.failed {
            Some(code) => {
                sync.open.sync_state().take_loss();
                Err(code)
            }
            None => {
                sync.open.name_synced();
                match sync.open.sync_state().synced(sync.began) {
                    true => Ok(()),
                    false => Err(ErrorCode::SyncFailed),
                }
            }
        };
        replies.push_result(sync.ticket, 0, result);
        self.calls.remove(index);
    }

    /// The ages of the calls that the ring makes, in seconds.
    pub(crate) fn ring_ages(&self) -> impl Iterator<Item = u64> {
        self.calls.ages().map(|(age, _)| age)
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        let calls = self.calls.ages();
        calls.map(|(age, sync)| wait_on("sync of", sync.open.id(), layout, age))
    }
}
