//! While a call does not return: what waits for the call, and how the node is stopped and started again.
//!
//! A thread of the test waits for held calls, checks what must be served beside them, and releases them. The life
//! of the pool waits meanwhile, as its guests and commands do.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::kill;

use crate::disk::Disk;
use crate::neighbour::{NEIGHBOUR_DEADLINE, Neighbour, answers};
use crate::server::{Answer, DEADLINE, START_DEADLINE, STOP_DEADLINE, Server, wait_for};

/// What is checked while a call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checks {
    /// Service beside the held call; then the call is released.
    Beside,
    /// Also that commands which wait report the call, and that the node can be stopped, and started again when the call returns.
    Stop,
}

/// After this time every command that waits has reported the call: the product calls 10 s hanging, and checks each second.
const HANGS: Duration = Duration::from_secs(15);
/// How long a call is held at least, when there is nobody to look at.
const HELD_MIN: Duration = Duration::from_millis(100);
/// How long a start has to find the pool locked.
const START_AHEAD: Duration = Duration::from_millis(300);
/// Longest time to check what is held: as long as it takes to find the worst, a stop and two starts that hang; once more
/// for a call that is held meanwhile.
const CHECK_DEADLINE: Duration = Duration::from_secs(
    2 * (HANGS.as_secs() + STOP_DEADLINE.as_secs() + 2 * START_DEADLINE.as_secs()),
);
/// Between two looks for a held call: short beside [`HELD_MIN`].
const LOOK: Duration = Duration::from_millis(5);

/// The thread's and the life's common view.
#[derive(Debug)]
pub struct Watch<'a> {
    disk: &'a Disk,
    server: &'a Server,
    checks: Checks,
    neighbour: Mutex<Option<Neighbour>>,
    /// The node serves: in the phases between its start and its stop.
    serving: AtomicBool,
    /// A command or request is under way.
    acting: AtomicBool,
    /// A held call is being checked: the node may be stopped and started.
    checking: AtomicBool,
    ended: AtomicBool,
    checked: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn rest(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::disallowed_methods, reason = "waits for another process")]
fn now() -> Instant {
    Instant::now()
}

impl<'a> Watch<'a> {
    /// Nobody is watched yet.
    #[must_use]
    pub fn new(disk: &'a Disk, server: &'a Server, checks: Checks) -> Watch<'a> {
        Watch {
            disk,
            server,
            checks,
            neighbour: Mutex::new(None),
            serving: AtomicBool::new(false),
            acting: AtomicBool::new(false),
            checking: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            checked: AtomicUsize::new(0),
            failures: Mutex::new(Vec::new()),
        }
    }

    /// What is checked.
    #[must_use]
    pub fn checks(&self) -> Checks {
        self.checks
    }

    /// The neighbour, if there is one by now.
    pub fn neighbour(&self) -> MutexGuard<'_, Option<Neighbour>> {
        self.neighbour
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the node serves from now on.
    pub fn serves(&self, serving: bool) {
        self.serving.store(serving, Ordering::SeqCst);
    }

    /// Calls that were held and checked.
    #[must_use]
    pub fn checked(&self) -> usize {
        self.checked.load(Ordering::SeqCst)
    }

    /// Ends the thread.
    pub fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// Does one act of a life. Calls that were held meanwhile have been checked and released when this returns.
    ///
    /// # Errors
    /// What `act` says, and what was found meanwhile.
    pub fn during<T>(&self, act: impl FnOnce() -> Result<T>) -> Result<T> {
        self.acting.store(true, Ordering::SeqCst);
        let result = act();
        self.acting.store(false, Ordering::SeqCst);
        // In this order: only the thread that checks a held call releases it, and the call has returned when that thread is done.
        wait_for("checking the calls that are held", CHECK_DEADLINE, || {
            self.disk.held() == 0 && !self.checking.load(Ordering::SeqCst)
        })
        .with_context(|| self.held())?;
        let failures = self
            .failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .join("; ");
        ensure!(failures.is_empty(), "{failures}");
        result
    }

    /// The thread: checks held calls until [`Watch::end`].
    pub fn run(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            if self.disk.held() == 0 {
                rest(LOOK);
                continue;
            }
            self.checking.store(true, Ordering::SeqCst);
            let site = self.disk.injected().pop();
            if let Err(error) = self.look() {
                let site = site.map_or_else(String::new, |site| site.to_string());
                let text = format!("while {site} did not return: {error:#}");
                self.fail(text);
            }
            self.checked.fetch_add(1, Ordering::SeqCst);
            self.disk.release();
            // Only those: a call that has arrived meanwhile is held, and checked next.
            let left = wait_for("the answers of calls that were released", DEADLINE, || {
                self.disk.leaving() == 0
            });
            if let Err(error) = left.with_context(|| self.held()) {
                self.fail(format!("{error:#}"));
            }
            self.checking.store(false, Ordering::SeqCst);
        }
    }

    fn fail(&self, text: String) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(text);
    }

    /// What keeps a life waiting.
    fn held(&self) -> String {
        let injected = self.disk.injected().pop();
        format!(
            "{} calls held, {} released and not answered, the last at {}",
            self.disk.held(),
            self.disk.leaving(),
            injected.map_or_else(|| "no site".to_owned(), |site| site.to_string())
        )
    }

    fn look(&self) -> Result<()> {
        let since = now();
        rest(HELD_MIN);
        if !self.serving.load(Ordering::SeqCst) {
            // A start or a stop: it ends by itself.
            if self.checks == Checks::Stop {
                wait_for("a start or stop", START_DEADLINE, || {
                    !self.acting.load(Ordering::SeqCst)
                })?;
            }
            return Ok(());
        }
        self.look_beside()?;
        if self.checks == Checks::Stop {
            rest((since + HANGS).saturating_duration_since(now()));
            self.look_beside()?;
            self.stop_and_start()?;
        }
        Ok(())
    }

    fn look_beside(&self) -> Result<()> {
        let mut neighbour = self.neighbour();
        if let Some(it) = neighbour.as_mut()
            && let Err(error) = it.work()
        {
            // Its request is still in flight: it is of no more use.
            *neighbour = None;
            return Err(error.context("STALLED: the neighbour"));
        }
        answers(self.server).context("STALLED: the node's API")
    }

    /// Stops the node, which has to leave something behind, and starts it again while it is still there.
    fn stop_and_start(&self) -> Result<()> {
        let before = self.server.processes(NEIGHBOUR_DEADLINE)?;
        let said = match self.server.stop()? {
            Answer::Done(said) => said,
            Answer::Refused(code, text) => bail!("node stop: {code}: {text}"),
        };
        let left = before.iter().any(|pid| kill(*pid, None).is_ok());
        ensure!(
            !left || said.contains("returns"),
            "SILENT: `node stop` left a process behind and said: {said:?}"
        );
        self.serves(false);
        std::thread::scope(|scope| {
            let starting = scope.spawn(|| self.server.start());
            rest(START_AHEAD);
            self.disk.release();
            match starting.join() {
                Ok(Ok(Answer::Done(_))) => Ok(()),
                Ok(Ok(Answer::Refused(code, text))) => bail!("node start: {code}: {text}"),
                Ok(Err(error)) => Err(error),
                Err(_panic) => bail!("node start: the test panicked"),
            }
        })?;
        self.serves(true);
        Ok(())
    }
}
