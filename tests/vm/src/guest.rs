//! A virtual machine with vhost-user disks, asked and answered on its serial console.
//!
//! Invariants
//! - The machine is gone when its [`Guest`] is: killed by its own process handle.
//! - Every wait has a deadline, and a failure shows the end of the console.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tempfile::TempDir;

use crate::deadline::{BOOT, COMMAND, Deadline};
use crate::parts::Parts;
use crate::programs;
use crate::qmp::Qmp;

/// Kernel parameters. An emulated clock is steady only without the TSC, and a busy host must not fail the timer check.
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 quiet reboot=t panic=-1 mitigations=off nokaslr random.trust_cpu=on \
     no_timer_check tsc=unstable clocksource=acpi_pm";
/// Memory of a guest that does not ask for another amount.
const MEMORY_MIB: u32 = 512;
/// What a failure shows of the console.
const TAIL_LEN: usize = 4000;

/// A disk of a guest.
#[derive(Debug, Clone)]
pub struct Disk {
    socket: PathBuf,
    queues: u16,
    boots: bool,
}

impl Disk {
    /// The disk served at a vhost-user socket, with one queue.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Disk {
            socket: socket.to_owned(),
            queues: 1,
            boots: false,
        }
    }

    /// With so many queues.
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// The machine boots from it, by way of its firmware.
    #[must_use]
    pub fn bootable(mut self) -> Self {
        self.boots = true;
        self
    }
}

/// What a guest is to be.
#[derive(Debug, Default)]
pub struct Builder {
    disks: Vec<Disk>,
    files: Vec<PathBuf>,
    memory_mib: Option<u32>,
    processors: u16,
    waits_for_migration: bool,
    network: bool,
    programs: Vec<PathBuf>,
}

impl Builder {
    /// With a disk: `/dev/vda`, the next one `/dev/vdb`.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// With a disk whose content is a raw file of the host: after those of [`Builder::disk`].
    #[must_use]
    pub fn file(mut self, file: &Path) -> Self {
        self.files.push(file.to_owned());
        self
    }

    /// With so many MiB of memory rather than 512.
    #[must_use]
    pub fn memory_mib(mut self, mib: u32) -> Self {
        self.memory_mib = Some(mib);
        self
    }

    /// With so many processors rather than one.
    #[must_use]
    pub fn processors(mut self, processors: u16) -> Self {
        self.processors = processors;
        self
    }

    /// With a network of its own, in which the host's loopback addresses are 10.0.2.2: see `start_network` of the guest's functions.
    #[must_use]
    pub fn network(mut self) -> Self {
        self.network = true;
        self
    }

    /// With a program of the host, to be called by its name.
    #[must_use]
    pub fn program(mut self, program: &Path) -> Self {
        self.programs.push(program.to_owned());
        self
    }

