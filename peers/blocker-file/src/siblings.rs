//! Reports between the backends of one pool, if several threads of a process serve it: failed syncs, and deleted objects.
//!
//! Each backend knows which of its own writes are not durable. A failed sync may have dropped writes of the others, too, and the kernel
//! reports it to one of them only.
//!
//! Invariants
//! - A failure is counted before its request is answered. A backend checks the counts of the others before it begins a sync, and before it
//!   answers one.
//! - The other backends close deleted files within about a second: then their space is free. No request needs them any more.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use archipelago_protocol::Lineage;
use archipelago_protocol::object::ObjectId;

use crate::layout::FileId;

/// Which data a failed sync may have dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Writes to one file.
    OfFile,
    /// All data that is not durable.
    Unsynced,
    /// The same, by a sync of the pool.
    PoolSync,
}

/// Objects that are being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Deletion {
    Object(ObjectId),
    Lineage(Lineage),
}

impl Deletion {
    /// Whether it covers the file `id`.
    pub(crate) fn has(&self, id: &FileId) -> bool {
        match self {
            Deletion::Object(object) => id.object == *object,
            Deletion::Lineage(lineage) => id.object.lineage == *lineage,
        }
    }
}

/// The reports of one backend.
#[derive(Debug, Default)]
struct Member {
    /// Failed syncs.
    failed: AtomicU64,
    /// Failed syncs that may have dropped data of others.
    unsynced: AtomicU64,
    /// Failed syncs of the pool.
    pool: AtomicU64,
    /// Deletions by others, whose files this backend has not closed yet.
    deletions: Mutex<Vec<Deletion>>,
}

impl Member {
    fn deletions(&self) -> MutexGuard<'_, Vec<Deletion>> {
        // Consistent at any time.
        self.deletions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The backends of a pool.
#[derive(Debug)]
pub(crate) struct Siblings {
    members: Vec<Member>,
    joined: AtomicUsize,
}

impl Siblings {
    /// Room for `count` backends.
    pub(crate) fn new(count: usize) -> Arc<Siblings> {
        Arc::new(Siblings {
            members: (0..count).map(|_| Member::default()).collect(),
            joined: AtomicUsize::new(0),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.members.len()
    }

    /// The place of a further backend; `None`: all are taken.
    pub(crate) fn join(self: &Arc<Siblings>) -> Option<Sibling> {
        // Each number is given once; it orders nothing else.
        let index = self.joined.fetch_add(1, Ordering::Relaxed);
        (index < self.members.len()).then(|| Sibling {
            all: Arc::clone(self),
            index,
            seen: Seen::default(),
        })
    }
}

/// The counts of the others that one backend has seen.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Seen {
    failed: u64,
    unsynced: u64,
    pool: u64,
}

/// One backend among those of its pool.
#[derive(Debug)]
pub(crate) struct Sibling {
    all: Arc<Siblings>,
    index: usize,
    seen: Seen,
}

impl Sibling {
    fn others(&self) -> impl Iterator<Item = &Member> {
        let members = self.all.members.iter().enumerate();
        let own = self.index;
        members.filter_map(move |(index, member)| (index != own).then_some(member))
    }

    /// Reports a failed sync of this backend, before it is answered.
    pub(crate) fn failed(&self, loss: Loss) {
        let own = &self.all.members[self.index];
        if loss == Loss::PoolSync {
            own.pool.fetch_add(1, Ordering::Relaxed);
        }
        if loss != Loss::OfFile {
            own.unsynced.fetch_add(1, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `new_loss`, which then finds the counts above.
        own.failed.fetch_add(1, Ordering::Release);
    }

    /// The worst loss that others have reported since the last call.
    pub(crate) fn new_loss(&mut self) -> Option<Loss> {
        // Acquire: pairs with the Release in `failed`.
        let failed = self
            .others()
            .map(|other| other.failed.load(Ordering::Acquire))
            .sum();
        if failed == self.seen.failed {
            return None;
        }
        let sum = |count: fn(&Member) -> &AtomicU64| {
            self.others()
                .map(|other| count(other).load(Ordering::Relaxed))
                .sum::<u64>()
        };
        let now = Seen {
            failed,
            unsynced: sum(|other| &other.unsynced),
            pool: sum(|other| &other.pool),
        };
        let before = std::mem::replace(&mut self.seen, now);
        Some(
            match (now.pool > before.pool, now.unsynced > before.unsynced) {
                (true, _) => Loss::PoolSync,
                (false, true) => Loss::Unsynced,
                (false, false) => Loss::OfFile,
            },
        )
    }

    /// Failed syncs of the pool so far, of the other backends.
    pub(crate) fn failed_pool_syncs(&self) -> u64 {
        // Acquire: at least as recent as the counts in `new_loss`.
        self.others()
            .map(|other| other.pool.load(Ordering::Acquire))
            .sum()
    }

    /// Reports a deletion to the others.
    pub(crate) fn deletes(&self, deletion: Deletion) {
        for other in self.others() {
            other.deletions().push(deletion);
        }
    }

    /// The new deletions by others, once.
    pub(crate) fn take_deletions(&self) -> Vec<Deletion> {
        std::mem::take(&mut *self.all.members[self.index].deletions())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_seen_once_by_each_other_backend_and_the_worst_counts() {
        let all = Siblings::new(3);
        let [one, mut two, mut three] = [(); 3].map(|()| all.join().unwrap());
        assert!(all.join().is_none(), "no place is left");
        assert_eq!(two.new_loss(), None);
        one.failed(Loss::OfFile);
        assert_eq!(two.new_loss(), Some(Loss::OfFile));
        assert_eq!(two.new_loss(), None, "once");
        one.failed(Loss::PoolSync);
        one.failed(Loss::OfFile);
        assert_eq!(three.new_loss(), Some(Loss::PoolSync));
        assert_eq!(two.new_loss(), Some(Loss::PoolSync));
        two.failed(Loss::Unsynced);
        assert_eq!(two.new_loss(), None, "its own");
        assert_eq!(three.new_loss(), Some(Loss::Unsynced));
        assert_eq!(
            [&one, &two, &three].map(Sibling::failed_pool_syncs),
            [0, 1, 1]
        );
    }

    #[test]
    fn a_deletion_is_reported_to_the_others_once() {
        let all = Siblings::new(2);
        let [one, two] = [(); 2].map(|()| all.join().unwrap());
        let deletion = Deletion::Lineage(Lineage(7));
        one.deletes(deletion);
        assert_eq!(one.take_deletions(), []);
        assert_eq!(two.take_deletions(), [deletion]);
        assert_eq!(two.take_deletions(), []);
    }
}
