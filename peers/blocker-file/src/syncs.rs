//! Syncs of objects under way: they make the data of their files durable, and new names.
//!
//! The consequences of a failure for other files: [`crate::sync_state`].

use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::control::Wait;

use crate::calls::{Calls, Part, Token};
use crate::context::{Context, Replies};
use crate::layout::Layout;
use crate::open_file::OpenFile;
use crate::stall_detector::wait_on;
use crate::sync_state::LogicalTime;

/// A request, until all its files are synced.
#[derive(Debug)]
struct ObjectSync {
    ticket: u64,
    files: usize,
    failed: Option<ErrorCode>,
}

/// A sync of a file, for one request.
#[derive(Debug)]
struct FileSync {
    /// The place of the request.
    object: usize,
    open: Rc<OpenFile>,
    /// The logical time of its beginning: it covers all earlier writes.
    began: LogicalTime,
    /// Results that are still to come.
    waiting: u32,
    failed: Option<ErrorCode>,
}

/// The syncs of a pool's files.
#[derive(Debug)]
pub(crate) struct Syncs {
    calls: Calls<FileSync>,
    objects: Calls<ObjectSync>,
    count: u64,
}

impl Syncs {
    /// No syncs yet, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        Syncs {
            calls: Calls::new(seconds),
            objects: Calls::new(seconds),
            count: 0,
        }
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.calls.tick(seconds);
    }

    /// Syncs of files started so far.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Makes earlier writes to `files`, all of one object, durable.
    pub(crate) fn start(
        &mut self,
        ticket: u64,
        files: Vec<Rc<OpenFile>>,
        context: &mut Context<'_>,
    ) {
        if files.is_empty() {
            return context.replies.push_result(ticket, 0, Ok(()));
        }
        let object = self.objects.insert(ObjectSync {
            ticket,
            files: files.len(),
            failed: None,
        });
        for open in files {
            self.start_file(object, open, context);
        }
    }

    fn start_file(&mut self, object: usize, open: Rc<OpenFile>, context: &Context<'_>) {
        self.count += 1;
        let fresh = open.is_fresh();
        let index = self.calls.insert(FileSync {
            object,
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

    /// Records that a sync failed, of any file: those under way whose files may have lost data fail, too.
    pub(crate) fn mark_lost(&mut self) {
        for sync in self.calls.iter_mut() {
            if sync.open.sync_state().is_lost() {
                sync.failed = Some(ErrorCode::SyncFailed);
            }
        }
    }

    /// Handles one of the results for the sync at `index`; with the last one its file is done.
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
        let object = sync.object;
        self.calls.remove(index);
        self.file_done(object, result, replies);
    }

    /// Handles the result for a file of the request at `index`; with the last one the request is answered.
    fn file_done(&mut self, index: usize, result: Result<(), ErrorCode>, replies: &mut Replies) {
        let Some(object) = self.objects.get_mut(index) else {
            return;
        };
        object.files -= 1;
        object.failed = object.failed.or(result.err());
        if object.files == 0 {
            let result = object.failed.map_or(Ok(()), Err);
            replies.push_result(object.ticket, 0, result);
            self.objects.remove(index);
        }
    }

    /// The ages of the ring's calls, in seconds.
    pub(crate) fn ring_ages(&self) -> impl Iterator<Item = u64> {
        self.calls.ages().map(|(age, _)| age)
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        let calls = self.calls.ages();
        calls.map(|(age, sync)| wait_on("sync of", sync.open.id(), layout, age))
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectReply;

    use super::*;

    #[test]
    fn one_file_that_was_not_synced_fails_the_sync_of_its_object() {
        let (mut syncs, mut replies) = (Syncs::new(0), Replies::default());
        let failed = ObjectReply::failed(ErrorCode::Io);
        for (results, expected) in [
            ([Err(ErrorCode::Io), Ok(())], failed),
            ([Ok(()), Err(ErrorCode::Io)], failed),
            ([Ok(()), Ok(())], ObjectReply::done(0)),
        ] {
            let object = syncs.objects.insert(ObjectSync {
                ticket: 7,
                files: 2,
                failed: None,
            });
            for result in results {
                assert_eq!(replies.pop(), None, "answered with the last file");
                syncs.file_done(object, result, &mut replies);
            }
            assert_eq!(replies.pop(), Some((7, expected)));
        }
    }
}
