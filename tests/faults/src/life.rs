//! The life of a pool, the same each time: made, written, flushed, frozen, cloned, stopped, started, cut off, read.
//!
//! Its last part is a kill with a power cut, after which all that was flushed is looked for. A step that fails is tried
//! again; if that does not help, after the volumes were closed and opened; if that does not help either, after a restart
//! of the node. Then it must work: a fault is injected once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::disk::{Disk, Fault, QUIET, Site};
use crate::guest::{Guest, Status};
use crate::neighbour::Neighbour;
use crate::oracle::Oracle;
use crate::server::{Answer, DEADLINE, Server, wait_for, wait_until};
use crate::watch::{Checks, Watch};

/// Sectors of a volume: 512 KiB.
const SECTORS: usize = 1024;
/// How long a guest waits for a request while the node is stopped and started.
const STOP_TIMEOUT: Duration = Duration::from_secs(150);
/// What says that a call hangs, rather than that something failed.
const HUNG: [&str; 2] = ["does not answer", "does that file system answer"];
/// What says that the node is being stopped.
const STOPPED: [&str; 3] = ["no node daemon", "is stopping", "was lost before the reply"];
/// Attempts of a step before something is opened or started anew.
const TRIES: usize = 2;

/// What recovery took after the fault, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No client noticed anything.
    Unseen,
    /// A request or command failed; the same again worked.
    Again,
    /// It failed again, and worked after the volumes were closed and opened.
    Reopened,
    /// It failed after that too, and worked after a restart of the node.
    Restarted,
}

impl Outcome {
    /// One letter for a table.
    #[must_use]
    pub fn letter(self) -> char {
        match self {
            Outcome::Unseen => '.',
            Outcome::Again => 'e',
            Outcome::Reopened => 'o',
            Outcome::Restarted => 'r',
        }
    }
}

/// How a life went.
#[derive(Debug)]
pub struct Report {
    /// What it took after each fault.
    pub outcomes: BTreeMap<Site, Outcome>,
    /// What was called.
    pub seen: BTreeMap<Site, u64>,
    /// Errors that were reported to a client.
    pub reported: Vec<String>,
    /// Calls that did not return, and what was checked meanwhile.
    pub checked: usize,
}

/// Where the node's peers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// All in one thread.
    Fused,
    /// A process each.
    Split,
}

impl Placement {
    fn name(self) -> &'static str {
        match self {
            Placement::Fused => "fused",
            Placement::Split => "split",
        }
    }
}

/// A volume of this life.
#[derive(Debug)]
struct Volume {
    name: &'static str,
    oracle: Oracle,
    guest: Option<Guest>,
    attached: bool,
}

impl Volume {
    fn new(name: &'static str, oracle: Oracle) -> Volume {
        Volume {
            name,
            oracle,
            guest: None,
            attached: false,
        }
    }
}

/// Why a step has to be done again.
struct Refusal(String);

/// What a step comes to: an error is a failure of the test.
type Step = Result<Result<(), Refusal>>;

/// A pool and all that uses it.
struct Life<'a> {
    placement: Placement,
    server: &'a Server,
    disk: &'a Disk,
    watch: &'a Watch<'a>,
    volumes: Vec<Volume>,
    frozen: Option<Oracle>,
    /// What it took after each fault, by the order of their happening.
    outcomes: BTreeMap<Site, Outcome>,
    reported: Vec<String>,
}

fn refuse(text: impl fmt::Display) -> Step {
    Ok(Err(Refusal(text.to_string())))
}

/// What has happened already needs not to happen again.
fn plain(answer: Answer, fine: &[i32]) -> Step {
    match answer {
        Answer::Refused(code, text) if !fine.contains(&code) => refuse(format!("{code}: {text}")),
        _ => Ok(Ok(())),
    }
}

/// Nothing is called for so long when a step is over. A call that comes later still counts for the next step, which the
/// matrix stands: a fault whose call was not made is tried again. So this decides how often, not what is found.
const STILL: Duration = Duration::from_millis(12);
const NOT_FOUND: i32 = 3;
const EXISTS: i32 = 4;

