//! A cluster of one node: Ganeti of Debian's package, its daemons, commands and jobs, in a machine of its own.
//!
//! It is the Ganeti of this host, or with `$GANETI_ROOT` that of the root file system in that directory (`tests/ganeti/root.sh` makes one).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use archipelago_bench::server::own_program;
use archipelago_bench::waiting::now;
use archipelago_vm_tests::parts::Parts;
use tempfile::TempDir;

use crate::namespaces::Namespaces;
use crate::node_log::{Call, calls};

/// The only node.
pub const NODE: &str = "node1.example";
/// The cluster's name.
const CLUSTER: &str = "cluster.example";
/// What instances may be: disks from 1 MiB on, guests from 64 MiB on, so that tests are small.
const BOUNDS: &str = "min:cpu-count=1,disk-count=0,disk-size=1,memory-size=64,nic-count=0,spindle-use=0/\
     max:cpu-count=8,disk-count=16,disk-size=1048576,memory-size=32768,nic-count=8,spindle-use=12";
/// Kernel parameters of instances; Ganeti adds the console. As in `tests/vm`.
const KERNEL_ARGUMENTS: &str = "quiet reboot=t panic=-1 mitigations=off nokaslr random.trust_cpu=on no_timer_check tsc=unstable clocksource=acpi_pm";
/// Where Ganeti's node daemon says what it does.
const NODE_LOG: &str = "/var/log/ganeti/node-daemon.log";
/// What a failure shows of a log.
const TAIL_LINES: usize = 25;

/// A running cluster; it is gone when this is dropped.
#[derive(Debug)]
pub struct Cluster {
    // Before the directory: it ends first.
    machine: Namespaces,
    dir: TempDir,
}

impl Cluster {
    /// Makes a cluster of one node, without an instance.
    ///
    /// # Errors
    /// If Ganeti does not start.
    pub fn start() -> Result<Cluster> {
        let began = now();
        let dir = private_directory()?;
        let root = std::env::var_os("GANETI_ROOT").map(PathBuf::from);
        let programs = dir.path().parent().context("beside the programs")?;
        let guest = Parts::get()?.kernel.parent().context("in a directory")?;
        let machine = Namespaces::start(dir.path(), root.as_deref(), &[programs, guest])?;
        let cluster = Cluster { machine, dir };
        cluster.install_os("tiny")?;
        cluster.initialise()?;
        eprintln!("cluster: up in {:.1} s", began.elapsed().as_secs_f64());
        Ok(cluster)
    }

    /// The machine that the node is.
    #[must_use]
    pub fn machine(&self) -> &Namespaces {
        &self.machine
    }

    /// Where its files are; the path is the same inside.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Ganeti's version, major and minor.
    ///
    /// # Errors
    /// If it does not say.
    pub fn version(&self) -> Result<(u32, u32)> {
        let said = self.run("gnt-cluster", &["version"])?;
        let version = said.lines().find_map(|line| {
            let mut numbers = line.strip_prefix("Software version: ")?.split('.');
            let mut number = || numbers.next()?.parse().ok();
            Some((number()?, number()?))
        });
        version.with_context(|| format!("no version in {said}"))
    }

    /// Runs a command of Ganeti: what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.machine.call(program, arguments)
    }

    /// `gnt-instance`.
    ///
    /// # Errors
    /// As [`Cluster::run`].
    pub fn instance(&self, arguments: &[&str]) -> Result<String> {
        self.run("gnt-instance", arguments)
    }

    /// `gnt-cluster verify`, which must find nothing.
    ///
    /// # Errors
    /// With what it found.
    pub fn verify(&self) -> Result<()> {
        let mut arguments = vec!["verify", "--error-codes"];
        // Ganeti wants the file to restart a node by; a kernel without it makes no worse a cluster.
        if !Path::new("/proc/sysrq-trigger").exists() {
            arguments.push("--ignore-errors=ENODESETUP");
        }
        let said = self.run("gnt-cluster", &arguments)?;
        let found = said
            .lines()
            .filter(|line| line.contains(" ERROR") || line.contains("ftype=ERROR"));
        let found: Vec<&str> = found.collect();
        ensure!(found.is_empty(), "gnt-cluster verify: {}", found.join("\n"));
        Ok(())
    }

    /// The scripts of the provider that Ganeti has called since its log had `from` bytes, and how long each took.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn calls_since(&self, from: usize) -> Result<Vec<Call>> {
        let log = fs::read_to_string(self.machine.path(NODE_LOG))?;
        Ok(calls(log.get(from..).unwrap_or_default()))
    }

    /// Bytes of the node daemon's log.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn log_len(&self) -> Result<usize> {
        Ok(fs::read(self.machine.path(NODE_LOG))?.len())
    }

    /// Ends everything, and waits for it.
    ///
    /// # Errors
    /// If something does not end, or is left in its directory as a mount.
    pub fn stop(self) -> Result<()> {
        let began = now();
        self.machine.end()?;
        self.dir.close().context("remove the cluster's directory")?;
        eprintln!("cluster: down in {:.1} s", began.elapsed().as_secs_f64());
        Ok(())
    }

    /// Ends of the logs, for a failure.
    #[must_use]
    pub fn logs(&self) -> String {
        let ganeti = self.machine.path("/var/log/ganeti");
        let mut paths = vec![ganeti.join("node-daemon.log")];
        let ours = fs::read_dir(ganeti.join("extstorage"))
            .into_iter()
            .flatten();
        paths.extend(ours.flatten().map(|entry| entry.path()));
        paths.sort();
        let tails = paths.iter().map(|path| tail(path).unwrap_or_default());
        tails.collect()
    }

    fn install_os(&self, name: &str) -> Result<()> {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("os").join(name);
        let to = self.dir().join("srv/ganeti/os").join(name);
        fs::create_dir_all(&to)?;
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn initialise(&self) -> Result<()> {
        let parts = Parts::get()?;
        let hypervisor = format!(
            "kvm:kvm_path=/usr/bin/qemu-system-x86_64,kernel_path={},initrd_path={},kernel_args={KERNEL_ARGUMENTS},\
             cpu_type=max\\,-cx16,vnc_bind_address=,acpi=true",
            parts.kernel.display(),
            parts.initrd.display(),
        );
        self.run(
            "gnt-cluster",
            &[
                "init",
                "--enabled-hypervisors=kvm",
                "--hypervisor-parameters",
                &hypervisor,
                "--enabled-disk-templates=ext",
                "--ipolicy-disk-templates=ext",
                "--ipolicy-bounds-specs",
                BOUNDS,
                "--ipolicy-std-specs=cpu-count=1,disk-count=1,disk-size=1024,memory-size=128,nic-count=1,spindle-use=1",
                "--master-netdev=br0",
                "--nic-parameters=link=br0",
                "--no-etc-hosts",
                CLUSTER,
            ],
        )?;
        Ok(())
    }
}

/// Beside the programs, which are on a disk with room.
fn private_directory() -> Result<TempDir> {
    let program = own_program("archipelago")?;
    let base = program.parent().context("a program is in a directory")?;
    let dir = tempfile::Builder::new()
        .prefix("ganeti-")
        .tempdir_in(base)?;
    Ok(dir)
}

fn tail(path: &PathBuf) -> Result<String> {
    let text = fs::read_to_string(path)?;
    if text.trim().is_empty() {
        return Ok(String::new());
    }
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    Ok(format!("---- {}\n{}\n", path.display(), last.join("\n")))
}
