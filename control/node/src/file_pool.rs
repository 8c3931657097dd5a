//! A pool of container files, as a data process of this node opens it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_blocker_file::{
    Claim, Claimant, FileBackend, Host, JoinedPool, Options, files_kept,
};
use archipelago_host::{HostIdentity, Pool, Purpose, Sharing, end_with, host_identity};
use archipelago_protocol::Error;
use archipelago_protocol::check::{Finding, FindingKind, Report};
use archipelago_runtime::Reactor;
use serde::{Deserialize, Serialize};

/// Longest time in which the last writes of a dead predecessor may hold the pool's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// Container files of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePool {
    /// The directory.
    pub directory: PathBuf,
    /// Whether to use `O_DIRECT` where the file system supports it.
    pub direct: bool,
    /// The right with which the pool is opened.
    #[serde(default)]
    pub claim: Claim,
    /// Directory of data that is valid as long as no other node has had the pool: see [`Claimant::kept`].
    #[serde(default)]
    pub kept: Option<PathBuf>,
}

impl Pool for FilePool {
    type Backend = FileBackend;
    type Joined = JoinedPool;

    fn directories(&self) -> Vec<&Path> {
        let kept = self.kept.as_deref();
        std::iter::once(self.directory.as_path())
            .chain(kept)
            .collect()
    }

    fn descriptors(&self, limit: u64) -> u64 {
        files_kept(limit)
    }

    fn join(backend: &FileBackend) -> Option<JoinedPool> {
        Some(backend.join())
    }

    fn open_joined(joined: JoinedPool, reactor: &Reactor) -> Result<FileBackend, Error> {
        FileBackend::open_joined(joined, reactor.source(), reactor.clock().as_ref())
    }

    fn open(&self, reactor: &Reactor, purpose: Purpose, node: &Path) -> Result<FileBackend, Error> {
        let HostIdentity {
            machine,
            boot,
            namespace,
            name,
        } = host_identity();
        let options = Options {
            directory: self.directory.clone(),
            direct: self.direct,
            reserve: matches!(purpose, Purpose::Serve { .. }),
            lock_timeout: LOCK_TIMEOUT,
            claimant: Claimant {
                host: Host {
                    machine,
                    boot,
                    namespace,
                    name,
                },
                node: node.to_owned(),
                claim: self.claim,
                kept: self.kept.clone(),
                lost: end_with,
            },
            backends: match purpose {
                Purpose::Serve { threads } => threads,
                Purpose::Check => 1,
            },
        };
        FileBackend::open(&options, reactor.source(), reactor.clock().as_ref())
    }

    /// The pool's lock excludes every other node; where other hosts reach the directory, the owner record does.
    fn sharing(&self) -> Sharing {
        Sharing::Alone
    }

    /// Finds files where directories belong, and foreign files beside the owner record.
    fn look_for_foreign(&self, report: &mut Report) {
        let note = |message| Finding {
            kind: FindingKind::Foreign,
            message,
            needed_by: None,
        };
        match archipelago_blocker_file::foreign(&self.directory) {
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
                self.directory.display()
            ))),
        }
        match archipelago_blocker_file::stray_records(&self.directory) {
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
                self.directory.display()
            ))),
        }
    }
}
