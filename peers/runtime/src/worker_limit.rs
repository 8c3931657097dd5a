//! The kernel's limit of workers for the calls of a ring on files.

use std::io;

use io_uring::Submitter;

/// Most workers beyond the kernel's own limit: as many calls as two channels have in flight when all of them hang.
const SPARE_WORKERS_MAX: u32 = 2048;

/// The effect of a change of the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spare {
    /// The limit is not higher than before.
    Same,
    /// The limit is higher than before.
    More,
}

/// The limit of a ring.
#[derive(Debug, Default)]
pub(crate) struct WorkerLimit {
    /// The kernel's own limit, once it has been read.
    own: Option<u32>,
    /// Workers added to it.
    spare: u32,
}

impl WorkerLimit {
    /// Adds `spare` workers to the kernel's own limit, at most [`SPARE_WORKERS_MAX`].
    ///
    /// # Errors
    /// The kernel's error; before Linux 5.15 there is no such limit. In both cases nothing has changed.
    pub(crate) fn set_spare(&mut self, submitter: &Submitter<'_>, spare: u32) -> io::Result<Spare> {
        let spare = spare.min(SPARE_WORKERS_MAX);
        if spare == self.spare {
            return Ok(Spare::Same);
        }
        let own = match self.own {
            Some(own) => own,
            None => limit(submitter, 0)?,
        };
        self.own = Some(own);
        limit(submitter, own.saturating_add(spare))?;
        let before = std::mem::replace(&mut self.spare, spare);
        Ok(if spare > before {
            Spare::More
        } else {
            Spare::Same
        })
    }
}

/// Sets the limit of workers for calls on files, unless `limit` is 0; returns the limit before.
fn limit(submitter: &Submitter<'_>, limit: u32) -> io::Result<u32> {
    // The second limit is that of all other calls.
    let mut limits = [limit, 0];
    submitter.register_iowq_max_workers(&mut limits)?;
    Ok(limits[0])
}
