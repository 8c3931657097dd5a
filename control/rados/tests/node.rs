//! A real node whose pool is on a real cluster: volumes under verified load, snapshots, clones, deaths of each process, an OSD that stops,
//! and what a person reads where the pool cannot be used.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::{now, wait_until};
use archipelago_ceph::{CephCluster, ClusterOptions, Store};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::verifier::Load;

const VOLUMES: usize = 2;
const SIZE: usize = 24 << 20;
/// Requests of up to 128 KiB: the clusters are slow.
fn load() -> Load {
    Load {
        sectors_max: 256,
        ..Load::default()
    }
}

/// Each volume has done this many after a fault when it counts as served again: more than were in flight.
const SERVED: u64 = 40;
/// An error of a pool that cannot be used comes within this.
const ERROR_TIME: Duration = Duration::from_secs(10);

/// Adds the pool `far`, on the RADOS pool `pool`, with further options.
fn add<'a>(pool: &'a str, conf: &'a str, options: &[&'a str]) -> Vec<&'a str> {
    let add = ["pool", "add", "far", "--rados", pool, "--ceph-conf", conf];
    [&add[..], options].concat()
}

/// A node whose only pool is on the cluster.
fn start(placement: &str, ceph: &CephCluster, options: &[&str]) -> Result<Node> {
    let node = Node::start(placement)?;
    let conf = ceph.conf().display().to_string();
    node.call(&add("volumes", &conf, options))?;
    node.call(&["pool", "remove", "default"])?;
    Ok(node)
}

fn restart(node: &Node, role: &str) -> Result<()> {
    let before = node.process_of(role)?;
    Node::kill(before)?;
    node.wait_for_status(&format!("a new {role}"), |_status| {
        node.process_of(role)
            .is_ok_and(|now| now != before && now.as_raw() != 0)
    })
}

/// What a volume holds, through an export.
fn content(node: &Node, volume: &str, to: &Path) -> Result<Vec<u8>> {
    let file = to.join(volume);
    let path = file.to_str().context("a path in UTF-8")?;
    node.call(&["image", "export", volume, path])?;
    Ok(std::fs::read(&file)?)
}

fn serves(placement: &str, ceph: &CephCluster, options: &[&str]) -> Result<()> {
    let node = start(placement, ceph, options)?;
    let mut volumes = LoadedVolumes::start(&node, VOLUMES, SIZE, load(), 7)?;
    volumes.run(500)?;
    node.call(&["volume", "snapshot", "disk-0", "frozen"])?;
    let exports = tempfile::tempdir()?;
    let before = content(&node, "frozen", exports.path())?;
    for role in ["blocker", "mapper", "endpoint", "blocker"] {
        restart(&node, role)?;
        volumes
            .served(SERVED)
            .with_context(|| format!("{placement}: after the death of the {role}"))?;
    }
    node.call(&["volume", "clone", "frozen", "copy"])?;
    ensure!(
        content(&node, "frozen", exports.path())? == before,
        "the snapshot has changed"
    );
    ensure!(
        content(&node, "copy", exports.path())? == before,
        "the clone is another one"
    );
    let status = node.call(&["node", "status"])?;
    ensure!(
        status.contains("objects of the cluster") && status.contains(ceph.fsid()),
        "{status}"
    );
    volumes.finish()?;
    let report = node.call(&["--json", "doctor"])?;
    ensure!(report.contains("\"clean\":true"), "{report}");
    node.call(&["node", "stop"])?;
    let report = node.call(&["--json", "doctor"])?;
    ensure!(
        report.contains("\"clean\":true") && report.contains("\"online\":false"),
        "{report}"
    );
    node.call(&["node", "start"])?;
    ensure!(
        content(&node, "frozen", exports.path())? == before,
        "the snapshot is lost"
    );
    for volume in ["copy", "frozen"] {
        node.call(&["volume", "remove", volume])?;
    }
    for index in 0..VOLUMES {
        let name = format!("disk-{index}");
        node.detach(&name)?;
        node.call(&["volume", "remove", &name])?;
    }
    node.call(&["node", "stop"])?;
    Ok(())
}

