//! A machine inside this one: mount, host name, IPC, network and process namespaces, with private copies of what it changes.
//!
//! Invariants
//! - It ends with its [`Namespaces`], and with the process of the test, however that one dies: its first process (`node/init.sh`)
//!   waits on a pipe that only the test holds, and the kernel kills the others with it.
//! - Nothing of the host is changed but the directory that it was given.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::program::output_within;
use archipelago_bench::waiting::wait_until;
use nix::unistd::Pid;

/// Longest time for one command inside: a cluster is made in 8 s, an instance in 8 s at a load of 5.
const COMMAND: Duration = Duration::from_secs(240);
/// Longest time until everything is taken down: under 1 s.
const TAKE_DOWN: Duration = Duration::from_secs(60);
/// What commands inside find as `PATH`.
const SEARCHED: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// The machine.
#[derive(Debug)]
pub struct Namespaces {
    child: Child,
    /// Its end is the machine's end.
    stdin: Option<ChildStdin>,
    first: Pid,
    dir: PathBuf,
}

impl Namespaces {
    /// Starts a machine whose changed files lie in `dir`, which must exist. Its root is the host's, or what lies in `root`; of the host
    /// it then has the directories `shown`, where they are.
    ///
    /// # Errors
    /// If it cannot be made: this needs root.
    pub fn start(dir: &Path, root: Option<&Path>, shown: &[&Path]) -> Result<Namespaces> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("node/init.sh");
        let mut child = Command::new("unshare")
            .args(["--mount", "--uts", "--ipc", "--net", "--pid"])
            .args(["--propagation", "private", "--fork", "--kill-child"])
            .arg(script)
            .arg(dir)
            .args(root)
            .args(root.map_or(&[][..], |_| shown))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start unshare")?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("a piped standard output")?;
        // From here on a failure takes it down.
        let mut namespaces = Namespaces {
            child,
            stdin,
            first: Pid::from_raw(0),
            dir: dir.to_owned(),
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let pid = line.trim().parse();
        namespaces.first = Pid::from_raw(pid.context("the machine's first process has failed")?);
        Ok(namespaces)
    }

    /// What runs `program` inside, with the environment of a fresh machine.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.first.to_string());
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--wd=/"]);
        command.arg("--").arg(program);
        command.env_clear();
        command.env("PATH", SEARCHED).env("LC_ALL", "C");
        command.env("HOME", self.dir.join("root"));
        command
    }

    /// Runs a program inside to its end, however it ends.
    ///
    /// # Errors
    /// If it cannot be run, or takes minutes.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        output_within(self.command(program).args(arguments), COMMAND)
    }

    /// Runs a program inside to its end: what it printed.
    ///
    /// # Errors
    /// As [`Namespaces::output`]; or if it fails, with what it said.
    pub fn call(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.output(program, arguments)?;
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat())
            .trim()
            .to_owned();
        ensure!(
            output.status.success(),
            "{program} {}: {}: {said}",
            arguments.join(" "),
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A file of the machine, as the host reaches it.
    #[must_use]
    pub fn path(&self, inside: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{inside}", self.first))
    }

    /// Ends it, and waits until all of it is gone.
    ///
    /// # Errors
    /// If it does not end.
    pub fn end(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        drop(self.stdin.take());
        let missing = || "the machine has not ended".to_owned();
        wait_until(TAKE_DOWN, missing, || Ok(self.child.try_wait()?))?;
        Ok(())
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("{error:#}; it is killed");
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}
