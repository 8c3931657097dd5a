//! The life of an instance, by Ganeti's commands, in both ways to its disk.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_ganeti_tests::cluster::Cluster;
use archipelago_ganeti_tests::console::{Console, READ, WRITE};
use archipelago_ganeti_tests::footprint::Footprint;
use archipelago_ganeti_tests::instance::{Instance, System, Way, disk_of};
use archipelago_ganeti_tests::steps::step;
use archipelago_ganeti_tests::storage::Storage;

/// Names, before and after it is renamed.
const NAMES: [&str; 2] = ["n1.example", "n2.example"];
/// The Ganeti that tells QEMU of disks that come, grow and go; `modify` does so if nothing else is said.
const HOTPLUGS: (u32, u32) = (3, 1);

#[test]
fn an_instance_on_a_kernel_device() -> Result<()> {
    life(Way::KernelDevice)
}

#[test]
fn an_instance_over_vhost_user() -> Result<()> {
    life(Way::VhostUser)
}

fn life(way: Way) -> Result<()> {
    let cluster = Cluster::start()?;
    let storage = step(&cluster, "node started, provider installed", || {
        Storage::start(&cluster)
    })?;
    step(
        &cluster,
        "gnt-storage diagnose: the provider is valid",
        || diagnose(&cluster),
    )?;
    step(&cluster, "gnt-cluster verify is clean before", || {
        cluster.verify()
    })?;
    let before = Footprint::of(&storage)?;
    Life::begin(&storage, way)?.go_on()?;
    step(&cluster, "gnt-instance remove leaves nothing", || {
        Instance::named(&cluster, NAMES[1]).remove()?;
        before.await_again(&storage)
    })?;
    step(&cluster, "gnt-cluster verify is clean after", || {
        cluster.verify()
    })?;
    cluster.stop()
}

fn diagnose(cluster: &Cluster) -> Result<()> {
    let said = cluster.run("gnt-storage", &["diagnose"])?;
    let is_valid = said.contains("archipelago") && said.contains("valid");
    ensure!(is_valid && !said.contains("invalid"), "{said}");
    Ok(())
}

/// An instance whose guest has written.
struct Life<'a> {
    storage: &'a Storage<'a>,
    way: Way,
    instance: Instance<'a>,
    /// Ganeti's.
    version: (u32, u32),
    /// Of what the guest wrote.
    sum: String,
}

