//! Acknowledged writes that were lost: the next flush of each connection of an export reports the loss, once.
//!
//! The volume reports a loss to the first flush behind it. Connections of an export share its volume, and that flush is one connection's: the
//! next flush of another connection would succeed although what that connection wrote is lost.
//!
//! ```
//! use archipelago_nbd_protocol::losses::Losses;
//! use archipelago_nbd_protocol::command::Command;
//! use archipelago_protocol::ErrorCode;
//!
//! let losses = Losses::default();
//! let (a, b) = (losses.reported(), losses.reported());
//! let lost = Err(ErrorCode::SyncFailed);
//! assert_eq!(losses.check(&a, Command::Flush, lost), lost);
//! assert_eq!(losses.check(&b, Command::Flush, Ok(())), lost);
//! assert_eq!(losses.check(&b, Command::Flush, Ok(())), Ok(()));
//! ```

use std::cell::Cell;

use archipelago_protocol::ErrorCode;

use crate::command::Command;

/// Losses that the volume has reported to a flush.
#[derive(Debug, Default)]
pub struct Losses(Cell<u64>);

/// The losses that were reported to one connection, or happened before it began.
#[derive(Debug)]
pub struct ReportedLosses(Cell<u64>);

impl Losses {
    /// For a connection that begins: earlier losses are not reported to it.
    #[must_use]
    pub fn reported(&self) -> ReportedLosses {
        ReportedLosses(Cell::new(self.0.get()))
    }

    /// Written data was lost and no flush of the volume has reported the loss: the next flush of each connection does.
    pub fn add(&self) {
        self.0.set(self.0.get().wrapping_add(1));
    }

    /// The result to send for a piece of `command` that the volume answered with `result`: a flush, or a request that is durable when it is
    /// answered, fails once if a loss was not reported to the connection yet. Called for each answer of the volume, in order, also for
    /// answers of connections that have ended: their losses count as reported.
    ///
    /// # Errors
    /// The error of `result`; [`ErrorCode::SyncFailed`] for a loss.
    pub fn check(
        &self,
        reported: &ReportedLosses,
        command: Command,
        result: Result<(), ErrorCode>,
    ) -> Result<(), ErrorCode> {
        if !command.flushes() {
            return result;
        }
        if result == Err(ErrorCode::SyncFailed) {
            self.add();
        }
        match reported.0.replace(self.0.get()) == self.0.get() {
            true => result,
            false => result.and(Err(ErrorCode::SyncFailed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: Result<(), ErrorCode> = Err(ErrorCode::SyncFailed);

    #[test]
    fn a_loss_is_reported_once_to_each_connection_by_every_durable_request() {
        for durable in [
            Command::Flush,
            Command::Write { durable: true },
            Command::Trim { durable: true },
            Command::WriteZeroes {
                unmap: true,
                durable: true,
            },
        ] {
            let losses = Losses::default();
            let (a, b) = (losses.reported(), losses.reported());
            assert_eq!(losses.check(&a, durable, LOST), LOST);
            assert_eq!(losses.check(&a, durable, Ok(())), Ok(()));
            let late = losses.reported();
            let write = Command::Write { durable: false };
            assert_eq!(losses.check(&b, write, Ok(())), Ok(()), "promises nothing");
            assert_eq!(losses.check(&b, Command::Read, Ok(())), Ok(()));
            assert_eq!(losses.check(&b, durable, Ok(())), LOST);
            assert_eq!(losses.check(&b, durable, Ok(())), Ok(()));
            assert_eq!(losses.check(&late, durable, Ok(())), Ok(()));
        }
    }

    #[test]
    fn a_loss_that_no_flush_has_reported_fails_the_next_flush_of_each_connection() {
        let losses = Losses::default();
        let (a, b) = (losses.reported(), losses.reported());
        losses.add();
        for reported in [&a, &b] {
            assert_eq!(losses.check(reported, Command::Read, Ok(())), Ok(()));
            assert_eq!(losses.check(reported, Command::Flush, Ok(())), LOST);
            assert_eq!(losses.check(reported, Command::Flush, Ok(())), Ok(()));
        }
    }

    #[test]
    fn a_write_that_fails_reports_nothing_and_other_errors_are_no_loss() {
        let losses = Losses::default();
        let (a, b) = (losses.reported(), losses.reported());
        let write = Command::Write { durable: false };
        assert_eq!(losses.check(&a, write, LOST), LOST);
        let full = Err(ErrorCode::NoSpace);
        assert_eq!(losses.check(&a, Command::Flush, full), full);
        assert_eq!(losses.check(&b, Command::Flush, Ok(())), Ok(()));
    }
}
