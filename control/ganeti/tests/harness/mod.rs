//! A real node in a temporary directory, and the scripts as Ganeti runs them: by links in a directory of their own, with the variables of
//! the interface and nothing said of the node but in the settings beside them.

#![allow(
    dead_code,
    reason = "each test program is built with the whole of it and uses a part"
)]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::layout::Layout;
use archipelago_api::types::{NodeStatus, VolumeView};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// How long anything may take before a test gives up: a stop of a node ends what hangs within 90 s.
const DEADLINE: Duration = Duration::from_secs(120);
/// A name as Ganeti makes them.
pub(crate) const VOLUME: &str = "8ac6d6ff-3b4c-4c5e-9d6b-6a2a0f7d5d11.ext.disk0";

/// Says why a test does not run here.
///
/// # Panics
/// With `$CI` set: there everything is to be had, and a test that does not run is a failure.
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "not to be skipped: {why}");
    println!("skipped: {why}");
}

/// Whether a volume can be a block device here; says so if not.
pub(crate) fn has_block_devices() -> bool {
    let has = geteuid().is_root()
        && ["/dev/fuse", "/dev/loop-control"]
            .iter()
            .all(|one| Path::new(one).exists());
    if !has {
        skip("a block device needs root, /dev/fuse and /dev/loop-control");
    }
    has
}

/// Waits for the end of `child`, which is `what`.
pub(crate) fn ended(child: Child, what: &str) -> Output {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || {
        // Nobody listens any more after the deadline.
        let _late = sender.send(child.wait_with_output());
    });
    ended.recv_timeout(DEADLINE).map_or_else(
        |_late| {
            let _gone = kill(pid, Signal::SIGKILL);
            panic!("{what} has not ended after {DEADLINE:?}")
        },
        Result::unwrap,
    )
}

/// Starts `command` with what it prints kept.
pub(crate) fn start(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
    command.stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs `command` to its end.
pub(crate) fn run(command: &mut Command) -> Output {
    let child = start(command);
    ended(child, &format!("{command:?}"))
}

/// The text of `bytes`.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program of this crate.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_archipelago-ganeti"));
    command.env_remove("ARCHIPELAGO_ROOT");
    command
}

/// Where the other programs are.
fn programs() -> PathBuf {
    let beside = || {
        let this = std::env::current_exe().unwrap();
        this.ancestors().nth(2).unwrap().to_owned()
    };
    let programs = std::env::var_os("ARCHIPELAGO_BIN_DIR").map_or_else(beside, PathBuf::from);
    assert!(
        programs.join("archipelagod").exists() && programs.join("archipelago").exists(),
        "no programs in {}: cargo build -p archipelago-node -p archipelago-cli -p archipelago-fuse, or $ARCHIPELAGO_BIN_DIR",
        programs.display()
    );
    programs
}