    /// Starts the machine and waits until the guest takes commands.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn boot(self) -> Result<Guest> {
        let guest = self.start()?;
        guest.console.wait("GUEST-READY\n", BOOT).context("boot")?;
        Ok(guest)
    }

    /// Starts a machine that waits for another one to migrate into it; see [`Guest::migrate_to`].
    ///
    /// # Errors
    /// If QEMU does not start.
    pub fn receive_migration(mut self) -> Result<Guest> {
        self.waits_for_migration = true;
        self.start()
    }

    fn start(self) -> Result<Guest> {
        let dir = tempfile::Builder::new().prefix("guest-").tempdir()?;
        let mut command = self.command(dir.path())?;
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().context("starting qemu-system-x86_64")?;
        let stdin = child.stdin.take().context("a piped standard input")?;
        let stdout = child.stdout.take().context("a piped standard output")?;
        let console = Arc::new(Console::default());
        let reader = std::thread::spawn({
            let console = Arc::clone(&console);
            move || console.feed(stdout)
        });
        let guest = Guest {
            dir,
            child,
            stdin: Mutex::new(Sender { stdin, id: 0 }),
            console,
            reader: Some(reader),
        };
        guest.console.wait_started(&guest.monitor_path())?;
        Ok(guest)
    }

    fn command(&self, dir: &Path) -> Result<Command> {
        let parts = Parts::get()?;
        let mut command = Command::new("qemu-system-x86_64");
        // One thread for all processors: with one for each, QEMU before 8.1 may run code that another processor patches
        // as it was before, and the kernel panics over a stray breakpoint ("int3").
        command.args(["-accel", "tcg,thread=single"]);
        // Without cx16: QEMU 7.2 emulates cmpxchg16b wrongly and kernels of 6.12 panic.
        command.args(["-M", "q35,memory-backend=mem", "-cpu", "max,-cx16"]);
        let memory = self.memory_mib.unwrap_or(MEMORY_MIB);
        command.args(["-smp", &self.processors.max(1).to_string()]);
        command.args(["-m", &memory.to_string()]);
        command.arg("-object").arg(format!(
            "memory-backend-memfd,id=mem,size={memory}M,share=on"
        ));
        command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        command.args([
            "-chardev",
            "stdio,id=console,signal=off",
            "-serial",
            "chardev:console",
        ]);
        let monitor = dir.join("monitor");
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        // An empty port for a disk that is plugged in later.
        command.args(["-device", "pcie-root-port,id=hotplug0,chassis=1"]);
        if self.network {
            command.args(["-netdev", "user,id=network"]);
            command.args(["-device", "virtio-net-pci,netdev=network,romfile="]);
        }
        if self.waits_for_migration {
            command
                .arg("-incoming")
                .arg(format!("unix:{}", dir.join("migration").display()));
        }
        if !self.disks.iter().any(|disk| disk.boots) {
            let initrd = if self.programs.is_empty() {
                parts.initrd.clone()
            } else {
                programs::add(&self.programs, &parts.initrd, dir)?
            };
            command
                .arg("-kernel")
                .arg(&parts.kernel)
                .arg("-initrd")
                .arg(&initrd);
            command.args(["-append", KERNEL_COMMAND_LINE]);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            command.arg("-chardev").arg(format!(
                "socket,id=chardev{index},path={},reconnect=1",
                disk.socket.display()
            ));
            let boot = if disk.boots { ",bootindex=0" } else { "" };
            command.arg("-device").arg(format!(
                "vhost-user-blk-pci,id=disk{index},chardev=chardev{index},num-queues={}{boot}",
                disk.queues
            ));
        }
        for (index, file) in self.files.iter().enumerate() {
            command.arg("-drive").arg(format!(
                "file={},if=none,id=file{index},format=raw,discard=unmap",
                file.display()
            ));
            command.arg("-device").arg(format!(
                "virtio-blk-pci,id=filedisk{index},drive=file{index}"
            ));
        }
        Ok(command)
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Guest {
    dir: TempDir,
    child: Child,
    stdin: Mutex<Sender>,
    console: Arc<Console>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Sender {
    stdin: ChildStdin,
    id: u64,
}

impl Guest {
    /// What it is to be.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Runs a shell command in the guest and returns what it printed.
    ///
    /// # Errors
    /// If it exits with another code than 0, with what it printed, or does not end in [`COMMAND`].
    pub fn run(&self, command: &str) -> Result<String> {
        ensure!(!command.contains('\n'), "a command is one line");
        let mut sender = self.stdin.lock().unwrap_or_else(PoisonError::into_inner);
        sender.id += 1;
        let id = sender.id;
        writeln!(sender.stdin, "{id} {command}")?;
        sender.stdin.flush()?;
        let output = self
            .console
            .wait(&format!("GUEST-EXIT {id} "), COMMAND)
            .with_context(|| command.to_owned())?;
        let code = self.console.wait("\n", COMMAND)?;
        if code.trim() != "0" {
            bail!(
                "in the guest: {command}: exit {}\n{}",
                code.trim(),
                output.trim()
            );
        }
        Ok(output.replace('\r', "").trim().to_owned())
    }

    /// Presses the reset button and waits until the guest takes commands again.
    ///
    /// # Errors
    /// If it does not boot.
    pub fn reset(&self) -> Result<()> {
        self.monitor()?.execute("system_reset", &json!({}))?;
        self.console.wait("GUEST-READY\n", BOOT).context("reboot")?;
        Ok(())
    }

    /// QEMU's monitor; one connection at a time.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn monitor(&self) -> Result<Qmp> {
        Qmp::connect(&self.monitor_path())
    }

    /// Plugs in a disk, which the guest will find by itself; `name` is for [`Guest::unplug`].
    ///
    /// # Errors
    /// If QEMU refuses.
    pub fn plug(&self, name: &str, socket: &Path) -> Result<()> {
        let mut monitor = self.monitor()?;
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false, "reconnect": 1 } });
        let id = format!("chardev-{name}");
        monitor.execute("chardev-add", &json!({ "id": id, "backend": backend }))?;
        let device =
            json!({ "driver": "vhost-user-blk-pci", "id": name, "chardev": id, "bus": "hotplug0" });
        monitor.execute("device_add", &device)?;
        Ok(())
    }

    /// Pulls out a disk, with the guest's consent.
    ///
    /// # Errors
    /// If the guest does not release it.
    pub fn unplug(&self, name: &str) -> Result<()> {
        let mut monitor = self.monitor()?;
        monitor.execute("device_del", &json!({ "id": name }))?;
        while monitor.wait_event("DEVICE_DELETED")?["data"]["device"] != name {}
        monitor.execute(
            "chardev-remove",
            &json!({ "id": format!("chardev-{name}") }),
        )?;
        Ok(())
    }

    /// Migrates into `target`, which must have been started with the same disks. This one is stopped afterwards, and the
    /// console and its commands are `target`'s.
    ///
    /// # Errors
    /// If the migration fails.
    pub fn migrate_to(&self, target: &Guest) -> Result<()> {
        let mut monitor = self.monitor()?;
        let uri = format!("unix:{}", target.dir.path().join("migration").display());
        let capability = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        monitor.execute("migrate-set-capabilities", &capability)?;
        monitor.execute("migrate", &json!({ "uri": uri }))?;
        loop {
            let event = monitor.wait_event("MIGRATION")?;
            match event["data"]["status"].as_str() {
                Some("completed") => break,
                Some("failed" | "cancelled") => {
                    let info = monitor.execute("query-migrate", &json!({}))?;
                    bail!("migration failed: {info}");
                }
                _ => {}
            }
        }
        // Ids of commands continue where they were: they need only differ.
        let id = self.stdin.lock().unwrap_or_else(PoisonError::into_inner).id;
        target
            .stdin
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .id = id;
        Ok(())
    }

    /// The end of what the guest has printed.
    #[must_use]
    pub fn console_tail(&self) -> String {
        self.console.tail()
    }

    fn monitor_path(&self) -> PathBuf {
        self.dir.path().join("monitor")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
    }
}

