//! Open files of a pool: a bounded cache.
//!
//! Invariants
//! - A file with a request in flight is never closed.
//! - Opening and closing is done by threads that may wait for it, never here.
//! - A file that was made here is `fresh` until its name is durable.
//! - What is not durable of a file is known also while it is closed.

use std::rc::Rc;
use std::time::Duration;

use archipelago_protocol::object::ObjectKind;
use archipelago_runtime::{Calls, File};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::access::Access;
use crate::blocking_pool::{JobQueue, JobSender};
use crate::descriptors;
use crate::jobs::Job;
use crate::layout::FileId;
use crate::open_file::{OpenFile, OpenedAs};
use crate::open_job::{Missing, OpenJob, Opened};
use crate::sync_state::{SyncState, Turn};

/// Files closed at once when no descriptor is free: what is opened next needs a few.
const EVICTED_AT_ONCE: usize = 16;

/// The open files of a pool.
#[derive(Debug)]
pub(crate) struct Files {
    access: Access,
    calls: Calls,
    /// The file system copies on write.
    copies: bool,
    limit: usize,
    open: FxHashMap<FileId, Rc<OpenFile>>,
    /// Of files that were closed with something to remember.
    closed: FxHashMap<FileId, SyncState>,
    /// Whose creation failed: a name that is there is not durable.
    half_made: FxHashSet<FileId>,
    /// What a predecessor wrote may be lost: each file's first sync reports that.
    suspect: bool,
    turn: u64,
    /// When the last sync of the pool that succeeded began.
    pool_synced: Turn,
    opens: u64,
    creations: u64,
}

impl Files {
    pub(crate) fn new(access: Access, calls: Calls, copies: bool) -> Self {
        let limit = descriptors::files_kept(descriptors::limit());
        let limit = usize::try_from(limit).expect("a few thousand at most");
        Files {
            access,
            calls,
            copies,
            limit,
            open: FxHashMap::default(),
            closed: FxHashMap::default(),
            half_made: FxHashSet::default(),
            suspect: false,
            turn: 0,
            pool_synced: Turn(0),
            opens: 0,
            creations: 0,
        }
    }

    /// The file `id`, if it is open.
    pub(crate) fn find(&mut self, id: FileId) -> Option<Rc<OpenFile>> {
        self.turn += 1;
        let open = self.open.get(&id)?;
        open.use_at(Turn(self.turn));
        Some(Rc::clone(open))
    }

