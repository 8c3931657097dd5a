//! The provider's scripts, called as Ganeti's node daemon calls them.

use std::process::Output;
use std::time::Duration;

use anyhow::{Result, ensure};
use archipelago_bench::program::output;
use archipelago_bench::waiting::now;

use crate::storage::Storage;

/// Where the provider is.
pub const PROVIDER: &str = "/usr/share/ganeti/extstorage/archipelago";

/// A disk as Ganeti names it to the scripts.
#[derive(Debug, Clone)]
pub struct Disk<'a> {
    storage: &'a Storage<'a>,
    name: String,
    variables: Vec<(String, String)>,
}

impl<'a> Disk<'a> {
    /// The disk `name`, with `access`.
    #[must_use]
    pub fn new(storage: &'a Storage<'a>, name: &str, access: &str) -> Disk<'a> {
        let disk = Disk {
            storage,
            name: name.to_owned(),
            variables: Vec::new(),
        };
        disk.with("VOL_NAME", name)
            .with("VOL_UUID", "9e4b7f0a-0b1c-4e0f-9c53-6f0c2c1f6d10")
            .with("EXTP_PROVIDER", "archipelago")
            .with("EXTP_ACCESS", access)
    }

    /// With one more variable, for one call or for all.
    #[must_use]
    pub fn with(&self, name: &str, value: &str) -> Disk<'a> {
        let mut disk = self.clone();
        disk.variables.push((name.to_owned(), value.to_owned()));
        disk
    }

    /// Its volume's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs the script `action` to its end, however it ends.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn output(&self, action: &str) -> Result<Output> {
        self.run(&format!("{PROVIDER}/{action}"), &[])
    }

    /// Runs the script `action`: what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn call(&self, action: &str) -> Result<String> {
        let output = self.output(action)?;
        let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat())
            .trim()
            .to_owned();
        let name = &self.name;
        ensure!(
            output.status.success(),
            "{action} of {name}: {}: {said}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The same, and how long it took; entering the namespaces is counted, which takes some milliseconds.
    ///
    /// # Errors
    /// As [`Disk::call`].
    pub fn timed(&self, action: &str) -> Result<Duration> {
        let began = now();
        self.call(action)?;
        Ok(began.elapsed())
    }

    /// Runs the script `action`, which must fail: what it said.
    ///
    /// # Errors
    /// If it succeeds.
    pub fn refused(&self, action: &str) -> Result<String> {
        let output = self.output(action)?;
        let name = &self.name;
        ensure!(
            !output.status.success(),
            "{action} of {name} was not refused"
        );
        Ok(String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned())
    }

    /// Kills the script `action` after `time`, unless it has ended by then: whether it was killed.
    ///
    /// # Errors
    /// If it cannot be run.
    pub fn killed(&self, action: &str, time: Duration) -> Result<bool> {
        let script = format!("{PROVIDER}/{action}");
        let seconds = format!("{:.6}", time.as_secs_f64());
        let output = self.run("timeout", &["--signal=KILL", &seconds, &script])?;
        Ok(!output.status.success())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.storage.cluster().machine().command(program);
        command.args(arguments);
        command.envs(self.variables.iter().cloned());
        output(&mut command)
    }
}
