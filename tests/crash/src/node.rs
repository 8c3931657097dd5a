//! A real node in a private directory: started, asked, killed, and stopped by pid whatever happens.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use archipelago_bench::server::own_program;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait until the node has noticed that a front end has gone.
pub const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// A node and everything that belongs to it.
#[derive(Debug)]
pub struct Node {
    dir: TempDir,
    command: PathBuf,
}

impl Node {
    /// Initialises a node with `placement` in a fresh directory below the target folder, and starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(placement: &str) -> Result<Self> {
        Node::start_on(placement, None)
    }

    /// The same with the pool in `pool` rather than in the root directory.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_on(placement: &str, pool: Option<&Path>) -> Result<Self> {
        let command = own_program("archipelago")?;
        let base = command.parent().context("a program is in a directory")?;
        let dir = tempfile::Builder::new().prefix("crash-").tempdir_in(base)?;
        let node = Node { dir, command };
        let mut init = vec!["init", "--placement", placement];
        if let Some(pool) = pool {
            init.extend(["--pool-dir", pool.to_str().context("a path in UTF-8")?]);
        }
        node.call(&init)?;
        node.call(&["node", "start"])?;
        Ok(node)
    }

    /// Its root directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    /// Runs the command and returns what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "archipelago {arguments:?}: {}: {}",
            output.status,
            error.trim()
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Runs the command to its end, however it ends.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.command);
        command.arg("--root").arg(self.root()).args(arguments);
        Ok(command.stdin(Stdio::null()).output()?)
    }

    /// Creates a volume of `size` bytes and attaches it: the path of its socket.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn create(&self, name: &str, size: usize) -> Result<PathBuf> {
        self.call(&["volume", "create", name, "--size", &size.to_string()])?;
        self.attach(name)
    }

    /// Attaches a volume: the path of its socket.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn attach(&self, name: &str) -> Result<PathBuf> {
        Ok(self.call(&["volume", "attach", name])?.trim().into())
    }

    /// Detaches a volume. A front end that has just gone may be noticed a moment later.
    ///
    /// # Errors
    /// If the node still refuses after [`DETACH_PATIENCE`].
    #[expect(clippy::disallowed_methods, reason = "waits for another process")]
    pub fn detach(&self, name: &str) -> Result<()> {
        let deadline = Instant::now() + DETACH_PATIENCE;
        loop {
            let result = self.call(&["volume", "detach", name]).map(drop);
            if result.is_ok() || Instant::now() > deadline {
                return result;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `node status` tells scripts.
    ///
    /// # Errors
    /// If the node does not run.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.call(&["--json", "node", "status"])?,
        )?)
    }

    /// The daemon's process.
    ///
    /// # Errors
    /// If the node does not run.
    pub fn daemon(&self) -> Result<Pid> {
        pid_of(&self.status()?["pid"])
    }

    /// The process that hosts the peer `name`: `endpoint`, `mapper` or `blocker`.
    ///
    /// # Errors
    /// If there is none.
    pub fn process_of(&self, role: &str) -> Result<Pid> {
        let status = self.status()?;
        let processes = status["processes"]
            .as_array()
            .context("`node status` tells no processes")?;
        let hosts = |process: &&Value| {
            process["roles"]
                .as_array()
                .is_some_and(|roles| roles.iter().any(|known| known.as_str() == Some(role)))
        };
        pid_of(
            &processes
                .iter()
                .find(hosts)
                .with_context(|| format!("nobody hosts a {role}"))?["pid"],
        )
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// If the process cannot be killed.
    pub fn kill(pid: Pid) -> Result<()> {
        match kill(pid, Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn pid_of(value: &Value) -> Result<Pid> {
    let pid = value.as_i64().context("`node status` tells no pid")?;
    Ok(Pid::from_raw(i32::try_from(pid)?))
}

impl Drop for Node {
    fn drop(&mut self) {
        let daemon = self.daemon();
        if self.call(&["node", "stop"]).is_err() {
            // A node that does not stop by itself is killed; its peers die with it.
            if let Ok(pid) = daemon {
                Node::kill(pid).ok();
            }
        }
    }
}
