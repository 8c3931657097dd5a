//! The processes of a cluster: each call of a Ceph program, and how a daemon is ended.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use archipelago_bench::waiting::wait_until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a program may take that makes something, and a daemon to end.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// The programs of a cluster in one directory.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) directory: PathBuf,
    daemons: Mutex<BTreeMap<String, Child>>,
    keeper: Keeper,
}

impl Programs {
    pub(crate) fn new(directory: PathBuf) -> Programs {
        Programs {
            directory,
            daemons: Mutex::default(),
            keeper: Keeper::start(),
        }
    }

    pub(crate) fn conf(&self) -> PathBuf {
        self.directory.join("ceph.conf")
    }

    /// Starts `program` with the cluster's configuration and further arguments.
    ///
    /// # Panics
    /// If it cannot be started: its package is missing.
    pub(crate) fn start<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Running {
        let conf = self.conf();
        let all = [OsStr::new("-c"), conf.as_os_str()].into_iter();
        let all: Vec<&OsStr> = all.chain(arguments.iter().map(AsRef::as_ref)).collect();
        let child = self.command(program, &all).spawn().unwrap_or_else(|error| {
            panic!("{program}: {error}; install ceph-mon, ceph-osd and ceph-common")
        });
        Running {
            program: program.to_owned(),
            child,
            output: self.output(),
        }
    }

    fn output(&self) -> PathBuf {
        self.directory.join("log/programs")
    }

    fn command<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) -> Command {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.output())
            .expect("a log in the cluster's directory");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_remove("CEPH_CONF")
            .env_remove("CEPH_ARGS")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log);
        command
    }

    /// Runs it to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, program: &str, arguments: &[S]) {
        self.start(program, arguments).finish();
    }

    /// Starts the daemon `name`: `program` with further arguments.
    pub(crate) fn start_daemon(&self, name: &str, program: &str, number: &str) {
        let mut arguments: Vec<OsString> = ["--pdeathsig", "KILL", program, "-f", "-c"]
            .map(OsString::from)
            .into();
        arguments.push(self.conf().into());
        arguments.extend(["-i", number].map(OsString::from));
        let child = self.keeper.spawn(self.command("setpriv", &arguments));
        let before = self.daemons().insert(name.to_owned(), child);
        assert!(before.is_none(), "{name} runs already");
    }

    /// Sends `signal` to the daemon `name`, if it runs.
    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        if let Some(child) = self.daemons().get(name) {
            let pid = i32::try_from(child.id()).expect("a process id");
            // Our child, which nobody has waited for: the number is no other process's.
            kill(Pid::from_raw(pid), signal).expect("a child of ours");
        }
    }

    /// Kills the daemon `name`, and waits for its end.
    pub(crate) fn kill(&self, name: &str) {
        if let Some(mut child) = self.daemons().remove(name) {
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }

    fn daemons(&self) -> MutexGuard<'_, BTreeMap<String, Child>> {
        self.daemons.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that starts daemons: they are killed with it, so also when the process is aborted, and not with the thread of a test.
#[derive(Debug)]
struct Keeper {
    commands: mpsc::Sender<(Command, mpsc::Sender<Child>)>,
}

impl Keeper {
    fn start() -> Keeper {
        let (commands, received) = mpsc::channel::<(Command, mpsc::Sender<Child>)>();
        std::thread::spawn(move || {
            for (mut command, answer) in received {
                let child = command
                    .spawn()
                    .unwrap_or_else(|error| panic!("{command:?}: {error}"));
                let _sent = answer.send(child);
            }
        });
        Keeper { commands }
    }

    fn spawn(&self, command: Command) -> Child {
        let (answer, child) = mpsc::channel();
        self.commands
            .send((command, answer))
            .expect("the keeper lives");
        child.recv().expect("a daemon that starts")
    }
}

/// A program that runs.
#[derive(Debug)]
pub(crate) struct Running {
    program: String,
    child: Child,
    output: PathBuf,
}

impl Running {
    /// Waits for its end, which must be a success.
    ///
    /// # Panics
    /// If it fails, or does not end in time.
    pub(crate) fn finish(mut self) {
        let ended = wait_until(
            TIMEOUT,
            || "it has not ended".to_owned(),
            || Ok(self.child.try_wait()?),
        );
        match ended {
            Ok(status) if status.success() => {}
            Ok(status) => panic!("{}: {status}\n{}", self.program, tail(&self.output)),
            Err(error) => {
                let _killed = self.child.kill();
                panic!("{}: {error}\n{}", self.program, tail(&self.output));
            }
        }
    }
}

/// The last lines of a log.
pub(crate) fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
