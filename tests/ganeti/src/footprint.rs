//! What the storage of instances takes of a host; the same before the first and after the last of them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::wait_until;

use crate::storage::Storage;

/// Longest time until a process has ended that was asked to.
const SETTLE: Duration = Duration::from_secs(20);
/// Programs that belong to disks; the others are Ganeti's and the shell's.
const OF_DISKS: [&str; 3] = ["archipelago", "qemu", "losetup"];

/// What there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Footprint {
    volumes: Vec<String>,
    attachments: usize,
    loop_devices: Vec<String>,
    mounts: Vec<String>,
    /// Programs, and how many processes run each.
    processes: BTreeMap<String, usize>,
    /// Below our run directory.
    sockets: Vec<String>,
}

impl Footprint {
    /// Looks at everything.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn of(storage: &Storage<'_>) -> Result<Footprint> {
        let machine = storage.cluster().machine();
        let root = storage.root().to_str().context("a path in UTF-8")?;
        let lines = |program: &str, arguments: &[&str]| -> Result<Vec<String>> {
            let said = machine.call(program, arguments)?;
            Ok(said.lines().map(str::to_owned).collect())
        };
        let mut loop_devices = lines("losetup", &["--all"])?;
        loop_devices.retain(|line| line.contains(root));
        let mut mounts = lines("cat", &["/proc/mounts"])?;
        mounts.retain(|line| line.contains("fuse") || line.contains("/dev/loop"));
        let mut processes = BTreeMap::new();
        for program in lines("ps", &["-e", "-o", "comm="])? {
            if OF_DISKS.iter().any(|ours| program.starts_with(ours)) {
                *processes.entry(program).or_insert(0) += 1;
            }
        }
        let mut sockets = lines("find", &[root, "-type", "s"])?;
        sockets.sort();
        Ok(Footprint {
            volumes: storage.volumes()?,
            attachments: storage.attachments()?,
            loop_devices,
            mounts,
            processes,
            sockets,
        })
    }

    /// Waits until there is again what there was.
    ///
    /// # Errors
    /// With what is left.
    pub fn await_again(&self, storage: &Storage<'_>) -> Result<()> {
        let missing = || match Footprint::of(storage) {
            Ok(left) => format!("is left behind: {left:?}; before there was {self:?}"),
            Err(error) => format!("{error:#}"),
        };
        wait_until(SETTLE, missing, || {
            Ok((Footprint::of(storage)? == *self).then_some(()))
        })
    }

    /// That there is something of each kind which a running instance needs: a look that finds nothing proves nothing.
    ///
    /// # Errors
    /// If nothing is seen.
    pub fn is_of_instances(&self) -> Result<()> {
        let qemu = self.processes.keys().any(|name| name.starts_with("qemu"));
        let seen = !self.volumes.is_empty() && self.attachments > 0 && qemu;
        ensure!(seen, "no sign of an instance: {self:?}");
        Ok(())
    }
}
