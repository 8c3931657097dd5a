//! The conformance battery of the object contract, against a cluster.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use archipelago_blocker::Backend;
use archipelago_blocker_rados::{Claim, Claimant, Options, RadosBackend, check};
use archipelago_ceph::{CephCluster, ClusterOptions, Store};
use archipelago_doubles::battery;
use archipelago_runtime::{Config, Reactor, SystemClock};

fn claimant() -> Claimant {
    Claimant {
        machine: 1,
        host: "test".to_owned(),
        node: "/node".into(),
        claim: Claim::Start,
        lost: |error| panic!("{error}"),
    }
}

/// Runs the battery on namespaces of one pool; what volumes hold is in another one, if `data` says so.
fn run(ceph: &CephCluster, data: Option<&str>) {
    let reactor = Reactor::new(Config::default(), Arc::new(SystemClock)).expect("a ring");
    let namespaces = AtomicU32::new(0);
    let mut make = || -> Box<dyn Backend> {
        let number = namespaces.fetch_add(1, Ordering::Relaxed);
        let options = Options {
            pool: "volumes".to_owned(),
            data_pool: data.map(str::to_owned),
            namespace: format!("case-{number}"),
            conf: Some(ceph.conf()),
            client: "admin".to_owned(),
            keyring: None,
            fsid: ceph.fsid().to_owned(),
        };
        check(&options, &claimant()).expect("a pool that can be used");
        let opened = RadosBackend::open(&options, &claimant(), reactor.source());
        Box::new(opened.expect("a pool that opens"))
    };
    battery::run(&mut make, &mut std::thread::yield_now);
}

#[test]
fn one_osd_in_memory_passes() {
    let ceph = CephCluster::start(ClusterOptions::default());
    ceph.create_pool("volumes", 1);
    run(&ceph, None);
}

#[test]
fn three_osds_on_bluestore_with_keys_and_a_data_pool_pass() {
    let ceph = CephCluster::start(ClusterOptions {
        osds: 3,
        store: Store::Blue,
        keys: true,
    });
    ceph.create_pool("volumes", 3);
    ceph.create_pool("data", 2);
    run(&ceph, Some("data"));
}
