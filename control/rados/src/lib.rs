//! A pool on RADOS, as hosted by the process with its blocker. Only the node daemon starts the program `archipelago-rados`.
//!
//! * [`HostedPool`]: the settings of the process, as a pool that [`archipelago_host`] opens.
//! * [`make`]: what makes a RADOS pool one of ours.
//! * [`keep_buffers`]: a setting of the process.
//!
//! One design decision: only this program links librados, so a host without such a pool needs no package of Ceph.
//!
//! This crate never reads the node's configuration: the daemon passes everything that it needs.

#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::path::Path;

use archipelago_api::config::RadosPool;
use archipelago_blocker::Claim;
use archipelago_blocker_rados::{Claimant, Options, RadosBackend, check};

pub use archipelago_blocker_rados::keep_buffers;
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

/// What is reported of a pool that was made.
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
    let claimant = claimant(&wanted.node, wanted.claim);
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
    type Joined = Infallible;

    fn directories(&self) -> Vec<&Path> {
        Vec::new()
    }

    fn reads(&self) -> Vec<&Path> {
        let RadosPool {
            ceph_conf, keyring, ..
        } = &self.0.rados;
        let ceph = Path::new(CEPH);
        let mut reads: Vec<&Path> = SYSTEM.map(Path::new).into();
        reads.push(ceph_conf.as_deref().unwrap_or(ceph));
        match keyring {
            Some(keyring) => reads.push(keyring),
            // The key is beside the configuration, or in the usual place.
            None => reads.extend(
                ceph_conf
                    .as_deref()
                    .and_then(Path::parent)
                    .into_iter()
                    .chain([ceph]),
            ),
        }
        reads
    }

    fn uses_network(&self) -> bool {
        true
    }

    /// Connections to the cluster's daemons, of which a large one has some thousands: as many as there are to spare.
    fn descriptors(&self, limit: u64) -> u64 {
        limit / 2
    }

    fn join(_backend: &RadosBackend) -> Option<Infallible> {
        None
    }

    fn open_joined(joined: Infallible, _reactor: &Reactor) -> Result<RadosBackend, Error> {
        match joined {}
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_confined_process_reads_the_files_that_are_named_and_nothing_beside_them() {
        let reads = |ceph_conf: Option<&str>, keyring: Option<&str>| {
            let rados = RadosPool {
                pool: "volumes".to_owned(),
                data_pool: None,
                namespace: String::new(),
                ceph_conf: ceph_conf.map(Into::into),
                client: "admin".to_owned(),
                keyring: keyring.map(Into::into),
                fsid: String::new(),
            };
            let claim = Claim::Start;
            let pool = HostedPool(RadosSettings { rados, claim });
            let reads = pool.reads();
            let others = reads
                .iter()
                .filter(|path| !SYSTEM.contains(&path.to_str().unwrap_or("")));
            others
                .map(|path| path.display().to_string())
                .collect::<Vec<_>>()
        };
        let (conf, key) = (Some("/a/ceph.conf"), Some("/b/key"));
        assert_eq!(reads(conf, key), ["/a/ceph.conf", "/b/key"]);
        assert_eq!(reads(None, key), [CEPH, "/b/key"]);
        assert_eq!(reads(conf, None), ["/a/ceph.conf", "/a", CEPH]);
        assert_eq!(reads(None, None), [CEPH, CEPH]);
    }
}
