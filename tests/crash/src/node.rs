//! A real node in a private directory: started, asked, killed, and stopped by pid whatever happens.
//!
//! How to know a dead process: a process that was killed is dead when the lock or socket that it held is free, which is
//! some time after the signal; whoever starts a successor tries until it can.

use std::cell::RefCell;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::program::output;
use archipelago_bench::server::own_program;
use archipelago_bench::waiting::{now, wait_until};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

/// Longest wait for something that the node, or a process of it, is to do soon.
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// Says to `archipelagod-delaying` how long a request is delayed at most, in milliseconds.
pub const DELAY_VARIABLE: &str = "CRASH_DELAY_MS";
/// Has the data processes of `archipelagod-delaying` outlive their daemon.
pub const ORPHANS_VARIABLE: &str = "CRASH_ORPHANS";
/// Says to `archipelagod-recording` which file to append to.
pub const RECORDING_VARIABLE: &str = "CRASH_RECORDING";

/// A node and everything that belongs to it.
#[derive(Debug)]
pub struct Node {
    dir: TempDir,
    command: PathBuf,
    user: Option<u32>,
    variables: Vec<(&'static str, String)>,
}

/// What a node is to be.
#[derive(Debug)]
pub struct Builder<'a> {
    placement: &'a str,
    pool: Option<&'a Path>,
    daemon: Option<&'a Path>,
    threads: usize,
    endpoint: Option<&'a str>,
    user: Option<u32>,
    variables: Vec<(&'static str, String)>,
}

impl<'a> Builder<'a> {
    /// With its pool in `pool` rather than in the root directory.
    #[must_use]
    pub fn pool(mut self, pool: &'a Path) -> Self {
        self.pool = Some(pool);
        self
    }

    /// With `threads` data threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Served by `program`, an `archipelagod-delaying`, with delays of up to `longest_ms`.
    #[must_use]
    pub fn delaying(mut self, program: &'a str, longest_ms: u64) -> Self {
        self.daemon = Some(Path::new(program));
        self.variables
            .push((DELAY_VARIABLE, longest_ms.to_string()));
        self
    }

    /// Served by `program`, an `archipelagod-recording`, which appends to `file`.
    #[must_use]
    pub fn recording(mut self, program: &'a str, file: &Path) -> Self {
        self.daemon = Some(Path::new(program));
        self.variables
            .push((RECORDING_VARIABLE, file.display().to_string()));
        self
    }

    /// Served by `program`, an `archipelagod-counting` or another one that needs no settings.
    #[must_use]
    pub fn program(mut self, program: &'a str) -> Self {
        self.daemon = Some(Path::new(program));
        self
    }

    /// With data processes that outlive their daemon: only a delaying node has them.
    #[must_use]
    pub fn orphans(mut self) -> Self {
        self.variables.push((ORPHANS_VARIABLE, "1".to_owned()));
        self
    }

    /// With an endpoint that has a user of its own: `section` is what stands in `[endpoint]` of the configuration. Needs root.
    #[must_use]
    pub fn endpoint(mut self, section: &'a str) -> Self {
        self.endpoint = Some(section);
        self
    }

    /// Run by the plain user `user`, whose limits bind it, in a directory that every user can reach. Needs root.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Initialises the node in a fresh directory below the target folder, and starts it.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(self) -> Result<Node> {
        let command = own_program("archipelago")?;
        let programs = command.parent().context("a program is in a directory")?;
        let base = match self.user {
            // On a disk, which `/tmp` need not be.
            Some(_) => Path::new("/var/tmp"),
            None => programs,
        };
        let dir = tempfile::Builder::new().prefix("crash-").tempdir_in(base)?;
        let mut node = Node {
            dir,
            command: command.clone(),
            user: self.user,
            variables: self.variables,
        };
        if let Some(user) = self.user {
            let own = programs.join("archipelagod");
            node.command = node.install(self.daemon.unwrap_or(&own))?;
            std::os::unix::fs::chown(node.root(), Some(user), Some(user))?;
        } else if let Some(daemon) = self.daemon {
            node.command = node.install(daemon)?;
        }
        let mut init = vec!["init", "--placement", self.placement];
        if let Some(pool) = self.pool {
            init.extend(["--pool-dir", pool.to_str().context("a path in UTF-8")?]);
        }
        node.call(&init)?;
        if let Some(section) = self.endpoint {
            node.configure_endpoint(section)?;
        }
        if self.threads != 1 {
            node.configure_threads(self.threads)?;
        }
        node.call(&["node", "start"])?;
        Ok(node)
    }
}

