//! Acknowledged writes that were lost: each connection of an export hears of it once.
//!
//! The volume reports a loss to the first flush behind it. Connections of an export share its volume, and that flush is one connection's: to
//! the others the volume says nothing more, and their next flush would succeed although what they wrote is gone.
//!
//! ```
//! use archipelago_nbd_protocol::losses::Losses;
//! use archipelago_nbd_protocol::request::Command;
//! use archipelago_protocol::ErrorCode;
//!
//! let losses = Losses::default();
//! let (a, b) = (losses.witness(), losses.witness());
//! let lost = Err(ErrorCode::SyncFailed);
//! assert_eq!(losses.check(&a, Command::Flush, lost), lost);
//! assert_eq!(losses.check(&b, Command::Flush, Ok(())), lost);
//! assert_eq!(losses.check(&b, Command::Flush, Ok(())), Ok(()));
//! ```

use std::cell::Cell;

use archipelago_protocol::ErrorCode;

use crate::request::Command;

/// Losses that the volume has reported to a flush.
#[derive(Debug, Default)]
pub struct Losses(Cell<u64>);

/// Which losses a connection has heard of.
#[derive(Debug)]
pub struct Witness(Cell<u64>);

impl Losses {
    /// A connection that begins: what was lost before is none of its.
    #[must_use]
    pub fn witness(&self) -> Witness {
        Witness(Cell::new(self.0.get()))
    }

    /// What a connection is told of a piece of `command` whose result is `result`: a flush, and whatever is durable when it is answered, fails
    /// once if there was a loss that the connection has not heard of. To be called for each answer of the volume, in their order, also for those
    /// that nobody waits for any more: they count as reported.
    ///
    /// # Errors
    /// What `result` says; [`ErrorCode::SyncFailed`] for a loss.
    pub fn check(
        &self,
        witness: &Witness,
        command: Command,
        result: Result<(), ErrorCode>,
    ) -> Result<(), ErrorCode> {
        if !command.flushes() {
            return result;
        }
        if result == Err(ErrorCode::SyncFailed) {
            self.0.set(self.0.get().wrapping_add(1));
        }
        match witness.0.replace(self.0.get()) == self.0.get() {
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
    fn each_connection_hears_once_of_a_loss_by_whatever_is_durable() {
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
            let (a, b) = (losses.witness(), losses.witness());
            assert_eq!(losses.check(&a, durable, LOST), LOST);
            assert_eq!(losses.check(&a, durable, Ok(())), Ok(()));
            let late = losses.witness();
            let write = Command::Write { durable: false };
            assert_eq!(losses.check(&b, write, Ok(())), Ok(()), "promises nothing");
            assert_eq!(losses.check(&b, Command::Read, Ok(())), Ok(()));
            assert_eq!(losses.check(&b, durable, Ok(())), LOST);
            assert_eq!(losses.check(&b, durable, Ok(())), Ok(()));
            assert_eq!(losses.check(&late, durable, Ok(())), Ok(()));
        }
    }

    #[test]
    fn a_write_that_fails_reports_nothing_and_other_errors_are_no_loss() {
        let losses = Losses::default();
        let (a, b) = (losses.witness(), losses.witness());
        let write = Command::Write { durable: false };
        assert_eq!(losses.check(&a, write, LOST), LOST);
        let full = Err(ErrorCode::NoSpace);
        assert_eq!(losses.check(&a, Command::Flush, full), full);
        assert_eq!(losses.check(&b, Command::Flush, Ok(())), Ok(()));
    }
}
