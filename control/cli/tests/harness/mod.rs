//! A real node in a temporary directory, asked by the real command: what the tests of the command share.
//!
//! Every wait has a deadline that names what is waited for. A node ends with its test, whatever way that ends: its daemon is
//! stopped, or killed by number, and what was mounted below its directory is unmounted.

#![allow(
    dead_code,
    reason = "each test program is built with the whole of it and uses a part"
)]

pub(crate) mod clients;
pub(crate) mod content;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::layout::Layout;
use nix::poll::{PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use serde_json::Value;

pub(crate) const PLACEMENTS: [&str; 2] = ["fused", "split"];
/// How long anything may take before a test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);
/// How long a command may take: `node stop` ends whatever hangs within 90 s.
pub(crate) const COMMAND_DEADLINE: Duration = Duration::from_secs(120);
const STEP_MS: u16 = 10;

/// Says why a test does not run here.
///
/// # Panics
/// With `$CI` set: there everything is to be had, and a test that does not run is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "not to be skipped: {why}");
    println!("skipped: {why}");
}

/// Whether programs are installed; says so if one is not.
pub(crate) fn has_programs(names: &[&str]) -> bool {
    let missing = names.iter().find(|name| {
        let mut command = Command::new(name);
        let version = command.arg("--version").stdout(Stdio::null());
        version.status().is_err()
    });
    if let Some(name) = missing {
        skip(&format!("{name} is not installed"));
    }
    missing.is_none()
}

/// Whether this process may mount file systems; says so if not.
pub(crate) fn may_mount() -> bool {
    let may = geteuid().is_root();
    if !may {
        skip("mounting needs root");
    }
    may
}

/// Waits until `condition` gives something.
pub(crate) fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    for _ in 0..DEADLINE.as_millis() / u128::from(STEP_MS) {
        if let Some(found) = condition() {
            return found;
        }
        // Waiting for nothing: a signal that ends it early does no harm.
        let _rested = poll(&mut [], PollTimeout::from(STEP_MS));
    }
    panic!("waited for {what}");
}

/// Waits until `condition` holds.
pub(crate) fn wait(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Runs `command` to its end, which must come within `deadline`.
pub(crate) fn run_within(command: &mut Command, deadline: Duration) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.stderr(Stdio::piped()).spawn().unwrap();
    ended(child, &format!("{command:?}"), deadline)
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    run_within(command, COMMAND_DEADLINE)
}

/// Waits for the end of `child`, which is `what`.
pub(crate) fn ended(child: Child, what: &str, deadline: Duration) -> Output {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more after the deadline.
        let _late = sender.send(child.wait_with_output());
    });
    ended.recv_timeout(deadline).map_or_else(
        |_late| {
            let _gone = kill(pid, Signal::SIGKILL);
            panic!("{what} has not ended after {deadline:?}")
        },
        Result::unwrap,
    )
}

