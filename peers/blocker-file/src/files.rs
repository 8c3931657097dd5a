//! Open files of a pool: a bounded cache, which closes the least recently used file.
//!
//! Invariants
//! - A file with a request in flight is never closed.
//! - Files are opened and closed by the threads of the blocking pool, never by the data thread.
//! - A file that this process created is `fresh` until its name is durable. A fresh file stays open.
//! - `chunks` has the files of `open` and `closed`, so that a sync of an object finds them.
//! - The sync state of a file outlives its close as long as the file has unsynced writes or an unreported loss. In a suspect pool every
//!   sync state does, because it records whether the loss was reported.

use std::rc::Rc;
use std::time::Duration;

use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_runtime::{Calls, File};
use rustc_hash::{FxHashMap, FxHashSet};

use crate::access::Access;
use crate::blocking_pool::{JobQueue, JobSender};
use crate::descriptors;
use crate::jobs::Job;
use crate::layout::FileId;
use crate::open_file::{OpenFile, OpenedAs};
use crate::open_job::{Missing, OpenJob, Opened};
use crate::sync_state::{LogicalTime, SyncState};

/// Files closed at once when no descriptor is free: the opens that follow need a few.
const IDLE_CLOSED_AT_ONCE: usize = 16;

/// Most files of an object that are synced one by one: eight syncs in flight cost about as much as one sync of the pool.
const SYNCS_MAX: usize = 8;

/// What a sync of an object has to make durable.
#[derive(Debug)]
pub(crate) enum Unsynced {
    /// These files, perhaps none.
    Files(Vec<Rc<OpenFile>>),
    /// So many that a sync of the pool is cheaper.
    Many,
    /// Writes are lost: the sync fails.
    Lost,
}

fn forget_chunk(chunks: &mut FxHashMap<ObjectId, Vec<u64>>, id: FileId) {
    if let Some(of_object) = chunks.get_mut(&id.object) {
        of_object.retain(|chunk| *chunk != id.chunk);
        if of_object.is_empty() {
            chunks.remove(&id.object);
        }
    }
}

/// The open files of a pool.
#[derive(Debug)]
pub(crate) struct Files {
    access: Access,
    calls: Calls,
    /// The file system copies on write (btrfs, for example).
    copy_on_write: bool,
    /// Most files kept open, unless all are in use.
    open_max: usize,
    open: FxHashMap<FileId, Rc<OpenFile>>,
    /// The sync states that outlive the close of their files.
    closed: FxHashMap<FileId, SyncState>,
    /// The chunks of each object that are open, or closed with a sync state.
    chunks: FxHashMap<ObjectId, Vec<u64>>,
    /// Objects that clients wrote through an earlier process, whose writes may be lost: the next sync of each reports that.
    lost_objects: FxHashSet<ObjectId>,
    /// Files whose creation failed: if their name exists, it may not be durable.
    half_created: FxHashSet<FileId>,
    /// Writes of an earlier process may be lost: the first sync of each file reports that.
    suspect: bool,
    /// The logical clock of the pool's opens, uses and writes.
    clock: u64,
    /// The beginning of the last successful sync of the pool.
    pool_synced: LogicalTime,
    opens: u64,
    creations: u64,
}

impl Files {
    /// The files of one of `backends` that keep files of the pool open in this process.
    pub(crate) fn new(access: Access, calls: Calls, copy_on_write: bool, backends: usize) -> Self {
        let limit = descriptors::files_kept(descriptors::limit());
        let all = usize::try_from(limit).expect("a few thousand at most");
        let open_max = (all / backends).max(1);
        Files {
            access,
            calls,
            copy_on_write,
            open_max,
            open: FxHashMap::default(),
            closed: FxHashMap::default(),
            chunks: FxHashMap::default(),
            lost_objects: FxHashSet::default(),
            half_created: FxHashSet::default(),
            suspect: false,
            clock: 0,
            pool_synced: LogicalTime(0),
            opens: 0,
            creations: 0,
        }
    }

    /// The file `id`, if it is open. It becomes the most recently used one.
    pub(crate) fn find(&mut self, id: FileId) -> Option<Rc<OpenFile>> {
        self.clock += 1;
        let open = self.open.get(&id)?;
        open.touch(LogicalTime(self.clock));
        Some(Rc::clone(open))
    }

    /// How many files were opened so far, and how many of these were created.
    pub(crate) fn figures(&self) -> (u64, u64) {
        (self.opens, self.creations)
    }

    /// The job that opens the file `id`.
    pub(crate) fn open_job(&self, id: FileId, missing: Missing) -> OpenJob {
        OpenJob {
            id,
            missing,
            direct: self.is_direct(id),
            in_place: self.is_in_place(id),
            pause: Duration::ZERO,
        }
    }

