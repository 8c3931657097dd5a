//! Disks that begin as an image: what it costs, with the numbers printed.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs::File;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::now;
use archipelago_ganeti_tests::cluster::Cluster;
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::instance::{Instance, System, WRAPPER_NAME, Way};
use archipelago_ganeti_tests::node_log::Call;
use archipelago_ganeti_tests::script::Disk;
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::Storage;

/// Disks that are made one after the other.
const DISKS: usize = 20;
/// Bytes of the image.
const IMAGE_LEN: u64 = 2 << 30;
/// What it begins with.
const MARK: &str = "an image of two GiB";

#[test]
fn instances_of_an_image() -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    step(&cluster, "image import", || import(&storage))?;
    let before = Footprint::of(&storage)?;
    for way in [Way::KernelDevice, Way::VhostUser] {
        let name = match way {
            Way::KernelDevice => "kernel.example",
            Way::VhostUser => "vhost.example",
        };
        step(
            &cluster,
            &format!("gnt-instance add with origin=, {way:?}"),
            || {
                let from = cluster.log_len()?;
                let instance =
                    Instance::add(&cluster, name, way, System::None, &["size=2G,origin=image"])?;
                report(&cluster.calls_since(from)?);
                let said = instance
                    .console()?
                    .run("head -n 1 /dev/vda; cat /sys/block/vda/size")?;
                ensure!(said == format!("{MARK}\n{}", IMAGE_LEN / 512), "{said}");
                instance.remove()
            },
        )?;
    }
    for access in ["kernelspace", "userspace"] {
        step(&cluster, &format!("{DISKS} disks, {access}"), || {
            many(&storage, access)
        })?;
    }
    step(&cluster, "nothing is left", || before.await_again(&storage))?;
    cluster.stop()
}

fn import(storage: &Storage<'_>) -> Result<()> {
    let path = storage.cluster().dir().join("image.raw");
    let mut file = File::create(&path)?;
    writeln!(file, "{MARK}")?;
    file.set_len(IMAGE_LEN)?;
    let path = path.to_str().context("a path in UTF-8")?;
    storage.call(&["image", "import", path, "image"]).map(drop)
}

/// The provider's part of an instance that was made and started.
fn report(calls: &[Call]) {
    let (wrapper, scripts): (Vec<&Call>, Vec<&Call>) =
        calls.iter().partition(|call| call.action == WRAPPER_NAME);
    let total = |calls: &[&Call]| calls.iter().map(|call| call.time).sum::<Duration>();
    let each = scripts
        .iter()
        .map(|call| format!("{} {}", call.action, call.time.as_millis()));
    let each = each.collect::<Vec<_>>().join(", ");
    eprintln!(
        "         the provider's part: {:?} in {} calls (ms: {each})",
        total(&scripts),
        scripts.len()
    );
    if !wrapper.is_empty() {
        eprintln!(
            "         QEMU by the wrapper, Ganeti's questions included: {:?} in {} calls",
            total(&wrapper),
            wrapper.len()
        );
    }
}

/// The scripts that Ganeti calls for each disk of a new instance.
fn many(storage: &Storage<'_>, access: &str) -> Result<()> {
    let mut each = Vec::new();
    let began = now();
    for number in 0..DISKS {
        let disk = Disk::new(storage, &format!("many{number}.ext.disk0"), access)
            .with("EXTP_ORIGIN", "image");
        let create = disk.with("VOL_SIZE", "2048").timed("create")?;
        let attach = disk.timed("attach")?;
        let open = disk.with("VOL_OPEN_EXCLUSIVE", "True").timed("open")?;
        let metadata = format!("originstname+many{number}.example");
        let set_info = disk.with("VOL_METADATA", &metadata).timed("setinfo")?;
        each.push([create, attach, open, set_info]);
    }
    let total = began.elapsed();
    let sum: Duration = each.iter().flatten().sum();
    for (index, name) in ["create", "attach", "open", "setinfo"].iter().enumerate() {
        let longest = each
            .iter()
            .map(|times| times[index])
            .max()
            .unwrap_or_default();
        let all: Duration = each.iter().map(|times| times[index]).sum();
        eprintln!(
            "         {name}: mean {:?}, longest {longest:?}",
            all / u32::try_from(DISKS)?
        );
    }
    eprintln!("         {DISKS} disks in {total:?}, {sum:?} of it in scripts");
    for number in 0..DISKS {
        Disk::new(storage, &format!("many{number}.ext.disk0"), access).call("remove")?;
    }
    Ok(())
}