    /// Files opened and, of these, made so far.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.opens, self.creations)
    }

    /// How `id` is opened.
    pub(crate) fn open_job(&self, id: FileId, missing: Missing) -> OpenJob {
        OpenJob {
            id,
            missing,
            direct: self.is_direct(id),
            in_place: self.is_in_place(id),
            pause: Duration::ZERO,
        }
    }

    /// Takes over a file that was opened. One that is `forgotten` is only for those who wait for it.
    pub(crate) fn opened(
        &mut self,
        id: FileId,
        opened: Opened,
        closing: JobSender,
        forgotten: bool,
    ) -> Rc<OpenFile> {
        self.turn += 1;
        self.make_room();
        // A creation that failed half way may have left a name.
        let fresh = self.half_made.remove(&id) || opened.created;
        self.opens += 1;
        self.creations += u64::from(opened.created);
        let queue = JobQueue::Files(id.object.lineage);
        let close = move |fd| closing.send(queue, Job::Close(fd));
        let file = File::closed_by(opened.file, self.calls, close);
        let opened = OpenedAs {
            direct: self.is_direct(id),
            fresh,
            sync_state: self.sync_state_of(id, opened.created),
            now: self.now(),
        };
        let open = Rc::new(OpenFile::new(id, file, opened));
        if !forgotten {
            self.open.insert(id, Rc::clone(&open));
        }
        open
    }

    /// The file `id` could not be made; its name may be there all the same.
    pub(crate) fn half_made(&mut self, id: FileId) {
        self.half_made.insert(id);
    }

    /// Closes what is open of the files that `which` names. Requests in flight keep theirs to their end.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.open.retain(|id, _| !which(id));
        self.closed.retain(|id, _| !which(id));
        self.half_made.retain(|id| !which(id));
    }

    /// The sync of what a predecessor wrote failed. The first sync of each file that it may have written reports that.
    pub(crate) fn suspect_all(&mut self) {
        self.suspect = true;
    }

    fn sync_state_of(&mut self, id: FileId, fresh: bool) -> SyncState {
        match self.closed.remove(&id) {
            Some(known) => known,
            None if self.suspect && !fresh => SyncState::suspect(),
            None => SyncState::default(),
        }
    }

    /// A write to `open` ended, whatever came of it.
    pub(crate) fn wrote(&mut self, open: &OpenFile) {
        self.turn += 1;
        open.sync_state().wrote(self.now());
    }

    /// What a sync that begins now covers.
    pub(crate) fn now(&self) -> Turn {
        Turn(self.turn)
    }

    /// A sync of the pool that began at `began` succeeded.
    pub(crate) fn pool_synced(&mut self, began: Turn) {
        self.pool_synced = self.pool_synced.max(began);
        let pool_synced = self.pool_synced;
        for open in self.open.values() {
            open.pool_synced(pool_synced);
        }
        self.closed
            .retain(|_, state| self.suspect || state.matters(pool_synced));
    }

    /// A sync failed, and does not say whose data it dropped.
    pub(crate) fn lose_unsynced(&mut self) {
        let open = self.open.values().map(|open| open.sync_state());
        for state in open.chain(self.closed.values()) {
            state.lose(self.pool_synced);
        }
    }

    /// Packs are read and written in odd lengths, once: the page cache serves them best.
    fn is_direct(&self, id: FileId) -> bool {
        self.access != Access::Cached
            && matches!(id.object.kind, ObjectKind::Data | ObjectKind::Log)
    }

    /// Logs are overwritten in circles, also with no room left. Blocks of volumes would be checked by sums of the file system that
    /// a guest which changes its memory under a write makes wrong; whoever wants them says `direct = false`.
    fn is_in_place(&self, id: FileId) -> bool {
        self.copies
            && match id.object.kind {
                ObjectKind::Log => true,
                ObjectKind::Data => self.is_direct(id),
                _ => false,
            }
    }

    fn make_room(&mut self) {
        if self.open.len() >= self.limit {
            self.close_idle();
        }
    }

    /// No descriptor is free: closes some files that nobody uses.
    pub(crate) fn give_back(&mut self) {
        for _ in 0..EVICTED_AT_ONCE {
            if !self.close_idle() {
                return;
            }
        }
    }

    /// Closes the file that was not used for the longest time. Whether there was one.
    fn close_idle(&mut self) -> bool {
        let idle = self
            .open
            .values()
            .filter(|open| Rc::strong_count(open) == 1 && !open.is_fresh());
        let Some(oldest) = idle.min_by_key(|open| open.used()).map(|open| open.id()) else {
            return false;
        };
        let closed = self.open.remove(&oldest);
        let state = closed.map(|open| open.sync_state().clone());
        if let Some(state) = state.filter(|it| self.suspect || it.matters(self.pool_synced)) {
            self.closed.insert(oldest, state);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectId;
    use archipelago_protocol::{Epoch, Lineage};

    use super::*;
    use crate::blocking_pool::BlockingPool;
    use crate::layout::Layout;

    #[test]
    fn what_is_not_durable_is_known_of_closed_files_too() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let threads = BlockingPool::for_test(1, layout.clone());
        let mut files = Files::new(Access::Cached, Calls::First, false);
        files.limit = 1;
        let get = |files: &mut Files, id, missing| {
            let known = files.find(id);
            known.unwrap_or_else(|| {
                let opened = files.open_job(id, missing).run(&layout).unwrap();
                files.opened(id, opened, threads.sender(), false)
            })
        };
        let [first, second] = [1, 2].map(|n| {
            let id = ObjectId::data(Lineage(n), Epoch(1));
            FileId::locate(id, 0).0
        });
        let open = get(&mut files, first, Missing::Create);
        open.name_synced();
        files.wrote(&open);
        drop(open);
        let other = get(&mut files, second, Missing::Create);
        other.name_synced();
        drop(other);
        assert!(!files.open.contains_key(&first));
        files.lose_unsynced();
        let open = get(&mut files, first, Missing::Refuse);
        assert!(!open.sync_state().synced(files.now()), "reported");
        assert!(open.sync_state().synced(files.now()), "once");
        drop(open);
        // What there was before this process is suspect once, too.
        files.suspect_all();
        for reported in [true, false] {
            let open = get(&mut files, second, Missing::Refuse);
            assert_eq!(open.sync_state().synced(files.now()), !reported);
            drop(open);
            drop(get(&mut files, first, Missing::Refuse));
        }
    }

    #[test]
    fn a_name_that_a_failed_creation_may_have_left_is_not_taken_for_durable() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let threads = BlockingPool::for_test(1, layout.clone());
        let mut files = Files::new(Access::Cached, Calls::First, false);
        let (id, _) = FileId::locate(ObjectId::data(Lineage(1), Epoch(1)), 0);
        drop(files.open_job(id, Missing::Create).run(&layout).unwrap());
        files.half_made(id);
        let opened = files.open_job(id, Missing::Refuse).run(&layout).unwrap();
        assert!(!opened.created);
        let open = files.opened(id, opened, threads.sender(), false);
        assert!(open.is_fresh());
    }
}