impl<'a> Life<'a> {
    /// On a device with the scripts of an operating system, which need one.
    fn begin(storage: &'a Storage<'a>, way: Way) -> Result<Life<'a>> {
        let cluster = storage.cluster();
        let system = match way {
            Way::KernelDevice => System::Scripts,
            Way::VhostUser => System::None,
        };
        let instance = step(cluster, "gnt-instance add and startup", || {
            Instance::add(cluster, NAMES[0], way, system, &["size=64M"])
        })?;
        let sum = step(cluster, "the guest finds its disk and writes", || {
            let mut guest = instance.console()?;
            guest.run(&format!("sectors_are vda {}", 64 << 11))?;
            if system == System::Scripts {
                ensure_installed(&mut guest, NAMES[0])?;
            }
            Footprint::of(storage)?.is_of_instances()?;
            guest.run(WRITE)
        })?;
        Ok(Life {
            storage,
            way,
            instance,
            version: cluster.version()?,
            sum,
        })
    }

    fn go_on(&self) -> Result<()> {
        let step =
            |name: &str, does: &dyn Fn() -> Result<()>| step(self.storage.cluster(), name, does);
        step("gnt-instance info, twice", &|| self.info())?;
        step("gnt-instance grow-disk, and the guest sees it", &|| {
            self.grow()
        })?;
        step("gnt-instance shutdown and startup", &|| {
            self.instance.stop()?;
            self.instance.start()?;
            self.reads_back(&mut self.instance.console()?)
        })?;
        step("gnt-instance reboot", &|| {
            self.instance.reboot()?;
            self.reads_back(&mut self.instance.console()?)
        })?;
        step("gnt-instance modify: a second disk comes and goes", &|| {
            self.second_disk()
        })?;
        if self.version >= HOTPLUGS {
            step(
                "gnt-instance modify: a second disk comes and goes under a running guest",
                &|| self.hotplug(),
            )?;
        }
        step("gnt-instance recreate-disks is refused", &|| {
            let refused = self.instance.ask(&["recreate-disks"]);
            ensure!(refused.is_err(), "recreate-disks was done");
            Ok(())
        })?;
        step("the disk is unharmed", &|| {
            self.instance.start()?;
            self.reads_back(&mut self.instance.console()?)?;
            self.instance.stop()
        })?;
        step("gnt-instance rename, and the label changes", &|| {
            self.rename()
        })?;
        match self.way {
            Way::KernelDevice => step("gnt-instance reinstall", &|| {
                let renamed = Instance::named(self.storage.cluster(), NAMES[1]);
                renamed.ask(&["reinstall", "--force"])?;
                renamed.start()?;
                ensure_installed(&mut renamed.console()?, NAMES[1])
            }),
            Way::VhostUser => Ok(()),
        }
    }

    fn reads_back(&self, guest: &mut Console) -> Result<()> {
        let read = guest.run(READ)?;
        let sum = &self.sum;
        ensure!(read == *sum, "the guest wrote {sum} and reads {read}");
        Ok(())
    }

    fn info(&self) -> Result<()> {
        for _ in 0..2 {
            let said = self.instance.ask(&["info"])?;
            let [volume] = &self.storage.volumes()?[..] else {
                anyhow::bail!("one volume is expected: {:?}", self.storage.volumes()?);
            };
            ensure!(said.contains(volume), "{volume} is not shown: {said}");
        }
        self.has_label(NAMES[0])
    }

    fn grow(&self) -> Result<()> {
        self.instance.ask_with(&["grow-disk"], &["0", "32M"])?;
        let seen = format!("sectors_are vda {}", 96 << 11);
        let mut guest = match self.way {
            Way::KernelDevice => {
                // Ganeti 3.0 does not tell QEMU of a device's new size.
                if self.version < HOTPLUGS {
                    self.instance.reboot()?;
                }
                self.instance.console()?
            }
            Way::VhostUser => self.instance.console()?,
        };
        guest.run(&format!("await 60 {seen}"))?;
        self.reads_back(&mut guest)
    }

    fn second_disk(&self) -> Result<()> {
        self.instance.stop()?;
        let disk = format!("add:size=16M,{}", disk_of(self.way, "pool=second"));
        self.instance.ask(&["modify", "--disk", &disk])?;
        self.instance.start()?;
        let mut guest = self.instance.console()?;
        guest.run(&format!("sectors_are vdb {}", 16 << 11))?;
        self.reads_back(&mut guest)?;
        self.instance.stop()?;
        self.instance.ask(&["modify", "--disk", "1:remove"])?;
        let left = self.storage.volumes()?;
        ensure!(left.len() == 1, "one volume is expected: {left:?}");
        Ok(())
    }

    /// A block device reaches the guest at once, and leaves it. A disk over vhost-user is there after the next start: it is made and
    /// removed without a word to QEMU.
    fn hotplug(&self) -> Result<()> {
        self.instance.start()?;
        let mut guest = self.instance.console()?;
        let disk = format!("add:size=16M,{}", disk_of(self.way, "pool=second"));
        let (seen, gone) = (
            format!("await 60 sectors_are vdb {}", 16 << 11),
            "await 60 test ! -e /sys/block/vdb",
        );
        match self.way {
            Way::KernelDevice => {
                self.instance.ask(&["modify", "--disk", &disk])?;
                guest.run(&seen)?;
                guest.run("dd if=/dev/zero of=/dev/vdb bs=1M count=4 oflag=direct 2>/dev/null")?;
                self.instance.ask(&["modify", "--disk", "1:remove"])?;
                guest.run(gone)?;
            }
            Way::VhostUser => {
                let no_hotplug = ["modify", "--no-hotplug", "--disk"];
                self.instance.ask(&[&no_hotplug[..], &[&disk]].concat())?;
                self.instance.reboot()?;
                guest = self.instance.console()?;
                guest.run(&seen)?;
                self.instance.stop()?;
                self.instance.ask(&["modify", "--disk", "1:remove"])?;
                self.instance.start()?;
                guest = self.instance.console()?;
                guest.run(gone)?;
            }
        }
        self.reads_back(&mut guest)?;
        let left = self.storage.volumes()?;
        ensure!(left.len() == 1, "one volume is expected: {left:?}");
        self.instance.stop()
    }

    fn rename(&self) -> Result<()> {
        // Later ones neither check nor ask.
        let options: &[&str] = match self.version < HOTPLUGS {
            true => &["--force", "--no-name-check", "--no-ip-check"],
            false => &[],
        };
        self.instance
            .ask_with(&[&["rename"][..], options].concat(), &[NAMES[1]])?;
        self.has_label(NAMES[1])
    }

    /// That the only volume says whose disk it is.
    fn has_label(&self, instance: &str) -> Result<()> {
        let label = format!("ganeti.instance={instance}");
        let found = self.storage.ask(&["volume", "list", "--label", &label])?;
        let found = found["volumes"].as_array().or(found.as_array());
        let count = found.map_or(0, Vec::len);
        ensure!(count == 1, "{count} volumes have the label {label}");
        Ok(())
    }
}

/// That the scripts of the operating system have written the disk of `instance`.
fn ensure_installed(guest: &mut Console, instance: &str) -> Result<()> {
    let said = guest.run("head -n 1 /dev/vda")?;
    ensure!(
        said == format!("tiny of {instance}"),
        "the disk begins with {said:?}"
    );
    Ok(())
}