    /// Adds a file that was opened. A file that was `deleted` meanwhile serves the requests that wait for it, and is not kept.
    pub(crate) fn opened(
        &mut self,
        id: FileId,
        opened: Opened,
        closing: JobSender,
        deleted: bool,
    ) -> Rc<OpenFile> {
        self.clock += 1;
        self.make_room();
        // An earlier creation that failed may have left the name.
        let fresh = self.half_created.remove(&id) || opened.created;
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
        if !deleted {
            self.open.insert(id, Rc::clone(&open));
            let chunks = self.chunks.entry(id.object).or_default();
            if !chunks.contains(&id.chunk) {
                chunks.push(id.chunk);
            }
        }
        open
    }

    /// What a sync of `object` has to make durable. A loss that it has to report instead is cleared.
    pub(crate) fn unsynced(&mut self, object: ObjectId) -> Unsynced {
        let mut lost = self.lost_objects.remove(&object);
        let mut open = Vec::new();
        let mut is_closed = false;
        for chunk in self.chunks.get(&object).into_iter().flatten() {
            let id = FileId {
                object,
                chunk: *chunk,
            };
            if let Some(file) = self.open.get(&id) {
                if file.is_fresh() || file.sync_state().must_be_kept(self.pool_synced) {
                    open.push(Rc::clone(file));
                }
            } else if let Some(state) = self.closed.get(&id) {
                lost |= state.take_loss();
                is_closed |= state.must_be_kept(self.pool_synced);
            }
        }
        if lost {
            for file in &open {
                file.sync_state().take_loss();
            }
            return Unsynced::Lost;
        }
        if is_closed || open.len() > SYNCS_MAX {
            // The sync of the pool reports the losses of no file.
            let losses = open.iter().filter(|file| file.sync_state().take_loss());
            return match losses.count() {
                0 => Unsynced::Many,
                _ => Unsynced::Lost,
            };
        }
        Unsynced::Files(open)
    }

    /// A client wrote `object` through an earlier process. All of that was made durable when the pool was opened, if it could be.
    pub(crate) fn written_before(&mut self, object: ObjectId) {
        if self.suspect {
            self.lost_objects.insert(object);
        }
    }

    /// The creation of the file `id` failed; its name may exist all the same.
    pub(crate) fn half_created(&mut self, id: FileId) {
        self.half_created.insert(id);
    }

