//! A pool on RADOS, as its blocker's process hosts it. The program `archipelago-rados` is started by the node daemon, and by nobody else.
//!
//! * [`HostedPool`]: the settings of the process, as a pool that [`archipelago_host`] opens.
//! * [`make`]: what makes a RADOS pool one of ours.
//!
//! One design decision: this program is the only one that links librados, so whoever has no such pool needs no package of Ceph.
//!
//! This crate never reads the node's configuration: the daemon gives it all that it needs.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use archipelago_api::config::RadosPool;
use archipelago_blocker::Claim;
use archipelago_blocker_rados::{Claimant, Options, RadosBackend, check};
use archipelago_host::{Pool, Purpose, Sharing, end_with, host_identity};
use archipelago_node::node_pool::{MakePool, RadosSettings};
use archipelago_protocol::Error;
use archipelago_protocol::check::Report;
use archipelago_runtime::Reactor;
use serde::{Deserialize, Serialize};

/// Where Ceph looks for its configuration and keys.
const CEPH: &str = "/etc/ceph";
/// What librados and the C library read besides: names of hosts, limits of the machine, randomness, plug-ins.
const SYSTEM: [&str; 7] = [
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/usr/lib",
    "/lib",
    "/sys/devices/system",
    "/dev/urandom",
];

/// The pool of the process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostedPool(RadosSettings);

/// What is said of a pool that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The id of its cluster.
    pub fsid: String,
}

fn options(pool: &RadosPool) -> Options {
    Options {
        pool: pool.pool.clone(),
        data_pool: pool.data_pool.clone(),
        namespace: pool.namespace.clone(),
        conf: pool.ceph_conf.clone(),
        client: pool.client.clone(),
        keyring: pool.keyring.clone(),
        fsid: pool.fsid.clone(),
    }
}

/// Makes a RADOS pool one of ours, if it is none yet, and checks that the node can use it.
///
/// # Errors
/// Why it cannot be, with what helps.
pub fn make(wanted: MakePool) -> Result<Made, Error> {
    let claimant = claimant(&wanted.node, Claim::Start);
    check(&options(&wanted.rados), &claimant).map(|fsid| Made { fsid })
}

/// The node whose sockets are in `node`, with the right of `claim`.
fn claimant(node: &Path, claim: Claim) -> Claimant {
    let host = host_identity();
    Claimant {
        machine: host.machine,
        host: host.name,
        node: node.to_owned(),
        claim,
        lost: end_with,
    }
}

impl Pool for HostedPool {
    type Backend = RadosBackend;

    fn directories(&self) -> Vec<&Path> {
        Vec::new()
    }

    fn reads(&self) -> Vec<&Path> {
        let pool = &self.0.rados;
        let named = [&pool.ceph_conf, &pool.keyring].into_iter().flatten();
        let directories = named.filter_map(|path: &PathBuf| path.parent());
        directories
            .chain([Path::new(CEPH)])
            .chain(SYSTEM.map(Path::new))
            .collect()
    }

    fn uses_network(&self) -> bool {
        true
    }

    /// Connections to the cluster's daemons, of which a large one has some thousands: as many as there are to spare.
    fn descriptors(&self, limit: u64) -> u64 {
        limit / 2
    }

    fn open(
        &self,
        reactor: &Reactor,
        _purpose: Purpose,
        node: &Path,
    ) -> Result<RadosBackend, Error> {
        let claimant = claimant(node, self.0.claim);
        RadosBackend::open(&options(&self.0.rados), &claimant, reactor.source())
    }

    /// The claim of the pool keeps every other node away.
    fn sharing(&self) -> Sharing {
        Sharing::Alone
    }

    fn look_for_foreign(&self, _report: &mut Report) {}
}