/// Runs a tool of the system, which must succeed.
pub(crate) fn tool(command: &mut Command) {
    let output = run(command);
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A node and its root directory.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Node {
    /// A root directory without a node.
    pub(crate) fn new() -> Node {
        Node {
            dir: tempfile::tempdir().unwrap(),
            mounts: Vec::new(),
        }
    }

    /// A node that is not started.
    pub(crate) fn init(placement: &str) -> Node {
        let programs = std::env::current_exe().unwrap();
        let programs = programs.ancestors().nth(2).unwrap();
        assert!(
            programs.join("archipelagod").exists(),
            "there is no archipelagod beside the tests: cargo build -p archipelago-node, with the same profile"
        );
        let node = Node::new();
        node.done(&["init", "--placement", placement]);
        node
    }

    /// A node that serves.
    pub(crate) fn start(placement: &str) -> Node {
        let node = Node::init(placement);
        node.done(&["node", "start"]);
        node
    }

    pub(crate) fn root(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// Remembers that something is mounted at `at`, to be unmounted at the end.
    pub(crate) fn mounted(&mut self, at: &Path) {
        if !self.mounts.iter().any(|known| known == at) {
            self.mounts.push(at.to_owned());
        }
    }

    /// Mounts a tmpfs of `size` below the root.
    pub(crate) fn mount_tmpfs(&mut self, name: &str, size: &str) -> PathBuf {
        let at = self.path(name);
        std::fs::create_dir_all(&at).unwrap();
        let options = format!("size={size},mode=700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]);
        tool(mount.arg(&at));
        self.mounted(&at);
        at
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago"));
        command.args(arguments).env("ARCHIPELAGO_ROOT", self.root());
        command
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Layout::new(Some(self.root())).unwrap())
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        run(&mut self.command(arguments))
    }

    pub(crate) fn log(&self) -> String {
        let text = std::fs::read(self.path("run/archipelagod.log")).unwrap_or_default();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Stops and starts it.
    pub(crate) fn restart(&self) {
        self.done(&["node", "stop"]);
        self.done(&["node", "start"]);
    }

    /// `doctor` finds no damage.
    pub(crate) fn assert_clean(&self) {
        let report = self.json(&["doctor"]);
        assert_eq!(report["clean"], true, "{report}");
    }

    /// Expects success; gives the standard output.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {output:?}\n{}",
            self.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        serde_json::from_str(&self.done(&all)).unwrap()
    }

    pub(crate) fn status(&self) -> Value {
        self.json(&["node", "status"])
    }

    /// The counters of all peers, by the peer's name and the counter's; those of processes with the same peer are added.
    pub(crate) fn figures(&self) -> BTreeMap<String, u64> {
        let status = self.status();
        let mut sums = BTreeMap::new();
        let processes = status["processes"].as_array().unwrap().iter();
        let peers = processes.filter_map(|process| process["peers"].as_array());
        for peer in peers.flatten() {
            for counter in peer["counters"].as_array().unwrap() {
                let names = [&peer["name"], &counter[0]].map(|name| name.as_str().unwrap());
                *sums.entry(names.join(" ")).or_default() += counter[1].as_u64().unwrap();
            }
        }
        sums
    }

    /// The process that serves endpoints, as the status names it.
    pub(crate) fn endpoint(&self) -> Value {
        let status = self.status();
        let mut processes = status["processes"].as_array().unwrap().iter();
        let found = processes.find(|one| one["roles"].to_string().contains("endpoint"));
        found.unwrap_or_else(|| panic!("{status}")).clone()
    }

    /// Kills the process that serves endpoints.
    pub(crate) fn kill_endpoint(&self) {
        let pid = self.endpoint()["pid"].as_i64().unwrap();
        assert!(pid > 1);
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
    }

    /// Expects exit code `code`; what was said to people.
    pub(crate) fn refused(&self, arguments: &[&str], code: i32) -> String {
        let output = self.output(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Expects exit code `code`, a hint for people and an error object for scripts.
    pub(crate) fn refused_as(&self, arguments: &[&str], code: i32, name: &str) -> Value {
        let all: Vec<&str> = ["--json"].iter().chain(arguments).copied().collect();
        let output = self.output(&all);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        let value: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(value["error"]["code"], name, "{arguments:?}: {value}");
        assert!(!value["error"]["message"].as_str().unwrap().is_empty());
        value["error"].clone()
    }

    /// The daemon's process, while it holds the node's lock.
    pub(crate) fn daemon(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.path("run/lock")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let daemon = self.daemon();
        let mut stop = self.command(&["node", "stop"]);
        // Not through `run`: a panic in here would end the program.
        let stopped = stop.stdin(Stdio::null()).output();
        let stopped = stopped.is_ok_and(|output| output.status.success());
        if let (false, Some(pid)) = (stopped, daemon) {
            let name = std::fs::read(format!("/proc/{pid}/comm"));
            if name.is_ok_and(|name| name.starts_with(b"archipelagod")) {
                // Its children die with it.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        for at in self.mounts.iter().rev() {
            let _gone = Command::new("umount").arg("--lazy").arg(at).output();
        }
    }
}
