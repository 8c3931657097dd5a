//! Requests for which the kernel could start no worker: they wait a moment and are started again.
//!
//! A call that may block (a sync, a write that allocates) runs on a thread of the kernel, io-wq, which counts as a thread of
//! this process's user and control group. When it cannot be started and there is none already, the kernel gives up what
//! waits for it: ECANCELED, for requests that were not begun. Nobody here cancels reads, writes or syncs, so that is the only
//! reason for it. A shortage of threads passes and is not a failure of the storage, so no peer ever sees it.
//!
//! The kernel keeps the last worker of a ring for as long as the ring lives. So a ring starts its first one when it is made
//! ([`start_first`]): a shortage later on makes calls on storage slow, since fewer are carried out at once, and no more.

use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{IoUring, opcode, squeue};

use nix::poll::{PollTimeout, poll};

use crate::failure::{Refusal, Refusals, RingFailure};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// Tries without anybody to start again after which the episode is over: longer than the kernel takes to give up.
const CALM_ALARMS: u32 = 20;

/// Starts the first worker of `ring`, which has no requests yet.
///
/// # Errors
/// EAGAIN if no thread can be started; otherwise the kernel's error.
pub(crate) fn start_first(ring: &mut IoUring) -> Result<(), RingFailure> {
    let nothing = opcode::Nop::new().build().flags(squeue::Flags::ASYNC);
    // SAFETY: it points to nothing.
    let pushed = unsafe { ring.submission().push(&nothing) };
    pushed.expect("a ring has an entry at least");
    let mut refusals = Refusals::default();
    while let Err(error) = ring.submit_and_wait(1) {
        match refusals.refused(error.raw_os_error()) {
            Refusal::Expected => {}
            Refusal::Again(pause) => {
                let pause = PollTimeout::try_from(pause).unwrap_or(PollTimeout::ZERO);
                // Waiting for nothing: a signal that ends it early does no harm.
                let _paused = poll(&mut [], pause);
            }
            Refusal::Final => return Err(RingFailure::new("io_uring_enter", error)),
        }
    }
    let done = ring.completion().next();
    if done.is_some_and(|done| Workerless::is_meant_by(done.result())) {
        return Err(RingFailure::no_worker());
    }
    Ok(())
}

/// The requests without a worker.
#[derive(Debug)]
pub(crate) struct Workerless {
    /// Their slots in the table of operations.
    slots: Vec<u32>,
    /// Read by the kernel when the alarm is submitted.
    pause: Box<Timespec>,
    /// An alarm is on its way: the episode goes on.
    alarm: bool,
    /// Alarms in a row without anybody to start again.
    calm: u32,
}

impl Default for Workerless {
    fn default() -> Self {
        Workerless {
            slots: Vec::new(),
            pause: Box::new(Timespec::from(PAUSE)),
            alarm: false,
            calm: 0,
        }
    }
}

impl Workerless {
    /// Whether `result` of a request that nobody has cancelled means that there was no worker for it.
    pub(crate) fn is_meant_by(result: i32) -> bool {
        result == -libc::ECANCELED
    }

    /// The request in `slot` waits. The alarm to be submitted, if none is on its way.
    pub(crate) fn add(&mut self, slot: u32) -> Option<squeue::Entry> {
        self.slots.push(slot);
        if self.alarm {
            return None;
        }
        tracing::warn!(
            "the kernel cannot start a thread for calls on storage, which wait: the limit of threads is reached (TasksMax of the service, pids.max, ulimit -u)"
        );
        Some(self.arm())
    }

    /// Whether an episode goes on.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.alarm
    }

    fn arm(&mut self) -> squeue::Entry {
        self.alarm = true;
        opcode::Timeout::new(&raw const *self.pause).build()
    }

    /// The alarm has rung: the slots of the requests to be started again, and the next alarm. Without any the episode is over.
    pub(crate) fn on_alarm(&mut self) -> (Vec<u32>, Option<squeue::Entry>) {
        self.alarm = false;
        let slots = std::mem::take(&mut self.slots);
        self.calm = if slots.is_empty() { self.calm + 1 } else { 0 };
        if self.calm >= CALM_ALARMS {
            self.calm = 0;
            tracing::info!("calls on storage have threads again");
            return (slots, None);
        }
        (slots, Some(self.arm()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_alarm_starts_all_again_until_nobody_comes_back() {
        let mut workerless = Workerless::default();
        assert!(workerless.add(3).is_some());
        assert!(workerless.add(5).is_none(), "one alarm for all");
        let (slots, next) = workerless.on_alarm();
        assert_eq!(slots, [3, 5]);
        assert!(next.is_some());
        assert!(workerless.add(5).is_none(), "the episode goes on");
        assert_eq!(workerless.on_alarm().0, [5]);
        for alarm in 1..=CALM_ALARMS {
            let (slots, next) = workerless.on_alarm();
            assert!(slots.is_empty());
            assert_eq!(next.is_none(), alarm == CALM_ALARMS);
        }
        assert!(workerless.add(5).is_some(), "another episode");
    }
}
