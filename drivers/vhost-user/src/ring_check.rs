//! Checks that the device sees what the guest does: a guest whose memory is not shared waits for its first request for ever, and only the
//! device can find the reason.
//!
//! There are two ways to see nothing:
//! * The rings are in no memory slot. QEMU with plain `-m` has nothing to share, gives no slot and starts its rings.
//! * The rings stay empty although the guest kicks. With `share=off` there is a file, but the guest writes into private copies
//!   of its pages.
//!
//! The check runs on the connection's thread, at a few moments after a start until the first request is seen, and never again for that run:
//! it costs the data thread nothing. It polls the kick eventfds and does not read them: a read would take the kick from the device.

use std::fmt;
use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// From a start to the first check: a guest that has kicked by then has made its request available before.
const FIRST: Duration = Duration::from_secs(1);
/// Longest time between two checks: a disk may stay unused for days.
const LONGEST: Duration = Duration::from_secs(60);

/// The visible state of the rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingsSeen {
    /// No ring is started and enabled.
    NoneStarted,
    /// A ring that is started is in no memory slot.
    NoMemory,
    /// Every ring is as empty as at power-on.
    Empty,
    /// The guest has made a request available.
    Used,
}

/// Why a guest is not served, although nothing has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// A ring is in no memory slot.
    NoMemory,
    /// Kicks, and no requests.
    NoRequests,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Problem::NoMemory => {
                "the guest's rings are in no memory that the front end shares with the endpoint: is the guest's memory shared (QEMU: a memory backend with share=on)?"
            }
            Problem::NoRequests => {
                "the guest kicks, but its rings stay empty: is the guest's memory shared (QEMU: a memory backend with share=on)?"
            }
        })
    }
}

/// The checks of the rings of one connection.
#[derive(Debug)]
pub(crate) struct RingCheck {
    /// Eventfds of started rings that were not signalled at their start.
    kicks: Vec<(u16, File)>,
    due: Option<Duration>,
    interval: Duration,
}

impl RingCheck {
    pub(crate) fn new() -> RingCheck {
        RingCheck {
            kicks: Vec::new(),
            due: None,
            interval: FIRST,
        }
    }

    /// Records that a ring starts with `kick`.
    pub(crate) fn start(&mut self, queue: u16, kick: &File, now: Duration) {
        self.stop(queue);
        // An eventfd that was signalled before does not show activity of this run. Without a spare descriptor this ring is not watched.
        if !is_signalled(kick)
            && let Ok(kick) = kick.try_clone()
        {
            self.kicks.push((queue, kick));
        }
        self.again(now);
    }

    /// Records that a ring has stopped.
    pub(crate) fn stop(&mut self, queue: u16) {
        self.kicks.retain(|(known, _)| *known != queue);
    }

    /// Schedules another check: memory or rings have changed.
    pub(crate) fn again(&mut self, now: Duration) {
        self.interval = FIRST;
        self.due = Some(now + FIRST);
    }

    /// When the next check is due.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The problem that follows from the visible state at `now`.
    pub(crate) fn look(&mut self, seen: RingsSeen, now: Duration) -> Option<Problem> {
        self.interval = (self.interval * 2).min(LONGEST);
        self.due = Some(now + self.interval);
        match seen {
            RingsSeen::NoMemory => Some(Problem::NoMemory),
            RingsSeen::Empty if self.kicks.iter().any(|(_, kick)| is_signalled(kick)) => {
                Some(Problem::NoRequests)
            }
            RingsSeen::Empty => None,
            RingsSeen::NoneStarted | RingsSeen::Used => {
                self.due = None;
                self.kicks.clear();
                None
            }
        }
    }
}

/// Whether `eventfd`, which nobody reads, was signalled.
fn is_signalled(eventfd: &File) -> bool {
    let mut fds = [PollFd::new(eventfd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::eventfd;
    use crate::shared::signal;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn kicks_without_requests_are_a_problem_and_a_disk_without_use_is_none() {
        let mut check = RingCheck::new();
        let (kick, idle) = (eventfd().unwrap(), eventfd().unwrap());
        let start = 100 * SECOND;
        check.start(0, &kick, start);
        check.start(1, &idle, start);
        assert_eq!(check.due(), Some(start + SECOND));
        assert_eq!(check.look(RingsSeen::Empty, start), None);
        signal(&kick);
        assert_eq!(
            check.look(RingsSeen::Empty, start),
            Some(Problem::NoRequests)
        );
        check.stop(0);
        assert_eq!(check.look(RingsSeen::Empty, start), None, "stopped");
        check.start(0, &kick, start);
        let old = check.look(RingsSeen::Empty, start);
        assert_eq!(old, None, "signalled before the start");
    }

    #[test]
    fn looks_become_rare_and_end_with_the_first_request() {
        let mut check = RingCheck::new();
        let kick = eventfd().unwrap();
        check.start(0, &kick, Duration::ZERO);
        let mut waits = Vec::new();
        for _ in 0..7 {
            check.look(RingsSeen::Empty, Duration::ZERO);
            waits.push(check.due().unwrap().as_secs());
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 60, 60]);
        for seen in [RingsSeen::Used, RingsSeen::NoneStarted] {
            assert_eq!(
                check.look(RingsSeen::NoMemory, SECOND),
                Some(Problem::NoMemory)
            );
            assert_eq!((check.look(seen, SECOND), check.due()), (None, None));
            check.again(SECOND);
        }
    }
}
