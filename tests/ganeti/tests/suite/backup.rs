//! A backup of a running instance, through a snapshot of its disk, and an instance made of the backup.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_ganeti_tests::cluster::{Cluster, NODE};
use archipelago_ganeti_tests::console::{READ, WRITE};
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::instance::{Instance, System, Way, disk_of};
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::Storage;

/// What release candidates of Ganeti 3.1 report of each export: they look for the host's name in a certificate that has another.
const CANNOT_EXPORT: &str = "certificate is valid but its commonName does not match hostname";

/// Exports `name` while it runs. Whether this Ganeti can.
fn export(cluster: &Cluster, name: &str) -> Result<bool> {
    let arguments = ["export", "--noshutdown", "--node", NODE, name];
    match cluster.run("gnt-backup", &arguments) {
        Err(error) if format!("{error:#}").contains(CANNOT_EXPORT) => Ok(false),
        exported => exported.map(|_said| true),
    }
}

#[test]
fn a_backup_and_an_instance_of_it() -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    let before = Footprint::of(&storage)?;
    let instance = step(&cluster, "gnt-instance add", || {
        Instance::add(
            &cluster,
            "b1.example",
            Way::KernelDevice,
            System::Scripts,
            &["size=64M"],
        )
    })?;
    let mut guest = instance.console()?;
    let sum = step(&cluster, "the guest writes", || guest.run(WRITE))?;
    let running = Footprint::of(&storage)?;
    let is_exported = step(
        &cluster,
        "gnt-backup export of the running instance",
        || export(&cluster, "b1.example"),
    )?;
    step(&cluster, "the snapshot is gone, the guest goes on", || {
        running.await_again(&storage)?;
        guest.run(WRITE)
    })?;
    if !is_exported {
        eprintln!(
            "  skipped: this Ganeti cannot export, whatever the disks are: ganeti/ganeti#1839"
        );
        drop(guest);
        step(&cluster, "it is removed, nothing is left", || {
            instance.remove()?;
            before.await_again(&storage)
        })?;
        return cluster.stop();
    }
    step(&cluster, "gnt-backup list shows it", || {
        let said = cluster.run("gnt-backup", &["list"])?;
        ensure!(said.contains("b1.example"), "{said}");
        Ok(())
    })?;
    let disk = format!("0:size=64M,{}", disk_of(Way::KernelDevice, "pool=second"));
    step(&cluster, "gnt-backup import, into the other pool", || {
        cluster.run(
            "gnt-backup",
            &[
                "import",
                "--src-node",
                NODE,
                "--src-dir=b1.example",
                "--node",
                NODE,
                "--disk-template=ext",
                "--disk",
                &disk,
                "--no-nics",
                "--no-name-check",
                "--no-ip-check",
                "b2.example",
            ],
        )
    })?;
    let imported = Instance::named(&cluster, "b2.example");
    step(
        &cluster,
        "the new guest reads what was written before the backup",
        || {
            imported.start()?;
            let read = imported.console()?.run(READ)?;
            ensure!(read == sum, "{sum} was written, {read} is read");
            Ok(())
        },
    )?;
    drop(guest);
    step(&cluster, "both are removed, nothing is left", || {
        imported.remove()?;
        instance.remove()?;
        before.await_again(&storage)
    })?;
    step(&cluster, "gnt-cluster verify finds nothing", || {
        cluster.verify()
    })?;
    cluster.stop()
}