impl Node {
    /// A node with `placement`.
    #[must_use]
    pub fn builder(placement: &str) -> Builder<'_> {
        Builder {
            placement,
            pool: None,
            daemon: None,
            threads: 1,
            endpoint: None,
            user: None,
            variables: Vec::new(),
        }
    }

    /// Starts a plain node with `placement`.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start(placement: &str) -> Result<Self> {
        Node::builder(placement).start()
    }

    /// Puts the command and `daemon` beside each other, since the command starts the daemon that is beside it.
    fn install(&self, daemon: &Path) -> Result<PathBuf> {
        let programs = self.root().join("programs");
        std::fs::create_dir(&programs)?;
        let command = programs.join("archipelago");
        for (from, to) in [
            (self.command.as_path(), &command),
            (daemon, &programs.join("archipelagod")),
        ] {
            // On another file system a copy.
            if std::fs::hard_link(from, to).is_err() {
                std::fs::copy(from, to)?;
            }
        }
        Ok(command)
    }

    /// Sets how many data threads there are from the next start on.
    ///
    /// # Errors
    /// If the configuration does not name them.
    pub fn configure_threads(&self, threads: usize) -> Result<()> {
        let path = self.root().join("archipelago.toml");
        let text = std::fs::read_to_string(&path)?;
        let is_it = |line: &&str| line.starts_with("threads = ");
        let line = text.lines().find(is_it).context("no `threads`")?;
        let text = text.replace(line, &format!("threads = {threads}"));
        Ok(std::fs::write(&path, text)?)
    }

    /// Writes the section `[endpoint]`, and lets its user through to the sockets.
    fn configure_endpoint(&self, section: &str) -> Result<()> {
        let path = self.root().join("archipelago.toml");
        let text = std::fs::read_to_string(&path)?;
        let (before, pool) = text.split_once("[pool.").context("a fresh configuration")?;
        std::fs::write(
            &path,
            format!("{before}[endpoint]\n{section}\n[pool.{pool}"),
        )?;
        std::fs::set_permissions(self.root(), Permissions::from_mode(0o711))?;
        Ok(())
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
    /// If it cannot be run, or does not end within [`program::DEADLINE`](archipelago_bench::program::DEADLINE).
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.command);
        command.arg("--root").arg(self.root()).args(arguments);
        command.envs(self.variables.iter().cloned());
        if let Some(user) = self.user {
            command.uid(user).gid(user).current_dir("/");
        }
        output(&mut command)
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

    /// Detaches a volume. A front end that has just gone is waited for by the node.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn detach(&self, name: &str) -> Result<()> {
        self.call(&["volume", "detach", name]).map(drop)
    }

    /// Waits until `condition` holds of the output of `node status`; `what` names it.
    ///
    /// # Errors
    /// If it does not within [`TIMEOUT`], with the status then.
    pub fn wait_for_status(
        &self,
        what: &str,
        mut condition: impl FnMut(&Value) -> bool,
    ) -> Result<()> {
        let last = RefCell::new(Value::Null);
        let missing = || format!("the status does not say: {what}: {}", last.borrow());
        wait_until(TIMEOUT, missing, || {
            let status = last.replace(self.status()?);
            drop(status);
            Ok(condition(&last.borrow()).then_some(()))
        })
    }

    /// The JSON of `node status`.
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
            .context("`node status` shows no processes")?;
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

    /// Starts the node again after its daemon was killed, as soon as the dying daemon has released it.
    ///
    /// # Errors
    /// If it does not start within [`TIMEOUT`].
    pub fn restart(&self) -> Result<()> {
        let missing = || "the killed daemon has not released its node".to_owned();
        wait_until(TIMEOUT, missing, || match self.call(&["node", "start"]) {
            Err(error) if error.to_string().contains("serves this node") => Ok(None),
            started => started.map(|_| Some(())),
        })
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// If the process cannot be killed.
    pub fn kill(pid: Pid) -> Result<()> {
        Node::signal(pid, Signal::SIGKILL)
    }

    /// Stops a process where it is, and waits until it stands still.
    ///
    /// # Errors
    /// If it does not within [`TIMEOUT`].
    pub fn freeze(pid: Pid) -> Result<()> {
        Node::signal(pid, Signal::SIGSTOP)?;
        let deadline = now() + TIMEOUT;
        while Node::moves(pid) {
            ensure!(now() < deadline, "process {pid} does not stop");
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Continues a stopped process.
    ///
    /// # Errors
    /// If it cannot be signalled; one that is dead by now is fine.
    pub fn thaw(pid: Pid) -> Result<()> {
        Node::signal(pid, Signal::SIGCONT)
    }

    /// Whether any thread of the process may still run.
    fn moves(pid: Pid) -> bool {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task"));
        tasks.into_iter().flatten().flatten().any(|task| {
            state_of(&task.path()).is_some_and(|state| !matches!(state, 'T' | 'Z' | 'X'))
        })
    }

    /// Whether the process is dead: gone, or waiting for its parent to take note. Its first thread alone may end before the others,
    /// and only the last one makes an orphan of its process group.
    #[must_use]
    pub fn is_dead(pid: Pid) -> bool {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
            return true;
        };
        tasks
            .flatten()
            .all(|task| state_of(&task.path()).is_none_or(|state| matches!(state, 'Z' | 'X')))
    }

    /// `kill`; a process that has gone already is no error.
    ///
    /// # Errors
    /// If the process cannot be signalled.
    pub fn signal(pid: Pid, signal: Signal) -> Result<()> {
        match kill(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The state letter in a `stat` of proc(5), behind the command, which stands in parentheses.
fn state_of(process: &Path) -> Option<char> {
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

fn pid_of(value: &Value) -> Result<Pid> {
    let pid = value.as_i64().context("`node status` shows no pid")?;
    Ok(Pid::from_raw(i32::try_from(pid)?))
}

impl Node {
    /// Takes away what this host has of the node's volumes: a test that failed has it in use, a killed daemon has ended nothing.
    fn end_what_is_left(&self) -> Vec<String> {
        let root = std::fs::canonicalize(self.root()).unwrap_or_else(|_| self.root().to_owned());
        let is_here = |path: &str| Path::new(path).starts_with(&root);
        let mut left = Vec::new();
        let devices = std::fs::read_dir("/sys/block").into_iter().flatten();
        for device in devices.flatten() {
            let backing = device.path().join("loop/backing_file");
            if std::fs::read_to_string(backing).is_ok_and(|backing| is_here(&backing)) {
                let node = Path::new("/dev").join(device.file_name());
                std::process::Command::new("losetup")
                    .arg("--detach")
                    .arg(&node)
                    .status()
                    .ok();
                left.push(node.display().to_string());
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let places = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        for place in places.filter(|place| is_here(place)).rev() {
            umount2(place, MntFlags::MNT_DETACH).ok();
            left.push(place.to_owned());
        }
        left
    }
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
        for what in self.end_what_is_left() {
            eprintln!("left by the node, and taken away: {what}");
        }
    }
}