    /// Drops the files that `which` selects, and their sync states: they are being deleted. A request in flight keeps its file
    /// open to its end.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.open.retain(|id, _| !which(id));
        self.closed.retain(|id, _| !which(id));
        self.chunks.retain(|object, chunks| {
            let object = *object;
            chunks.retain(|chunk| {
                !which(&FileId {
                    object,
                    chunk: *chunk,
                })
            });
            !chunks.is_empty()
        });
        self.half_created.retain(|id| !which(id));
    }

    /// The sync of an earlier process's writes failed: the first sync of each file that this process has not created reports a
    /// loss.
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

    /// A write to `open` ended, with success or without.
    pub(crate) fn wrote(&mut self, open: &OpenFile) {
        self.clock += 1;
        open.sync_state().wrote(self.now());
    }

    /// The logical time: a sync that begins now covers all writes up to it.
    pub(crate) fn now(&self) -> LogicalTime {
        LogicalTime(self.clock)
    }

    /// A sync of the pool that began at `began` succeeded.
    pub(crate) fn pool_synced(&mut self, began: LogicalTime) {
        self.pool_synced = self.pool_synced.max(began);
        let pool_synced = self.pool_synced;
        for open in self.open.values() {
            open.pool_synced(pool_synced);
        }
        let chunks = &mut self.chunks;
        self.closed.retain(|id, state| {
            let kept = self.suspect || state.must_be_kept(pool_synced);
            if !kept {
                forget_chunk(chunks, *id);
            }
            kept
        });
    }

    /// A sync failed, and the kernel does not report which file's data is lost: every file with unsynced writes has a loss to report.
    pub(crate) fn mark_unsynced_lost(&mut self) {
        let open = self.open.values().map(|open| open.sync_state());
        for state in open.chain(self.closed.values()) {
            state.mark_lost_if_dirty(self.pool_synced);
        }
    }

    /// Whether the file `id` bypasses the page cache. Packs use the cache: their reads and writes are unaligned, and
    /// are not repeated.
    fn is_direct(&self, id: FileId) -> bool {
        self.access != Access::Cached
            && matches!(id.object.kind, ObjectKind::Data | ObjectKind::Log)
    }

    /// Whether the file `id` is overwritten in place on a file system that copies on write.
    ///
    /// A log is a ring: overwriting it must need no free space. A container written directly would get checksums of the file
    /// system that fail if the guest changes its memory during a write; with `direct = false` it keeps these checksums.
    fn is_in_place(&self, id: FileId) -> bool {
        self.copy_on_write
            && match id.object.kind {
                ObjectKind::Log => true,
                ObjectKind::Data => self.is_direct(id),
                _ => false,
            }
    }

    fn make_room(&mut self) {
        if self.open.len() >= self.open_max {
            self.close_least_recent_idle();
        }
    }

    /// Closes some files that no request uses, because no descriptor is free.
    pub(crate) fn close_some_idle(&mut self) {
        for _ in 0..IDLE_CLOSED_AT_ONCE {
            if !self.close_least_recent_idle() {
                return;
            }
        }
    }

    /// Closes the least recently used file that no request uses and whose name is durable. Returns whether there was one.
    fn close_least_recent_idle(&mut self) -> bool {
        let idle = self
            .open
            .values()
            .filter(|open| Rc::strong_count(open) == 1 && !open.is_fresh());
        let Some(oldest) = idle
            .min_by_key(|open| open.last_used())
            .map(|open| open.id())
        else {
            return false;
        };
        let closed = self.open.remove(&oldest);
        let state = closed.map(|open| open.sync_state().clone());
        if let Some(state) = state.filter(|it| self.suspect || it.must_be_kept(self.pool_synced)) {
            self.closed.insert(oldest, state);
        } else {
            forget_chunk(&mut self.chunks, oldest);
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
        let mut files = Files::new(Access::Cached, Calls::First, false, 1);
        files.open_max = 1;
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
        files.mark_unsynced_lost();
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
        let mut files = Files::new(Access::Cached, Calls::First, false, 1);
        let (id, _) = FileId::locate(ObjectId::data(Lineage(1), Epoch(1)), 0);
        drop(files.open_job(id, Missing::Create).run(&layout).unwrap());
        files.half_created(id);
        let opened = files.open_job(id, Missing::Refuse).run(&layout).unwrap();
        assert!(!opened.created);
        let open = files.opened(id, opened, threads.sender(), false);
        assert!(open.is_fresh());
    }

    #[test]
    fn a_sync_covers_the_files_of_its_object_and_the_pool_when_they_are_many() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let threads = BlockingPool::for_test(1, layout.clone());
        let mut files = Files::new(Access::Cached, Calls::First, false, 1);
        let [object, other] = [1, 2].map(|n| ObjectId::data(Lineage(n), Epoch(1)));
        let write = |files: &mut Files, object, chunk| {
            let id = FileId { object, chunk };
            let open = files.find(id).unwrap_or_else(|| {
                let job = files.open_job(id, Missing::Create);
                let opened = job.run(&layout).unwrap();
                files.opened(id, opened, threads.sender(), false)
            });
            open.name_synced();
            files.wrote(&open);
            open
        };
        let count = |files: &mut Files| match files.unsynced(object) {
            Unsynced::Files(open) => open.len(),
            other => panic!("{other:?}"),
        };
        write(&mut files, other, 0);
        assert_eq!(count(&mut files), 0);
        let first = write(&mut files, object, 0);
        write(&mut files, object, 5);
        assert_eq!(count(&mut files), 2);
        let now = files.now();
        assert!(first.sync_state().synced(now));
        assert_eq!(count(&mut files), 1);
        for chunk in 1..=8 {
            write(&mut files, object, chunk);
        }
        assert_eq!(count(&mut files), 8);
        write(&mut files, object, 0);
        assert!(matches!(files.unsynced(object), Unsynced::Many));
        // A loss is reported once, whichever sync has failed.
        files.mark_unsynced_lost();
        assert!(matches!(files.unsynced(object), Unsynced::Lost));
        assert!(matches!(files.unsynced(object), Unsynced::Many));
        files.pool_synced(files.now());
        assert_eq!(count(&mut files), 0);
        // What was closed with unsynced writes takes a sync of the pool.
        write(&mut files, object, 3);
        files.open.retain(|id, open| {
            let keep = id.object != object;
            if !keep {
                files.closed.insert(*id, open.sync_state().clone());
            }
            keep
        });
        assert!(matches!(files.unsynced(object), Unsynced::Many));
        files.forget(|id| id.object == object);
        assert_eq!(count(&mut files), 0);
        assert_eq!(files.chunks.len(), 1);
        // What a client announces is in doubt only if the sync at the start of the pool failed.
        files.written_before(other);
        assert!(!matches!(files.unsynced(other), Unsynced::Lost));
        files.suspect_all();
        files.written_before(other);
        assert!(matches!(files.unsynced(other), Unsynced::Lost));
        assert!(!matches!(files.unsynced(other), Unsynced::Lost));
    }
}
