//! Requests for which the kernel could start no worker: they are started again after a pause.
//!
//! A call that may block (a sync, a write that allocates) runs on a kernel thread, io-wq, which counts as a thread of this process's user
//! and control group. If no such thread exists and none can be started, the kernel gives up the requests that wait for one: they fail with
//! ECANCELED before they began. This program never cancels reads, writes or syncs, so ECANCELED has no other cause. A shortage of threads
//! is temporary and is not a failure of the storage, so no peer ever sees it.
//!
//! The kernel keeps the last worker of a ring as long as the ring exists. So the first worker of a ring is started when the ring is made
//! ([`start_first`]): a later shortage only makes calls on storage slow, since fewer are carried out at once.

use std::time::Duration;

use io_uring::types::Timespec;
use io_uring::{IoUring, opcode, squeue};

use nix::poll::{PollTimeout, poll};

use crate::failure::{Refusal, Refusals, RingFailure};

/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(50);
/// Alarms in a row without a request to start again after which the episode ends: longer than the kernel takes to give up requests.
const CALM_ALARMS: u32 = 20;

/// Starts the first worker of `ring`, which has no requests yet.
///
/// # Errors
/// EAGAIN if a thread cannot be started; otherwise the kernel's error.
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
                // Only a pause: a signal that ends it early does no harm.
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

/// Requests that had no worker.
#[derive(Debug)]
pub(crate) struct Workerless {
    /// Their slots in the table of operations.
    slots: Vec<u32>,
    /// Read by the kernel when the alarm is submitted.
    pause: Box<Timespec>,
    /// An alarm is armed: the episode continues.
    alarm: bool,
    /// Alarms in a row without a request to start again.
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
    /// Whether `result` of a request that was not cancelled means that it had no worker.
    pub(crate) fn is_meant_by(result: i32) -> bool {
        result == -libc::ECANCELED
    }

    /// Adds the request in `slot`. Returns the alarm to submit, if none is armed.
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

    /// Whether an episode continues.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.alarm
    }

    fn arm(&mut self) -> squeue::Entry {
        self.alarm = true;
        opcode::Timeout::new(&raw const *self.pause).build()
    }

    /// The alarm has fired. Returns the slots of the requests to start again, and the next alarm; without an alarm the episode has ended.
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
