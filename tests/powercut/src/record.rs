//! Runs the guest on a node whose disk is written down.

use std::path::Path;

use anyhow::{Context, Result};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};

use crate::medium::FileSystem;
use crate::report;

/// Name of the guest's volume.
pub const VOLUME: &str = "disk";
/// Steps between two looks at how many flushes there were.
const ROUND: u32 = 40;

/// The programs of this package, which only its tests know the paths of.
#[derive(Debug, Clone, Copy)]
pub struct Programs {
    /// `archipelagod-recording`.
    pub daemon: &'static str,
    /// `power-cut-workload`.
    pub workload: &'static str,
}

/// Where in the volume reports are written.
#[must_use]
pub fn report_offset(kind: FileSystem) -> u64 {
    kind.size()
}

/// Has a guest do the steps of `seed` on `kind` until it has flushed so many times, and writes down into `file` what is
/// asked of the disk meanwhile. Between rounds snapshots are made and removed, so that epochs change.
///
/// # Errors
/// If anything fails.
pub fn record(
    programs: Programs,
    kind: FileSystem,
    seed: u64,
    flushes: u64,
    file: &Path,
) -> Result<()> {
    let node = Node::builder("fused")
        .recording(programs.daemon, file)
        .start()?;
    let len = report_offset(kind) + report::LEN as u64;
    // Sizes are whole MiB.
    let socket = node.create(VOLUME, usize::try_from(len.next_multiple_of(1 << 20))?)?;
    let workload = Path::new(programs.workload);
    let guest = Guest::builder()
        .disk(Disk::new(&socket))
        .program(workload)
        .boot()?;
    guest.run(&format!(
        "{} && mount -t {} -o discard /dev/vda /mnt",
        kind.make(seed, "/dev/vda"),
        kind.name()
    ))?;
    let name = workload.file_name().and_then(|name| name.to_str());
    let name = name.context("a program has a name")?;
    let count = || -> Result<u64> {
        // The sixteenth figure: flush requests completed.
        let text = guest.run("awk '{ print $16 }' /sys/block/vda/stat")?;
        text.parse().with_context(|| text.clone())
    };
    let before = count()?;
    let mut first = 0;
    while count()? - before < flushes {
        let last = first + ROUND - 1;
        guest.run(&format!(
            "{name} /mnt /dev/vda {} {seed} {first} {last} && no_errors",
            report_offset(kind)
        ))?;
        first = last + 1;
        let round = first / ROUND;
        if round % 4 == 1 {
            node.call(&["volume", "snapshot", VOLUME, &format!("snapshot{round}")])?;
        } else if round % 4 == 3 {
            node.call(&["volume", "remove", &format!("snapshot{}", round - 2)])?;
        }
    }
    Ok(())
}
