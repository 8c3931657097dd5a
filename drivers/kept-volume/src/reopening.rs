//! The way back to a volume whose channel has ended: a thread that asks the node until the volume is open again.
//!
//! A thread of its own: the node may take a minute to answer, and whoever waits for the volume is answered when the time is over.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use archipelago_protocol::{Access, Error, ErrorCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::opener::{Connection, Opener};
use crate::reservation::Reservation;

/// First wait between two tries, in milliseconds: a data process is started again in some tens of them.
const RETRY_MIN_MS: u16 = 20;
/// Longest wait.
const RETRY_MAX_MS: u16 = 1000;

/// What came of it.
#[derive(Debug)]
pub(crate) struct Reopened {
    /// The opener knows the volume's name of now.
    pub(crate) opener: Opener,
    /// The new connection; an error is final.
    pub(crate) result: Result<Connection, Error>,
    /// Acknowledged writes were lost.
    pub(crate) lost: bool,
}

/// An open that is under way. Dropped: nobody wants it any more.
#[derive(Debug)]
pub(crate) struct Reopening {
    result: Receiver<Reopened>,
    /// Readable: give up.
    stop: Arc<EventFd>,
}

impl Reopening {
    /// Begins to open for `access` what `opener` opens and `reservation` keeps, and rings `doorbell` at its end.
    ///
    /// # Errors
    /// What the kernel says: no thread, no descriptor.
    pub(crate) fn start(
        opener: Opener,
        access: Access,
        reservation: Arc<Reservation>,
        doorbell: Arc<EventFd>,
    ) -> std::io::Result<Reopening> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let stop = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (sender, result) = sync_channel(1);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("reopen".to_owned());
        thread.spawn(move || {
            if let Some(reopened) = reopen(opener, access, &reservation, &stopped) {
                // Nobody wants it any more: the endpoint closes what is dropped.
                let _sent = sender.send(reopened);
            }
            // A counter that is full is readable already.
            let _rung = doorbell.write(1);
        })?;
        Ok(Reopening { result, stop })
    }

    /// What came of it, once it has ended.
    pub(crate) fn take(&self) -> Option<Reopened> {
        self.result.try_recv().ok()
    }
}

impl Drop for Reopening {
    fn drop(&mut self) {
        // As above.
        let _rung = self.stop.write(1);
    }
}

/// Tries until it is open, others may have had it, or nobody wants it.
fn reopen(
    mut opener: Opener,
    access: Access,
    reservation: &Arc<Reservation>,
    stop: &EventFd,
) -> Option<Reopened> {
    let (mut wait, mut lost, mut logged) = (RETRY_MIN_MS, false, String::new());
    loop {
        let error = match opener.reopen(access, reservation) {
            Err(error) if error.code != ErrorCode::Stale => error,
            result => {
                return Some(Reopened {
                    opener,
                    result,
                    lost,
                });
            }
        };
        // The kernel has dropped what the dead process had written, and says so once: the next try opens what is durable.
        lost |= error.code == ErrorCode::SyncFailed;
        if error.message != logged {
            let name = opener.name();
            tracing::info!("opening `{name}` again: {error} ({})", error.hint);
            logged.clone_from(&error.message);
        }
        let mut stopped = [PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
        // A wait that a signal ends early is a shorter one.
        if matches!(poll(&mut stopped, PollTimeout::from(wait)), Ok(1..)) {
            return None;
        }
        wait = (wait * 2).min(RETRY_MAX_MS);
    }
}
