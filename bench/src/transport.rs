//! How the client of a comparison reaches a volume. It decides the loads, the peer and the goals.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::compare::{self, Case, Goals, Sample};
use crate::fio;
use crate::server::{QemuFuse, QemuNbd, QemuStorageDaemon, Server, Volumes};

/// How a client reaches a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A client of our own, over vhost-user, beside qemu-storage-daemon.
    VhostUser,
    /// fio, beside qemu-nbd or the FUSE export of qemu-storage-daemon.
    Fio(fio::Way),
}

impl Transport {
    /// The option of `volume attach`; `None`: vhost-user needs none.
    #[must_use]
    pub fn attach_option(self) -> Option<&'static str> {
        match self {
            Transport::VhostUser => None,
            Transport::Fio(fio::Way::Nbd) => Some("--nbd"),
            Transport::Fio(fio::Way::File) => Some("--fuse"),
        }
    }

    /// The rows, in order.
    #[must_use]
    pub fn cases(self) -> &'static [Case] {
        match self {
            Transport::VhostUser => &compare::CASES,
            Transport::Fio(_) => &fio::CASES,
        }
    }

    /// The server that is the baseline.
    ///
    /// # Errors
    /// If it cannot be prepared.
    pub fn peer(self, dir: &Path, volumes: &Volumes) -> Result<Box<dyn Server>> {
        Ok(match self {
            Transport::VhostUser => Box::new(QemuStorageDaemon::new(dir, volumes)?),
            Transport::Fio(fio::Way::Nbd) => Box::new(QemuNbd::new(dir, volumes)),
            Transport::Fio(fio::Way::File) => Box::new(QemuFuse::new(dir, volumes)),
        })
    }

    /// Measures `case` on `server` for `time`.
    ///
    /// # Errors
    /// If the server or the client fails.
    pub fn measure(
        self,
        server: &mut dyn Server,
        case: Case,
        time: Duration,
        seed: u64,
    ) -> Result<Sample> {
        match self {
            Transport::VhostUser => compare::measure(server, case, time, seed),
            Transport::Fio(way) => way.measure(server, case, time, seed),
        }
    }

    /// What is promised beside the peer.
    #[must_use]
    pub fn goals(self, case: &Case) -> Goals {
        match self {
            Transport::VhostUser => compare::goals(case),
            Transport::Fio(way) => way.goals(case),
        }
    }
}