/// A node, and a provider that is installed for it.
pub(crate) struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    /// With a node that serves.
    pub(crate) fn start() -> Host {
        let host = Host::stopped();
        host.archipelago(&["init"]);
        host.archipelago(&["node", "start"]);
        host
    }

    /// Without a node.
    pub(crate) fn stopped() -> Host {
        let host = Host {
            dir: tempfile::tempdir().unwrap(),
        };
        host.install("--root", &host.root());
        host.install("--ganeti-state", &host.path("ganeti"));
        host
    }

    /// Installs the provider, again with one more setting: those of before stay.
    pub(crate) fn install(&self, option: &str, path: &Path) {
        let mut install = program();
        install.arg("install").arg(option).arg(path);
        install.arg("--dir").arg(self.provider());
        install.arg("--log-dir").arg(self.path("log"));
        let output = run(&mut install);
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.path("node")
    }

    pub(crate) fn provider(&self) -> PathBuf {
        self.path("provider")
    }

    /// Runs the command of people, which must succeed; what it prints.
    pub(crate) fn archipelago(&self, arguments: &[&str]) -> String {
        let output = run(&mut self.command(arguments));
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        text(&output.stdout)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(programs().join("archipelago"));
        command.args(arguments).env("ARCHIPELAGO_ROOT", self.root());
        command
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Layout::new(Some(&self.root())).unwrap())
    }

    pub(crate) fn view(&self, name: &str) -> Option<VolumeView> {
        self.client().get(&format!("/v1/volumes/{name}")).ok()
    }

    pub(crate) fn status(&self) -> NodeStatus {
        self.client().get("/v1/node/status").unwrap()
    }

    /// The script `action` of `volume`, with `variables`.
    pub(crate) fn script_of(
        &self,
        volume: &str,
        action: &str,
        variables: &[(&str, &str)],
    ) -> Command {
        let mut command = Command::new(self.provider().join(action));
        command
            .current_dir(self.provider())
            // The settings beside them alone decide.
            .env("ARCHIPELAGO_ROOT", self.path("elsewhere"))
            .env("EXTP_PROVIDER", "archipelago")
            .env("VOL_NAME", volume)
            .envs(variables.iter().copied());
        command
    }

    pub(crate) fn script(&self, action: &str, variables: &[(&str, &str)]) -> Command {
        self.script_of(VOLUME, action, variables)
    }

    /// Runs it, which must succeed; its answer.
    pub(crate) fn done(&self, action: &str, variables: &[(&str, &str)]) -> String {
        self.done_of(VOLUME, action, variables)
    }

    pub(crate) fn done_of(&self, volume: &str, action: &str, variables: &[(&str, &str)]) -> String {
        let output = run(&mut self.script_of(volume, action, variables));
        assert!(
            output.status.success(),
            "{action} {variables:?}: {output:?}"
        );
        assert_eq!(text(&output.stderr), "", "{action} {variables:?}");
        text(&output.stdout)
    }

    /// Runs it, which must fail as Ganeti understands; what is said.
    pub(crate) fn refused(&self, action: &str, variables: &[(&str, &str)]) -> String {
        let output = run(&mut self.script(action, variables));
        assert_eq!(
            output.status.code(),
            Some(1),
            "{action} {variables:?}: {output:?}"
        );
        assert_eq!(text(&output.stdout), "", "{action} {variables:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains(&format!("{action} of volume `{VOLUME}`: ")),
            "{said}"
        );
        said
    }

    /// An image of `size`, written nowhere.
    pub(crate) fn make_image(&self, name: &str, size: &str) {
        let base = format!("{name}.base");
        self.archipelago(&["volume", "create", &base, "--size", size]);
        self.archipelago(&["volume", "snapshot", &base, name]);
        self.archipelago(&["volume", "remove", &base]);
    }

    /// Asserts that nothing of any volume is there that this host could see.
    pub(crate) fn assert_nothing_is_shown(&self) {
        assert_eq!(self.status().attachments, []);
        let root = std::fs::canonicalize(self.root()).unwrap();
        let root = root.to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(root), "{mounts}");
        for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
            let file = std::fs::read_to_string(device.path().join("loop/backing_file"));
            assert!(!file.is_ok_and(|file| file.contains(root)), "{device:?}");
        }
        for directory in ["run/volume", "run/attached"] {
            let entries = std::fs::read_dir(self.root().join(directory));
            let names: Vec<_> = entries.into_iter().flatten().flatten().collect();
            assert!(names.is_empty(), "{names:?}");
        }
    }

    /// The daemon's process, while it holds the node's lock.
    fn daemon(&self) -> Option<i32> {
        let text = std::fs::read_to_string(self.root().join("run/lock")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Some(pid) = self.daemon() else { return };
        // Not through `run`: a panic in here would end the program.
        let stopped = self
            .command(&["node", "stop"])
            .stdin(Stdio::null())
            .output();
        if !stopped.is_ok_and(|output| output.status.success()) {
            let name = std::fs::read(format!("/proc/{pid}/comm"));
            if name.is_ok_and(|name| name.starts_with(b"archipelagod")) {
                // Its children die with it.
                let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let root = self.dir.path().to_string_lossy().into_owned();
        let of_root = |line: &str| {
            line.split(' ')
                .nth(1)
                .map(str::to_owned)
                .filter(|at| at.starts_with(&root))
        };
        for at in mounts.lines().filter_map(of_root) {
            let _gone = Command::new("umount")
                .args(["--lazy".as_ref(), OsStr::new(&at)])
                .output();
        }
    }
}
