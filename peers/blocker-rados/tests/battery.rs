//! The conformance battery of the object contract, against a cluster, and what only this backend can get wrong.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use archipelago_blocker::{Backend, Claim};
use archipelago_blocker_rados::{Claimant, Options, RadosBackend, check};
use archipelago_ceph::{CephCluster, ClusterOptions, Store};
use archipelago_doubles::battery::{self, Driver};
use archipelago_protocol::object::{IO_LEN_MAX, ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{Epoch, Lineage, ObjectSize};
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

/// A backend in a namespace of one pool; what volumes hold is in another one, if `data` says so.
fn open(
    ceph: &CephCluster,
    data: Option<&str>,
    namespace: String,
    reactor: &Reactor,
) -> Box<dyn Backend> {
    let options = Options {
        pool: "volumes".to_owned(),
        data_pool: data.map(str::to_owned),
        namespace,
        conf: Some(ceph.conf()),
        client: "admin".to_owned(),
        keyring: None,
        fsid: ceph.fsid().to_owned(),
    };
    check(&options, &claimant()).expect("a pool that can be used");
    let opened = RadosBackend::open(&options, &claimant(), reactor.source());
    Box::new(opened.expect("a pool that opens"))
}

fn reactor() -> Reactor {
    Reactor::new(Config::default(), Arc::new(SystemClock)).expect("a ring")
}

/// Runs the battery.
fn run(ceph: &CephCluster, data: Option<&str>) {
    let reactor = reactor();
    let namespaces = AtomicU32::new(0);
    let mut make = || -> Box<dyn Backend> {
        let number = namespaces.fetch_add(1, Ordering::Relaxed);
        open(ceph, data, format!("case-{number}"), &reactor)
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

/// What a removal meets on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    /// A write that starts after it.
    Write,
    /// A write that came before it, and waits until others have ended.
    WaitingWrite,
}

/// Removes what was written, by `op`, beside a write of another object of the same group: what can be read then is listed.
fn remove_beside(driver: &mut Driver<'_>, op: ObjectOp, beside: Beside, lineage: u128) {
    let [id, other] =
        [lineage, lineage + 1].map(|lineage| ObjectId::data(Lineage(lineage), Epoch(1)));
    let object_size = ObjectSize::from_log2(25).expect("32 MiB");
    let write = |id, object: u64, len: u32| ObjectRequest {
        offset: object * object_size.bytes(),
        len,
        object_size,
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    for id in [id, other] {
        assert_eq!(driver.call(&write(id, 0, 512), &[(0, 512)]).result, Ok(512));
    }
    let mut tickets = Vec::new();
    let subject = write(id, 1, 512);
    if beside == Beside::WaitingWrite {
        // As many bytes as may be under way at a time.
        for object in 0..2 {
            let full = write(other, object, IO_LEN_MAX);
            tickets.push(driver.start(&full, &[(0, IO_LEN_MAX.into())]));
        }
        tickets.push(driver.start(&subject, &[(0, 512)]));
    }
    tickets.push(driver.start(&ObjectRequest::new(op, id), &[]));
    if beside == Beside::Write {
        tickets.push(driver.start(&subject, &[(0, 512)]));
    }
    for ticket in tickets {
        // The write may come too late: the object that it is for is being removed.
        let _reply = driver.wait(ticket);
    }
    let read = ObjectRequest {
        op: ObjectOp::Read,
        ..subject
    };
    let is_there = driver.call(&read, &[(0, 512)]).result.is_ok();
    let listed = driver.list(ObjectId::data(Lineage(0), Epoch(0)), 100);
    assert!(
        listed.contains(&id) || !is_there,
        "{op:?} beside {beside:?}"
    );
    assert_eq!(driver.simple(ObjectOp::DeleteLineage, id).result, Ok(0));
}

#[test]
fn what_is_written_beside_a_removal_is_removed_or_listed() {
    let ceph = CephCluster::start(ClusterOptions::default());
    ceph.create_pool("volumes", 1);
    let reactor = reactor();
    let backend = open(&ceph, None, String::new(), &reactor);
    let mut pump = std::thread::yield_now;
    let mut driver = Driver::new(backend, &mut pump, "removal");
    for lineage in 0..8 {
        for op in [ObjectOp::Delete, ObjectOp::DeleteLineage] {
            for beside in [Beside::Write, Beside::WaitingWrite] {
                remove_beside(&mut driver, op, beside, 1 + 2 * lineage);
            }
        }
    }
    driver.finish();
}
