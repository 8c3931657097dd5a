//! What happens when the kernel refuses a call of io_uring: which call it was, whether to try again, and what an administrator can do.
//!
//! | error of `io_uring_enter` | what happens |
//! |---|---|
//! | ETIME | nothing: the sleep has ended |
//! | EINTR | the call is tried again, after a pause if this repeats |
//! | EAGAIN, EBUSY, ENOMEM | the same, but after [`REFUSED_MAX`] refusals in a row the ring is given up |
//! | any other | the ring is given up at once: a later call would fail too |
//!
//! When a ring is given up, its thread ends with a panic whose payload is a [`RingFailure`].

use std::io;
use std::time::Duration;

/// Refusals in a row after which the call is tried again without a pause.
const AT_ONCE_MAX: u32 = 16;
/// First pause, doubled with each refusal.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(64);
/// Refusals in a row before the ring is given up: 16 without a pause, 6 with growing pauses (63 ms in all), then 80 of 64 ms each (5 s).
const REFUSED_MAX: u32 = AT_ONCE_MAX + 6 + 80;

/// A call that the kernel makes itself: its failure is the result of the requests that need the worker.
const WORKER: &str = "starting a worker of io_uring";

/// A call of io_uring that the kernel refused permanently.
#[derive(Debug, thiserror::Error)]
#[error("{call} failed")]
pub struct RingFailure {
    call: &'static str,
    source: io::Error,
}

impl RingFailure {
    pub(crate) fn new(call: &'static str, source: io::Error) -> RingFailure {
        RingFailure { call, source }
    }

    /// The kernel cannot start a thread for calls that block.
    pub(crate) fn no_worker() -> RingFailure {
        let cause = io::Error::from_raw_os_error(libc::EAGAIN);
        RingFailure::new(WORKER, cause)
    }

    /// Whether the cause is a shortage of threads.
    #[must_use]
    pub fn is_of_threads(&self) -> bool {
        self.call == WORKER
    }

    /// The kernel's error.
    #[must_use]
    pub fn cause(&self) -> &io::Error {
        &self.source
    }

    /// What an administrator can do about it; empty if nothing is known.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self.source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES | libc::ENOSYS) => {
                "io_uring is not allowed here: `sysctl kernel.io_uring_disabled` must be 0; a container, or a service with a \
                 seccomp filter, must allow io_uring_setup, io_uring_enter and io_uring_register (Docker, Podman: \
                 `--security-opt seccomp=PROFILE`; systemd: `SystemCallFilter=@aio`)"
            }
            Some(libc::ENOMEM) => {
                "the limit of locked memory is too low: raise `ulimit -l` (systemd: `LimitMEMLOCK=infinity`), or free memory"
            }
            Some(libc::EMFILE | libc::ENFILE) => {
                "the limit of open files is too low: raise `ulimit -n` (systemd: `LimitNOFILE=`)"
            }
            _ => "",
        }
    }
}

impl From<RingFailure> for io::Error {
    /// Text and cause in one error; its kind is that of the cause.
    fn from(failure: RingFailure) -> io::Error {
        let text = format!("{failure}: {}", failure.source);
        io::Error::new(failure.source.kind(), text)
    }
}

/// What to do about a refused `io_uring_enter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Not an error.
    Expected,
    /// The call is tried again with the next turn, after this pause.
    Again(Duration),
    /// The ring is given up.
    Final,
}

/// Refusals of `io_uring_enter` in a row.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: u32,
}

impl Refusals {
    /// The kernel accepted a call, or completed a request.
    pub(crate) fn end(&mut self) {
        self.count = 0;
    }

    /// The kernel refused a call.
    pub(crate) fn refused(&mut self, errno: Option<i32>) -> Refusal {
        let stays = match errno {
            Some(libc::ETIME) => {
                self.end();
                return Refusal::Expected;
            }
            Some(libc::EINTR) => false,
            Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => self.count >= REFUSED_MAX,
            _ => true,
        };
        if stays {
            return Refusal::Final;
        }
        self.count = self.count.saturating_add(1);
        Refusal::Again(self.pause())
    }

    fn pause(&self) -> Duration {
        match self.count.checked_sub(AT_ONCE_MAX + 1) {
            None => Duration::ZERO,
            Some(doublings) => PAUSE_MIN
                .saturating_mul(1 << doublings.min(10))
                .min(PAUSE_MAX),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pauses until the ring is given up.
    fn pauses(errno: i32, calls: u32) -> (Vec<Duration>, bool) {
        let mut refusals = Refusals::default();
        let mut pauses = Vec::new();
        for _ in 0..calls {
            match refusals.refused(Some(errno)) {
                Refusal::Again(pause) => pauses.push(pause),
                Refusal::Final => return (pauses, true),
                Refusal::Expected => panic!("{errno} is a refusal"),
            }
        }
        (pauses, false)
    }

    #[test]
    fn what_cannot_pass_is_final_at_once() {
        for errno in [
            libc::EPERM,
            libc::EBADF,
            libc::EINVAL,
            libc::EFAULT,
            libc::ENOSYS,
            libc::EEXIST,
        ] {
            assert_eq!(pauses(errno, 2), (vec![], true));
        }
        assert_eq!(Refusals::default().refused(None), Refusal::Final);
    }

    #[test]
    fn what_may_pass_is_tried_for_some_seconds_and_not_in_a_busy_loop() {
        for errno in [libc::EAGAIN, libc::EBUSY, libc::ENOMEM] {
            let (pauses, given_up) = pauses(errno, 10_000);
            assert!(given_up);
            let sum: Duration = pauses.iter().sum();
            assert!((4..7).contains(&sum.as_secs()), "{sum:?}");
        }
    }

    #[test]
    fn signals_never_end_a_ring_but_cost_no_busy_loop() {
        let (pauses, given_up) = pauses(libc::EINTR, 10_000);
        assert!(!given_up);
        assert_eq!(pauses.first(), Some(&Duration::ZERO));
        assert_eq!(pauses.last(), Some(&PAUSE_MAX));
    }

    #[test]
    fn a_success_in_between_forgives_what_was_before() {
        let mut refusals = Refusals::default();
        for _ in 0..10 {
            for _ in 0..REFUSED_MAX {
                assert!(matches!(
                    refusals.refused(Some(libc::EBUSY)),
                    Refusal::Again(_)
                ));
            }
            refusals.end();
        }
        assert_eq!(refusals.refused(Some(libc::ETIME)), Refusal::Expected);
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let hint = |errno| RingFailure::new("c", io::Error::from_raw_os_error(errno)).hint();
        assert!(hint(libc::EPERM).contains("kernel.io_uring_disabled"));
        assert!(hint(libc::EPERM).contains("seccomp"));
        assert!(hint(libc::ENOMEM).contains("ulimit -l"));
        assert!(hint(libc::EMFILE).contains("ulimit -n"));
        assert_eq!(hint(libc::EBADF), "");
    }
}
