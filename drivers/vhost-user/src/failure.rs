//! Why guests get error statuses, and how errors are logged: the first at once, then one line per interval, because a guest can cause
//! errors as fast as requests.

use std::fmt;
use std::time::Duration;

use archipelago_endpoint::NotServed;
use archipelago_protocol::ErrorCode;

use crate::chain::ChainError;
use crate::config::{RANGE_SECTORS_MAX, RANGES_MAX, SERIAL_LEN};
use crate::request_kind::{Kind, Status};

/// At most one line of a device in this time.
pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

/// Why a request has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// An unknown kind of request.
    #[error("request type {0} is not known")]
    UnknownRequest(u32),
    /// A range of a discard or write-zeroes request has an unknown flag.
    #[error("a range has an unknown flag")]
    UnknownFlag,
    /// The chain is not a valid request.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No header.
    #[error("the request is shorter than its header of 16 bytes")]
    Header,
    /// Outside the volume, or not whole sectors.
    #[error("{len} bytes at sector {sector} are not whole sectors within a volume of {size} bytes")]
    Outside {
        /// First sector.
        sector: u64,
        /// Bytes.
        len: u64,
        /// Bytes of the volume.
        size: u64,
    },
    /// A write to a read-only volume.
    #[error("the volume is attached read-only")]
    ReadOnly,
    /// The buffer is too short for the serial.
    #[error("the buffer for the serial has {0} bytes instead of {SERIAL_LEN}")]
    Serial(u64),
    /// A list of ranges of a wrong length.
    #[error("a list of ranges of {0} bytes is not 1 to {RANGES_MAX} ranges of 16 bytes")]
    Ranges(u64),
    /// A range that is longer than the configuration space allows.
    #[error("a range of {0} sectors is longer than {RANGE_SECTORS_MAX}")]
    RangeLen(u32),
    /// The volume could not be opened.
    #[error("the volume could not be opened")]
    NotOpen,
    /// The volume's answer.
    #[error("the volume answered: {0}")]
    Volume(ErrorCode),
}

impl From<NotServed> for Failure {
    fn from(why: NotServed) -> Failure {
        match why {
            NotServed::NoSpace => Failure::Volume(ErrorCode::NoSpace),
            NotServed::NotOpen => Failure::NotOpen,
        }
    }
}

impl Failure {
    /// The status for the guest.
    #[must_use]
    pub fn status(self) -> Status {
        match self {
            Failure::UnknownRequest(_) | Failure::UnknownFlag => Status::Unsupported,
            _ => Status::IoErr,
        }
    }
}

/// A request that has failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failed {
    pub(crate) queue: usize,
    pub(crate) kind: Kind,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) failure: Failure,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failed {
            kind, offset, len, ..
        } = self;
        write!(f, "{kind} of {len} bytes at {offset}: {}", self.failure)
    }
}

/// Decides which errors of a device are logged.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    /// Before this time errors are only counted.
    until: Option<Duration>,
    /// The number of errors that were not logged, and the last one of them.
    unreported: Option<(u64, Failed)>,
}

impl FailureLog {
    /// Records an error at `now`. Returns whether to log it at once.
    pub(crate) fn note(&mut self, failed: Failed, now: Duration) -> bool {
        if self.until.is_none() {
            self.until = Some(now.saturating_add(INTERVAL));
            return true;
        }
        let before = self.unreported.map_or(0, |(count, _)| count);
        self.unreported = Some((before + 1, failed));
        false
    }

    /// When the next report is due.
    pub(crate) fn due(&self) -> Option<Duration> {
        self.until.filter(|_| self.unreported.is_some())
    }

    /// Whether errors are only counted for now.
    pub(crate) fn is_counting(&self) -> bool {
        self.until.is_some()
    }

    /// The report that is due at `now`: the number of errors since the last line, and the last of them.
    pub(crate) fn take(&mut self, now: Duration) -> Option<(u64, Failed)> {
        if self.until.is_none_or(|until| now < until) {
            return None;
        }
        let report = self.unreported.take();
        self.until = report.map(|_| now.saturating_add(INTERVAL));
        report
    }

    /// The errors that were not reported; starts anew.
    pub(crate) fn end(&mut self) -> Option<(u64, Failed)> {
        std::mem::take(self).unreported
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_is_logged_at_once_and_then_a_count_in_each_interval() {
        let failed = |offset| Failed {
            queue: 0,
            kind: Kind::Read,
            offset,
            len: 512,
            failure: Failure::Volume(ErrorCode::Io),
        };
        let start = Duration::from_secs(100);
        let ms = Duration::from_millis(1);
        let mut log = FailureLog::default();
        let report =
            |log: &mut FailureLog, now| log.take(now).map(|(count, last)| (count, last.offset));
        for round in 0..2 {
            let start = start + round * 10 * INTERVAL;
            assert!(log.note(failed(1), start));
            assert_eq!((log.due(), report(&mut log, start)), (None, None));
            for offset in 2..=1000 {
                assert!(!log.note(failed(offset), start + ms));
            }
            assert_eq!(log.due(), Some(start + INTERVAL));
            assert_eq!(report(&mut log, start + INTERVAL - ms), None);
            assert_eq!(report(&mut log, start + INTERVAL), Some((999, 1000)));
            assert!(
                !log.note(failed(7), start + INTERVAL + ms),
                "one line in an interval"
            );
            assert_eq!(report(&mut log, start + 2 * INTERVAL), Some((1, 7)));
            assert_eq!(report(&mut log, start + 3 * INTERVAL), None);
            assert!(
                !log.is_counting(),
                "quiet for an interval: the next one at once"
            );
        }
        assert!(log.note(failed(1), start));
        assert!(!log.note(failed(2), start));
        assert_eq!(log.end().map(|(count, _)| count), Some(1));
        assert!(log.note(failed(1), start), "another connection");
    }

    #[test]
    fn a_line_says_what_was_asked_and_what_was_wrong() {
        let failed = Failed {
            queue: 0,
            kind: Kind::Write,
            offset: 4096,
            len: 512,
            failure: Failure::Volume(ErrorCode::NoSpace),
        };
        assert_eq!(
            failed.to_string(),
            "write of 512 bytes at 4096: the volume answered: no space left"
        );
    }
}