#[test]
fn volumes_snapshots_and_clones_survive_the_death_of_each_process() -> Result<()> {
    let ceph = CephCluster::start(ClusterOptions::default());
    ceph.create_pool("volumes", 1);
    for placement in ["fused", "split"] {
        serves(placement, &ceph, &["--namespace", placement])?;
    }
    Ok(())
}

#[test]
fn guests_wait_for_an_osd_and_go_on() -> Result<()> {
    let ceph = CephCluster::start(ClusterOptions {
        osds: 3,
        store: Store::Blue,
        keys: true,
    });
    ceph.create_pool("volumes", 3);
    ceph.create_pool("data", 3);
    let node = start("fused", &ceph, &["--data-pool", "data"])?;
    let mut volumes = LoadedVolumes::start(&node, VOLUMES, SIZE, load(), 8)?;
    volumes.run(300)?;
    ceph.kill_osd(2);
    volumes.served(SERVED).context("without an OSD")?;
    ceph.start_osd(2);
    volumes.served(SERVED).context("with the OSD back")?;
    // One that does not answer is one that is down, after the grace of the cluster.
    ceph.freeze_osd(1);
    volumes.served(SERVED).context("with a frozen OSD")?;
    ceph.resume_osd(1);
    ceph.kill_monitor();
    ceph.start_monitor();
    volumes
        .served(SERVED)
        .context("after a restart of the monitor")?;
    volumes.finish()?;
    node.call(&["node", "stop"])?;
    Ok(())
}

#[test]
fn nothing_of_a_stopped_node_lands_once_another_one_has_taken_its_pool() -> Result<()> {
    let ceph = CephCluster::start(ClusterOptions::default());
    ceph.create_pool("volumes", 1);
    let first = start("split", &ceph, &[])?;
    let mut volumes = LoadedVolumes::start(&first, VOLUMES, SIZE, load(), 9)?;
    volumes.run(300)?;
    let section = std::fs::read_to_string(first.root().join("archipelago.toml"))?;
    let (_, section) = section.split_once("[pool.far]").context("its section")?;
    let second = Node::start("fused")?;
    second.call(&["node", "stop"])?;
    let config = second.root().join("archipelago.toml");
    let text = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{text}\n[pool.far]{section}"))?;
    // A person has to say so: the first node is in the middle of its writes.
    let blocker = first.process_of("blocker")?;
    Node::freeze(blocker)?;
    second.call(&["node", "start"])?;
    second.wait_for_status("the pool of the first node", |status| {
        status.to_string().contains("is in use by the node")
    })?;
    second.call(&["node", "stop"])?;
    second.call(&["node", "start", "--take-over"])?;
    let exports = tempfile::tempdir()?;
    let mut before = Vec::new();
    for index in 0..VOLUMES {
        before.push(content(&second, &format!("disk-{index}"), exports.path())?);
    }
    Node::thaw(blocker)?;
    let ended = || Ok(Node::is_dead(blocker).then_some(()));
    wait_until(
        ERROR_TIME,
        || "the fenced blocker lives on".to_owned(),
        ended,
    )?;
    for (index, before) in before.iter().enumerate() {
        let name = format!("disk-{index}");
        ensure!(
            content(&second, &name, exports.path())? == *before,
            "{name} has changed"
        );
    }
    // It does not come back under a new name, and takes nothing from the second node.
    first
        .wait_for_status("the loss of the pool", |status| {
            let status = status.to_string();
            status.contains("taken over") || status.contains("has got another owner")
        })
        .or_else(|error| match first.status() {
            // With its only pool the node itself ends.
            Err(_ended) => Ok(()),
            Ok(_) => Err(error),
        })?;
    second.call(&["volume", "create", "after", "--size", "1M", "--pool", "far"])?;
    second.call(&["node", "stop"])?;
    drop(volumes);
    Ok(())
}

/// What a command says that fails within the time that an error may take.
fn refused(node: &Node, command: &[&str]) -> Result<String> {
    let began = now();
    let output = node.output(command)?;
    let took = now() - began;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it was added");
    ensure!(took < ERROR_TIME, "{took:?}: {said}");
    Ok(said)
}

