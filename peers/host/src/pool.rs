//! The pool of a data process: its backend.

use std::path::Path;
use std::time::Duration;

use archipelago_blocker_file::{Claimant, FileBackend, Options};
use archipelago_protocol::Error;
use archipelago_protocol::check::{Finding, FindingKind, Report};
use archipelago_runtime::Reactor;

use crate::{PeerSettings, containment};

/// How long a dead predecessor's last writes may hold the pool's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// Adds to `report` the files in the pool in `directory` that lie where directories belong, and those beside its owner record.
pub fn add_foreign(directory: &Path, report: &mut Report) {
    let note = |message| Finding {
        kind: FindingKind::Foreign,
        message,
        needed_by: None,
    };
    match archipelago_blocker_file::foreign(directory) {
        Ok(files) => {
            for file in files {
                report.add(note(format!(
                    "`{}` is a file, and no part of the pool, where a directory of the pool belongs: move it away",
                    file.display()
                )));
            }
        }
        Err(error) => report.add(note(format!(
            "`{}` could not be searched for foreign files: {error}",
            directory.display()
        ))),
    }
    match archipelago_blocker_file::stray_records(directory) {
        Ok(files) => {
            for file in files {
                report.add(note(format!(
                    "`{}` lies beside the pool's owner record and is none: move it away",
                    file.display()
                )));
            }
        }
        Err(error) => report.add(note(format!(
            "`{}` could not be searched for owner records: {error}",
            directory.display()
        ))),
    }
}

/// What a pool is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To be served: room is set aside for metadata.
    Serve,
    /// To be looked at.
    Check,
}

/// Opens the pool for this process alone.
pub(crate) fn open(
    settings: &PeerSettings,
    reactor: &Reactor,
    purpose: Purpose,
) -> Result<FileBackend, Error> {
    let options = Options {
        directory: settings.pool.directory.clone(),
        direct: settings.pool.direct,
        reserve: purpose == Purpose::Serve,
        lock_timeout: LOCK_TIMEOUT,
        claimant: Claimant {
            host: crate::owner::host(),
            node: settings.run.clone(),
            claim: settings.claim,
            lost: containment::end_with,
        },
    };
    FileBackend::open(&options, reactor.source(), reactor.clock().as_ref())
}
