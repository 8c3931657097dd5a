//! Detects calls that have not returned for a long time, so that they are reported and do not exhaust shared resources.
//!
//! A job of many calls (a listing, a deletion) may take long: it stalls only when none of its calls returns
//! ([`Progress`], seen by the data thread as [`Steps`]).

use std::sync::atomic::{AtomicU64, Ordering};

use archipelago_protocol::control::Wait;

use crate::layout::{FileId, Layout};

/// A call that takes longer blocks a worker of the ring, for which other calls must not wait.
const STALL_SECONDS: u64 = 2;
/// Waits that are reported: the oldest ones. More of them would add no information.
const REPORTED_MAX: usize = 8;

/// Counts the returned calls of jobs that consist of many: while it grows, none of them stalls.
#[derive(Debug, Default)]
pub(crate) struct Progress(AtomicU64);

impl Progress {
    /// A call has returned.
    pub(crate) fn step(&self) {
        // Only a count: it orders nothing else.
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn steps(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// When a [`Progress`] was last seen to grow.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: u64,
    /// In seconds of the monotonic clock.
    last: u64,
}

impl Steps {
    /// Records that `done` steps are done at the time `seconds`.
    pub(crate) fn look(&mut self, done: u64, seconds: u64) {
        if std::mem::replace(&mut self.done, done) != done {
            self.last = seconds;
        }
    }

    /// The age of a call of such a job that began `age` seconds ago: the time since the last step, if that is shorter.
    pub(crate) fn age(&self, age: u64, now: u64) -> u64 {
        age.min(now.saturating_sub(self.last))
    }
}

/// A call on the file `id` that began `seconds` ago, to be reported as `what` of its path.
pub(crate) fn wait_on(what: &str, id: FileId, layout: &Layout, seconds: u64) -> Wait {
    let path = layout.file(id);
    Wait {
        lineage: id.object.lineage,
        what: format!("{what} {}", path.display()),
        seconds,
    }
}

/// Those of `waits` that have lasted for a second or longer, the oldest first.
pub(crate) fn oldest(waits: impl Iterator<Item = Wait>) -> Vec<Wait> {
    let mut waits: Vec<Wait> = waits.filter(|wait| wait.seconds > 0).collect();
    waits.sort_by_key(|wait| std::cmp::Reverse(wait.seconds));
    waits.truncate(REPORTED_MAX);
    waits
}

/// Workers that the ring needs in addition, for calls under way of these ages. Once one stalls, each may need one: others on the same file
/// will stall, too.
pub(crate) fn spare_workers(ages: impl Iterator<Item = u64>) -> u32 {
    let (mut calls, mut stalls) = (0, false);
    for age in ages {
        calls += 1;
        stalls |= age >= STALL_SECONDS;
    }
    if stalls { calls } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_call_that_stalls_asks_for_a_worker_for_each() {
        assert_eq!(spare_workers([0, 1, 1].into_iter()), 0);
        assert_eq!(spare_workers([0, STALL_SECONDS, 1].into_iter()), 3);
    }

    #[test]
    fn a_job_of_many_calls_is_as_old_as_its_last_call() {
        let mut steps = Steps::default();
        steps.look(1, 10);
        assert_eq!(steps.age(9, 10), 0);
        steps.look(1, 12);
        assert_eq!(steps.age(11, 12), 2);
        assert_eq!(steps.age(1, 12), 1, "it began after that step");
    }
}
