//! An instance of the cluster: made, started, asked on its console, removed.

use anyhow::{Context, Result};

use crate::cluster::{Cluster, NODE};
use crate::console::Console;
use crate::script::PROVIDER;

/// How an instance reaches its disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// A block device of the host's kernel.
    KernelDevice,
    /// vhost-user, with the wrapper as QEMU.
    VhostUser,
}

/// How a new instance gets its operating system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    /// By the scripts of the definition `tiny`.
    Scripts,
    /// Its disk is what it was made as, by `origin=` for instance.
    None,
}

/// The wrapper, which is QEMU with vhost-user disks; it is beside the scripts.
pub const WRAPPER_NAME: &str = "archipelago-kvm";
/// Memory of a guest, most of which is its first file system.
const MEMORY: &str = "memory=192";

/// An instance; it may be running or not.
#[derive(Debug)]
pub struct Instance<'a> {
    cluster: &'a Cluster,
    name: String,
}

impl<'a> Instance<'a> {
    /// Makes an instance whose disks are `disks` (`size=64M,pool=second`, say), and starts it.
    ///
    /// # Errors
    /// If Ganeti refuses.
    pub fn add(
        cluster: &'a Cluster,
        name: &str,
        way: Way,
        system: System,
        disks: &[&str],
    ) -> Result<Instance<'a>> {
        let mut arguments = vec!["add".to_owned()];
        let mut push =
            |words: &[&str]| arguments.extend(words.iter().map(|word| (*word).to_owned()));
        push(&[
            "--disk-template=ext",
            "--os-type=tiny+default",
            "--node",
            NODE,
        ]);
        push(&[
            "--no-nics",
            "--no-name-check",
            "--no-ip-check",
            "--backend-parameters",
            MEMORY,
        ]);
        for (index, disk) in disks.iter().enumerate() {
            push(&["--disk", &format!("{index}:{}", disk_of(way, disk))]);
        }
        if way == Way::VhostUser {
            push(&[
                "--hypervisor-parameters",
                &format!("kvm:kvm_path={PROVIDER}/{WRAPPER_NAME}"),
            ]);
        }
        if system == System::None {
            push(&["--no-install", "--no-start"]);
        }
        push(&[name]);
        let instance = Instance::named(cluster, name);
        cluster.instance(&arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        if system == System::None {
            instance.start()?;
        }
        Ok(instance)
    }

    /// One that was made in another way.
    #[must_use]
    pub fn named(cluster: &'a Cluster, name: &str) -> Instance<'a> {
        Instance {
            cluster,
            name: name.to_owned(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its console, once the guest answers.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn console(&self) -> Result<Console> {
        let socket = format!("/run/ganeti/kvm-hypervisor/ctrl/{}.serial", self.name);
        let socket = self.cluster.machine().path(&socket);
        Console::connect(&socket).with_context(|| format!("console of {}", self.name))
    }

    /// `gnt-instance startup`.
    ///
    /// # Errors
    /// If Ganeti refuses.
    pub fn start(&self) -> Result<()> {
        self.ask(&["startup"]).map(drop)
    }

    /// `gnt-instance shutdown`; the guest has no ACPI.
    ///
    /// # Errors
    /// If Ganeti refuses.
    pub fn stop(&self) -> Result<()> {
        self.ask(&["shutdown", "--timeout=1"]).map(drop)
    }

    /// `gnt-instance reboot`, hard: a new QEMU.
    ///
    /// # Errors
    /// If Ganeti refuses.
    pub fn reboot(&self) -> Result<()> {
        self.ask(&["reboot", "--type=hard", "--shutdown-timeout=1"])
            .map(drop)
    }

    /// `gnt-instance remove`.
    ///
    /// # Errors
    /// If Ganeti refuses.
    pub fn remove(&self) -> Result<()> {
        self.ask(&["remove", "--force", "--shutdown-timeout=1"])
            .map(drop)
    }

    /// A command of `gnt-instance` about this one: `arguments`, then its name.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        self.ask_with(arguments, &[])
    }

    /// The same with words behind the name.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn ask_with(&self, arguments: &[&str], after: &[&str]) -> Result<String> {
        self.cluster
            .instance(&[arguments, &[self.name.as_str()], after].concat())
    }
}

/// A disk in Ganeti's words, behind its index.
#[must_use]
pub fn disk_of(way: Way, disk: &str) -> String {
    let access = match way {
        Way::KernelDevice => "kernelspace",
        Way::VhostUser => "userspace",
    };
    format!("provider=archipelago,access={access},{disk}")
}