fn as_client<'a>(client: &'a str, keyring: &'a str) -> [&'a str; 6] {
    [
        "--namespace",
        "vms",
        "--client",
        client,
        "--keyring",
        keyring,
    ]
}

#[test]
fn a_client_needs_the_caps_that_are_printed_and_no_more() -> Result<()> {
    let ceph = CephCluster::start(ClusterOptions {
        keys: true,
        ..ClusterOptions::default()
    });
    ceph.create_pool("volumes", 1);
    let node = Node::start("split")?;
    let conf = ceph.conf().display().to_string();
    let mut said = String::new();
    for (client, osd, expected) in [
        ("reader", "allow r pool=volumes", "may not use it"),
        (
            "writer",
            "allow rwx pool=volumes",
            "may not have another client blocklisted",
        ),
    ] {
        let keyring = ceph.add_client(client, "allow r", osd);
        let keyring = keyring.display().to_string();
        said = refused(&node, &add("volumes", &conf, &as_client(client, &keyring)))?;
        ensure!(said.contains(expected), "{client}: {said}");
    }
    let caps: Vec<&str> = said.split('\'').collect();
    let [_, mon, _, osd, _] = caps[..] else {
        anyhow::bail!("no caps are printed: {said}");
    };
    let keyring = ceph.add_client("enough", mon, osd).display().to_string();
    node.call(&add("volumes", &conf, &as_client("enough", &keyring)))?;
    node.call(&["pool", "remove", "default"])?;
    let create = |name| node.call(&["volume", "create", name, "--size", "1M"]);
    create("before")?;
    // The successor has the client of this one blocklisted.
    restart(&node, "blocker")?;
    create("after")?;
    node.call(&["node", "stop"])?;
    Ok(())
}

#[test]
fn a_pool_that_cannot_be_used_is_refused_by_name_within_ten_seconds() -> Result<()> {
    let ceph = CephCluster::start(ClusterOptions {
        keys: true,
        ..ClusterOptions::default()
    });
    ceph.create_pool("volumes", 1);
    let node = Node::start("fused")?;
    let conf = ceph.conf().display().to_string();
    let wrong = ceph.write_keyring(false).display().to_string();
    for (command, expected) in [
        (
            add("volumes", &conf, &["--keyring", &wrong]),
            "does not accept the key of client.admin",
        ),
        (add("nothing", &conf, &[]), "has no pool `nothing`"),
        (
            add("volumes", &conf, &["--data-pool", "nothing"]),
            "has no pool `nothing`",
        ),
        (
            add("volumes", "/nowhere/ceph.conf", &[]),
            "/nowhere/ceph.conf",
        ),
    ] {
        let said = refused(&node, &command)?;
        ensure!(said.contains(expected), "{command:?}: {said}");
    }
    let add = add("volumes", &conf, &[]);
    node.call(&add)?;
    node.call(&["pool", "remove", "far"])?;
    // Another node of this host, with the pool of the first one.
    node.call(&add)?;
    let other = Node::start("fused")?;
    let said = refused(&other, &add)?;
    ensure!(said.contains("is in use by the node"), "{said}");
    other.call(&["node", "stop"])?;
    node.call(&["node", "stop"])?;
    // The cluster that is meant is another one.
    let config = node.root().join("archipelago.toml");
    let text = std::fs::read_to_string(&config)?;
    ensure!(text.contains(ceph.fsid()), "{text}");
    let other = "00000000-0000-0000-0000-000000000001";
    std::fs::write(&config, text.replace(ceph.fsid(), other))?;
    node.call(&["node", "start"])?;
    node.wait_for_status("another cluster", |status| {
        status.to_string().contains("leads to the cluster")
    })?;
    node.call(&["node", "stop"])?;
    ceph.kill_monitor();
    std::fs::write(&config, text)?;
    node.call(&["node", "start"])?;
    node.wait_for_status("no monitor", |status| {
        status
            .to_string()
            .contains("no monitor of the cluster answers")
    })?;
    node.call(&["node", "stop"])?;
    Ok(())
}