impl<'a> Life<'a> {
    /// One step, until it works.
    fn step(
        &mut self,
        phase: &'static str,
        mut act: impl FnMut(&mut Life<'a>) -> Step,
    ) -> Result<()> {
        self.disk.enter(phase);
        for remedy in [Outcome::Again, Outcome::Reopened, Outcome::Restarted] {
            if remedy > Outcome::Again {
                self.took(remedy)?;
            }
            match remedy {
                Outcome::Reopened => self.reopen(phase)?,
                Outcome::Restarted => self.restart(phase)?,
                Outcome::Unseen | Outcome::Again => {}
            }
            for _ in 0..TRIES {
                let watch = self.watch;
                let acted = watch.during(|| act(self)).with_context(|| phase)?;
                let Err(Refusal(text)) = acted else {
                    return self.settle();
                };
                self.reported.push(format!("{phase}: {text}"));
                let hung = HUNG.iter().any(|words| text.contains(words));
                if watch.checks() == Checks::Stop {
                    let stopped = STOPPED.iter().any(|words| text.contains(words));
                    ensure!(hung || stopped, "UNCLEAR: {phase} got: {text}");
                }
                // A report of a call that hangs is not a report of a loss.
                if !hung {
                    for volume in &mut self.volumes {
                        volume.oracle.lose();
                    }
                }
                self.took(Outcome::Again)?;
            }
        }
        bail!(
            "DOES NOT GO ON: {phase} fails after a restart: {}",
            self.reported.join("; ")
        )
    }

    /// Waits until the background work of a step is over, so that its calls belong to the step.
    #[expect(clippy::disallowed_methods, reason = "waits for another process")]
    fn settle(&self) -> Result<()> {
        let mut before = self.disk.calls();
        wait_until("what a step began", || {
            std::thread::sleep(STILL);
            let calls = self.disk.calls();
            std::mem::replace(&mut before, calls) == calls
        })
    }

    /// Recovery needed something: the last fault is to blame.
    fn took(&mut self, level: Outcome) -> Result<()> {
        let Some(site) = self.disk.injected().pop() else {
            bail!("FAILS WITHOUT A FAULT: {}", self.reported.join("; "));
        };
        let outcome = self.outcomes.entry(site).or_insert(level);
        *outcome = level.max(*outcome);
        Ok(())
    }

    fn open(&mut self, index: usize) -> Step {
        let volume = &mut self.volumes[index];
        volume.guest = None;
        let socket = match self.server.call(&["volume", "attach", volume.name])? {
            Answer::Done(socket) => PathBuf::from(socket),
            Answer::Refused(code, text) => return refuse(format!("attach: {code}: {text}")),
        };
        volume.attached = true;
        let mut guest = Guest::connect(&socket)?;
        if self.watch.checks() == Checks::Stop {
            guest.timeout = STOP_TIMEOUT;
        }
        volume.guest = Some(guest);
        // The volume is opened behind the connection: the first answer shows the outcome.
        self.guest(index, Guest::touch)
    }

    fn close(&mut self, index: usize) -> Step {
        let volume = &mut self.volumes[index];
        volume.guest = None;
        let mut refused = None;
        // A front end that has just gone is noticed a moment later.
        let timeout = match self.watch.checks() {
            Checks::Beside => DEADLINE,
            Checks::Stop => STOP_TIMEOUT,
        };
        wait_for("detach", timeout, || {
            match self.server.call(&["volume", "detach", volume.name]) {
                Ok(Answer::Refused(5, _)) => false,
                Ok(Answer::Refused(code, text)) if code != NOT_FOUND => {
                    refused = Some(format!("detach: {code}: {text}"));
                    true
                }
                _ => true,
            }
        })?;
        match refused {
            Some(text) => refuse(text),
            None => {
                volume.attached = false;
                Ok(Ok(()))
            }
        }
    }

    /// Closes what is open and opens it again, as far as that goes.
    fn reopen(&mut self, phase: &'static str) -> Result<()> {
        for index in 0..self.volumes.len() {
            if self.volumes[index].attached {
                for step in [self.close(index)?, self.open(index)?] {
                    if let Err(Refusal(text)) = step {
                        self.reported.push(format!("{phase}, reopen: {text}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends the node, however, and starts it again with what was open.
    fn restart(&mut self, phase: &'static str) -> Result<()> {
        for volume in &mut self.volumes {
            volume.guest = None;
        }
        if let Answer::Refused(code, text) = self.server.stop()? {
            self.reported.push(format!("{phase}, stop: {code}: {text}"));
            self.server.kill();
        }
        if let Answer::Refused(code, text) = self.server.start()? {
            self.reported
                .push(format!("{phase}, start: {code}: {text}"));
            return Ok(());
        }
        for index in 0..self.volumes.len() {
            if self.volumes[index].attached
                && let Err(Refusal(text)) = self.open(index)?
            {
                self.reported.push(format!("{phase}, open: {text}"));
            }
        }
        Ok(())
    }

    /// Something that the guest of a volume does.
    fn guest(
        &mut self,
        index: usize,
        act: impl FnOnce(&mut Guest, &mut Oracle) -> Result<Status>,
    ) -> Step {
        let volume = &mut self.volumes[index];
        let Some(guest) = &mut volume.guest else {
            return refuse("not open");
        };
        match act(guest, &mut volume.oracle)? {
            Status::Ok => Ok(Ok(())),
            Status::Failed => refuse("an error status"),
        }
    }

    fn write(
        &mut self,
        phase: &'static str,
        index: usize,
        writes: &[(usize, usize, u64)],
    ) -> Result<()> {
        for (first, sectors, write) in writes.iter().copied() {
            self.step(phase, |life| {
                life.guest(index, |guest, oracle| {
                    guest.write(oracle, first, sectors, write)
                })
            })?;
        }
        Ok(())
    }

    /// Flushes; after a flush that failed all that may be lost is written again, as a careful guest does.
    fn flush(
        &mut self,
        phase: &'static str,
        index: usize,
        writes: &[(usize, usize, u64)],
    ) -> Result<()> {
        let mut failed = false;
        self.step(phase, |life| {
            if failed {
                for (first, sectors, write) in writes.iter().copied() {
                    let again = life.guest(index, |guest, oracle| {
                        guest.write(oracle, first, sectors, write)
                    })?;
                    if again.is_err() {
                        return Ok(again);
                    }
                }
            }
            failed = true;
            life.guest(index, Guest::flush)
        })
    }

    fn check(&mut self, phase: &'static str, index: usize) -> Result<()> {
        self.step(phase, |life| {
            life.guest(index, |guest, oracle| guest.check_all(oracle))
        })
    }

    fn run(&mut self) -> Result<()> {
        let pool = self.disk.path().join("pool");
        let pool = pool.to_str().context("a path in UTF-8")?.to_owned();
        self.step("init", |life| {
            let placement = life.placement.name();
            let init = ["init", "--placement", placement, "--pool-dir", &pool];
            plain(life.server.call(&init)?, &[])
        })?;
        self.step("start", |life| plain(life.server.start()?, &[]))?;
        *self.watch.neighbour() = Some(Neighbour::make(self.server, self.disk)?);
        self.watch.serves(true);
        self.step("create", |life| {
            let size = (SECTORS * 512).to_string();
            let create = ["volume", "create", "disk", "--size", &size];
            plain(life.server.call(&create)?, &[EXISTS])
        })?;
        self.volumes
            .push(Volume::new("disk", Oracle::new(1, SECTORS)));
        self.step("open", |life| life.open(0))?;
        let writes = [(0, 128, 1), (512, 8, 2), (601, 2, 3)];
        self.write("write", 0, &writes)?;
        self.flush("flush", 0, &writes)?;
        let writes = [(0, 128, 4), (601, 3, 5)];
        self.write("overwrite", 0, &writes)?;
        self.flush("flush owned", 0, &writes)?;
        let writes = [(32, 32, 0)];
        self.write("discard", 0, &writes)?;
        self.flush("flush discard", 0, &writes)?;
        self.check("read", 0)?;
        self.write("write", 0, &[(700, 4, 6)])?;
        self.step("snapshot", |life| {
            let snapshot = ["volume", "snapshot", "disk", "frozen"];
            plain(life.server.call(&snapshot)?, &[EXISTS])
        })?;
        self.volumes[0].oracle.flushed();
        self.frozen = Some(self.volumes[0].oracle.clone());
        let writes = [(0, 64, 7), (514, 2, 8)];
        self.write("write above", 0, &writes)?;
        self.flush("flush above", 0, &writes)?;
        self.clone("clone", 2, "clone")?;
        self.step("open clone", |life| life.open(1))?;
        let writes = [(64, 16, 9), (602, 1, 10)];
        self.write("write clone", 1, &writes)?;
        self.flush("flush clone", 1, &writes)?;
        self.check("read clone", 1)?;
        self.step("close", |life| match life.close(0)? {
            Ok(()) => life.close(1),
            refused => Ok(refused),
        })?;
        self.watch.serves(false);
        self.step("stop", |life| plain(life.server.stop()?, &[]))?;
        self.step("restart", |life| plain(life.server.start()?, &[]))?;
        self.serve()?;
        self.step("reopen", |life| match life.open(0)? {
            Ok(()) => life.open(1),
            refused => Ok(refused),
        })?;
        self.check("read all", 0)?;
        self.check("read all", 1)?;
        self.write("write last", 0, &[(900, 8, 11)])?;
        Ok(())
    }

    /// The node has started again: the neighbour is served again.
    fn serve(&mut self) -> Result<()> {
        self.disk.enter(QUIET);
        if let Some(neighbour) = self.watch.neighbour().as_mut() {
            neighbour.go_on()?;
        }
        self.watch.serves(true);
        Ok(())
    }

    fn clone(&mut self, phase: &'static str, number: u64, name: &'static str) -> Result<()> {
        self.step(phase, |life| {
            let clone = ["volume", "clone", "frozen", name];
            plain(life.server.call(&clone)?, &[EXISTS])
        })?;
        let frozen = self.frozen.as_ref().context("a snapshot was made")?;
        let oracle = frozen.clone_as(number);
        self.volumes.push(Volume::new(name, oracle));
        Ok(())
    }

    /// Cuts the power, starts without faults, and looks at everything: also the snapshot, which then is removed.
    fn check_all(&mut self) -> Result<()> {
        for volume in &mut self.volumes {
            volume.guest = None;
            volume.oracle.lose();
        }
        self.watch.serves(false);
        self.server.kill();
        wait_until("the death of all processes", || !self.disk.in_use())?;
        self.disk.cut_power()?;
        self.disk.enter("recover");
        self.step("recover", |life| plain(life.server.start()?, &[]))?;
        self.serve()?;
        self.step("open recovered", |life| match life.open(0)? {
            Ok(()) => life.open(1),
            refused => Ok(refused),
        })?;
        let lineages = self.disk.lineages();
        self.clone("clone frozen", 3, "proof")?;
        self.step("open proof", |life| life.open(2))?;
        for index in 0..3 {
            self.check("read recovered", index)?;
        }
        self.step("remove", |life| {
            let remove = ["volume", "remove", "frozen"];
            plain(life.server.call(&remove)?, &[NOT_FOUND])
        })?;
        for index in 0..3 {
            let writes = [(100, 16, 20), (803, 2, 21)];
            self.write("write recovered", index, &writes)?;
            self.flush("flush recovered", index, &writes)?;
            self.check("read last", index)?;
        }
        self.step("close last", |life| life.close(2))?;
        self.step("remove proof", |life| {
            let remove = ["volume", "remove", "proof"];
            let removed = plain(life.server.call(&remove)?, &[NOT_FOUND])?;
            if removed.is_ok() {
                // Its objects go behind the answer; what was not deleted because of a fault goes at the next start.
                wait_until("its deletion", || {
                    life.disk.lineages() <= lineages || !life.disk.injected().is_empty()
                })?;
            }
            Ok(removed)
        })?;
        self.volumes.pop();
        self.step("doctor", |life| plain(life.server.call(&["doctor"])?, &[]))?;
        self.step("close last", |life| match life.close(0)? {
            Ok(()) => life.close(1),
            refused => Ok(refused),
        })?;
        self.watch.serves(false);
        self.step("stop last", |life| plain(life.server.stop()?, &[]))?;
        // The kernel reports the end of a file's use a moment later.
        wait_until("the end of all use", || !self.disk.in_use())
    }
}

/// Lives once, with these faults, at most one in a phase.
///
/// # Errors
/// If a promise was broken, with what led there.
pub fn live(placement: Placement, checks: Checks, faults: &[(Site, Fault)]) -> Result<Report> {
    // The server goes first: it uses the disk.
    let disk = Disk::mount()?;
    let server = Server::new()?;
    let watch = Watch::new(&disk, &server, checks);
    std::thread::scope(|scope| {
        scope.spawn(|| watch.run());
        let report = live_watched(placement, &watch, &disk, &server, faults);
        watch.end();
        disk.release();
        report
    })
}

fn live_watched<'a>(
    placement: Placement,
    watch: &'a Watch<'a>,
    disk: &'a Disk,
    server: &'a Server,
    faults: &[(Site, Fault)],
) -> Result<Report> {
    let mut life = Life {
        placement,
        server,
        disk,
        watch,
        volumes: Vec::new(),
        frozen: None,
        outcomes: BTreeMap::new(),
        reported: Vec::new(),
    };
    life.disk.plan(faults);
    let lived = life.run().and_then(|()| life.check_all());
    if let Err(error) = lived {
        let reported = life.reported.join("\n  ");
        let injected: Vec<String> = life.disk.injected().iter().map(Site::to_string).collect();
        let (injected, log) = (injected.join(", "), life.server.log());
        return Err(anyhow!(
            "{error:#}\ninjected: {injected}\nreported:\n  {reported}\nlog:\n{log}\n"
        ));
    }
    for site in life.disk.injected() {
        life.outcomes.entry(site).or_insert(Outcome::Unseen);
    }
    Ok(Report {
        outcomes: life.outcomes.clone(),
        seen: life.disk.seen(),
        reported: std::mem::take(&mut life.reported),
        checked: watch.checked(),
    })
}
