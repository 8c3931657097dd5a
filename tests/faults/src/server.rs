//! A node whose commands have deadlines, ended by pid whatever happens.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use archipelago_bench::server::own_program;
use archipelago_bench::waiting;
use archipelago_crash_tests::node::Node;
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::host::Host;
use crate::place;

/// Longest time for a command, whatever fails below it. A command that waits for a call that hangs reports the call after 10 s.
pub const DEADLINE: Duration = Duration::from_secs(20);
/// Longest time for `node start`: opening a pool that hangs is given up after 60 s.
pub const START_DEADLINE: Duration = Duration::from_secs(80);
/// Longest time for `node stop` while something hangs: noticed after 10 s, then three processes are ended within 10 s each.
pub const STOP_DEADLINE: Duration = Duration::from_secs(45);
/// How a command ended.
#[derive(Debug, Clone)]
pub enum Answer {
    /// What it printed.
    Done(String),
    /// Its exit code, and what it said.
    Refused(i32, String),
}

/// A node: its root directory and its daemon.
#[derive(Debug)]
pub struct Server {
    dir: TempDir,
    command: PathBuf,
    host: Option<Host>,
    daemon: Mutex<Option<Pid>>,
}

/// Waits until `done`, at most [`DEADLINE`].
///
/// # Errors
/// If it is not done in that time.
pub fn wait_until(what: &str, done: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, DEADLINE, done)
}

/// Waits until `done`, at most for `timeout`.
///
/// # Errors
/// If it is not done in that time.
pub fn wait_for(what: &str, timeout: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let missing = || format!("HANG: {what} is not done");
    waiting::wait_until(timeout, missing, || Ok(done().then_some(())))
}

fn drained(pipe: Option<impl Read>) -> String {
    let mut text = Vec::new();
    // What cannot be read was not said.
    let _read = pipe.map(|mut pipe| pipe.read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

impl Server {
    /// An empty directory for a node.
    ///
    /// # Errors
    /// If there is no program, or no directory.
    pub fn new() -> Result<Server> {
        let dir = tempfile::Builder::new()
            .prefix("faults-node-")
            .tempdir_in(place::directory())?;
        Ok(Server {
            dir,
            command: own_program("archipelago")?,
            host: None,
            daemon: Mutex::new(None),
        })
    }

    /// An empty directory for a node of another host.
    ///
    /// # Errors
    /// As [`Server::new`].
    pub fn on(host: Host) -> Result<Server> {
        let mut server = Server::new()?;
        server.host = Some(host);
        Ok(server)
    }

    /// The host that the node runs on, if that is another one.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// The node's root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Process id of the daemon that was started.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        *self.daemon()
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it does not end within [`DEADLINE`]: it is killed then.
    pub fn call(&self, arguments: &[&str]) -> Result<Answer> {
        self.call_within(arguments, DEADLINE)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// If it does not end within `timeout`: it is killed then.
    pub fn call_within(&self, arguments: &[&str], timeout: Duration) -> Result<Answer> {
        let command = match &self.host {
            None => Command::new(&self.command),
            Some(host) => host.command(&self.command),
        };
        self.spawn(command, arguments, timeout)
    }

    fn spawn(&self, mut command: Command, arguments: &[&str], timeout: Duration) -> Result<Answer> {
        let mut child = command
            .arg("--root")
            .arg(self.dir.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let ended = wait_for(&format!("archipelago {arguments:?}"), timeout, || {
            has_ended(&mut child)
        });
        if ended.is_err() {
            let _gone = child.kill();
        }
        let status = child.wait()?;
        ended?;
        let (said, error) = (drained(child.stdout.take()), drained(child.stderr.take()));
        Ok(match status.code() {
            // What a command that succeeds has to say besides belongs to it.
            Some(0) => Answer::Done(format!("{}{}", said.trim(), error.trim())),
            code => Answer::Refused(code.unwrap_or(-1), error.trim().to_owned()),
        })
    }

    /// `node start`.
    ///
    /// # Errors
    /// As [`Server::call`].
    pub fn start(&self) -> Result<Answer> {
        self.start_with(&[])
    }

    /// `node start` with these options.
    ///
    /// # Errors
    /// As [`Server::call`].
    pub fn start_with(&self, options: &[&str]) -> Result<Answer> {
        let arguments = [&["--json", "node", "start"], options].concat();
        let answer = self.call_within(&arguments, START_DEADLINE)?;
        if let Answer::Done(said) = &answer {
            let said: serde_json::Value = serde_json::from_str(said)?;
            let pid = said["pid"]
                .as_i64()
                .context("`node start` reports no pid")?;
            *self.daemon() = Some(Pid::from_raw(i32::try_from(pid)?));
        }
        Ok(answer)
    }

    /// `node stop`.
    ///
    /// # Errors
    /// As [`Server::call`].
    pub fn stop(&self) -> Result<Answer> {
        let answer = self.call_within(&["node", "stop"], STOP_DEADLINE)?;
        if let Answer::Done(_) = answer {
            *self.daemon() = None;
        }
        Ok(answer)
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Pid>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Process ids of its data processes.
    ///
    /// # Errors
    /// If `node status` does not say them in time.
    pub fn processes(&self, timeout: Duration) -> Result<Vec<Pid>> {
        let status = match self.call_within(&["--json", "node", "status"], timeout)? {
            Answer::Done(status) => serde_json::from_str::<serde_json::Value>(&status)?,
            Answer::Refused(code, text) => bail!("node status: {code}: {text}"),
        };
        let processes = status["processes"].as_array().context("no processes")?;
        let pids = processes.iter().filter_map(|one| one["pid"].as_i64());
        pids.map(|pid| Ok(Pid::from_raw(i32::try_from(pid)?)))
            .collect()
    }

    /// `kill -9` of the daemon, with which its processes die.
    pub fn kill(&self) {
        if let Some(pid) = self.daemon().take() {
            // Already dead is dead.
            let _dead = Node::kill(pid);
        }
    }

    /// The last lines of the daemon's log.
    #[must_use]
    pub fn log(&self) -> String {
        let text = find_log(self.dir.path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..].join("\n")
    }
}

fn find_log(root: &Path) -> Option<String> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "log") {
                return std::fs::read_to_string(path).ok();
            }
        }
    }
    None
}

fn has_ended(child: &mut Child) -> bool {
    matches!(child.try_wait(), Ok(Some(_)) | Err(_))
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