/// What a guest has printed.
#[derive(Debug, Default)]
struct Console {
    text: Mutex<Text>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Text {
    all: String,
    /// Where the next wait begins to look.
    seen: usize,
    /// QEMU has ended.
    ended: bool,
}

impl Console {
    fn lock(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn feed(&self, mut stdout: impl Read) {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            // Replacement characters for a split one do no harm: commands print ASCII.
            let text = String::from_utf8_lossy(&buffer[..count]);
            self.lock().all.push_str(&text);
            self.more.notify_all();
        }
        self.lock().ended = true;
        self.more.notify_all();
    }

    /// Waits for `word` and returns what came before it; the next wait begins behind it.
    fn wait(&self, word: &str, timeout: Duration) -> Result<String> {
        let deadline = Deadline::after(timeout);
        let mut text = self.lock();
        loop {
            let fresh = &text.all[text.seen..];
            if let Some(at) = fresh.find(word) {
                let before = fresh[..at].to_owned();
                text.seen += at + word.len();
                return Ok(before);
            }
            for omen in ["Kernel panic", "GUEST-FAILED"] {
                ensure!(
                    !fresh.contains(omen),
                    "{omen}; the console:\n{}",
                    tail(&text.all)
                );
            }
            ensure!(
                !text.ended,
                "QEMU has ended; the console:\n{}",
                tail(&text.all)
            );
            let Some(left) = deadline.left() else {
                bail!(
                    "no `{word}` in {timeout:?}; the console:\n{}",
                    tail(&text.all)
                );
            };
            (text, _) = self
                .more
                .wait_timeout(text, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until QEMU's monitor listens, or QEMU has ended.
    fn wait_started(&self, monitor: &Path) -> Result<()> {
        const TURN: Duration = Duration::from_millis(20);
        let deadline = Deadline::after(BOOT);
        let mut text = self.lock();
        while !monitor.exists() {
            ensure!(!text.ended, "QEMU has ended; it said why on standard error");
            ensure!(deadline.left().is_some(), "QEMU opens no monitor");
            (text, _) = self
                .more
                .wait_timeout(text, TURN)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn tail(&self) -> String {
        tail(&self.lock().all).to_owned()
    }
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL_LEN);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str) -> Console {
        let console = Console::default();
        console.feed(text.as_bytes());
        console
    }

    #[test]
    fn a_wait_returns_what_came_before_and_the_next_begins_behind() {
        let console = console("one GUEST-EXIT 1 0\ntwo GUEST-EXIT 2 1\n");
        assert_eq!(console.wait("GUEST-EXIT 1 ", COMMAND).unwrap(), "one ");
        assert_eq!(console.wait("\n", COMMAND).unwrap(), "0");
        assert_eq!(console.wait("GUEST-EXIT 2 ", COMMAND).unwrap(), "two ");
    }

    #[test]
    fn a_panic_and_an_end_are_told_at_once() {
        let error = console("... Kernel panic - not syncing")
            .wait("GUEST-READY\n", BOOT)
            .unwrap_err();
        assert!(error.to_string().contains("Kernel panic"));
        let error = console("SeaBIOS").wait("GUEST-READY\n", BOOT).unwrap_err();
        assert!(error.to_string().contains("QEMU has ended"));
    }
}
