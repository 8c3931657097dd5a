//! The node's daemon is restarted and killed under running instances.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::Result;
use archipelago_ganeti_tests::cluster::Cluster;
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::instance::{Instance, System, Way};
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::Storage;

/// An instance whose guest writes under verification while the node's daemon is killed, and while it is stopped, and started again.
fn outlives_the_node_daemon(name: &str, way: Way) -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    let before = Footprint::of(&storage)?;
    let instance = step(&cluster, "gnt-instance add", || {
        Instance::add(&cluster, name, way, System::None, &["size=64M"])
    })?;
    let mut guest = instance.console()?;
    step(&cluster, "the guest writes under verification", || {
        guest.run("start_load /dev/vda 32m")
    })?;
    step(&cluster, "the daemon is killed and started", || {
        storage.kill_and_start()
    })?;
    step(&cluster, "the guest has seen no error", || {
        guest.run("end_load && no_errors && start_load /dev/vda 32m")
    })?;
    step(&cluster, "the daemon is stopped and started", || {
        storage.restart()
    })?;
    step(&cluster, "the guest has seen no error", || {
        guest.run("end_load && no_errors")
    })?;
    // Ganeti 3.0 does not tell QEMU that a block device has grown.
    if way == Way::VhostUser {
        step(
            &cluster,
            "gnt-instance grow-disk reaches the guest as before",
            || {
                instance.ask_with(&["grow-disk"], &["0", "32M"])?;
                guest.run(&format!("await 60 sectors_are vda {}", 96 << 11))
            },
        )?;
    }
    drop(guest);
    step(&cluster, "gnt-instance remove leaves nothing", || {
        instance.remove()?;
        before.await_again(&storage)
    })?;
    step(&cluster, "gnt-cluster verify finds nothing", || {
        cluster.verify()
    })?;
    cluster.stop()
}

#[test]
fn an_instance_over_vhost_user_outlives_the_node_daemon() -> Result<()> {
    outlives_the_node_daemon("k1.example", Way::VhostUser)
}

#[test]
fn an_instance_on_a_kernel_device_outlives_the_node_daemon() -> Result<()> {
    outlives_the_node_daemon("k2.example", Way::KernelDevice)
}
