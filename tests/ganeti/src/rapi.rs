//! Ganeti's remote API: HTTP with TLS and JSON, as its other front ends speak it.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use archipelago_bench::waiting::wait_until;
use serde_json::Value;

use crate::cluster::Cluster;

/// Where it listens, by Debian's defaults.
const ADDRESS: &str = "https://127.0.0.1:5080/2";
/// The user of these tests, who may write.
const USER: &str = "tests:secret";
/// Longest time for a job.
const JOB: Duration = Duration::from_secs(240);

/// A client.
#[derive(Debug)]
pub struct Rapi<'a> {
    cluster: &'a Cluster,
}

impl<'a> Rapi<'a> {
    /// A client of a user of its own.
    ///
    /// # Errors
    /// If the user cannot be made.
    pub fn new(cluster: &'a Cluster) -> Result<Rapi<'a>> {
        let users = "/var/lib/ganeti/rapi/users";
        fs::write(cluster.machine().path(users), "tests secret write\n")?;
        cluster.run("chown", &["gnt-rapi:gnt-masterd", users])?;
        cluster.run("chmod", &["640", users])?;
        Ok(Rapi { cluster })
    }

    /// What the resource `path` is.
    ///
    /// # Errors
    /// If it is refused.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// Asks for a job, and waits until it has succeeded.
    ///
    /// # Errors
    /// If it is refused or fails, with what it said.
    pub fn job(&self, method: &str, path: &str, body: Option<&Value>) -> Result<()> {
        let answer = self.call(method, path, body)?;
        let id = match &answer {
            Value::String(id) => id.clone(),
            Value::Number(id) => id.to_string(),
            other => bail!("{method} {path} started no job: {other}"),
        };
        let missing = || format!("job {id} of {method} {path} has not ended");
        let job = wait_until(JOB, missing, || {
            let job = self.get(&format!("/jobs/{id}"))?;
            let ended = matches!(
                job["status"].as_str(),
                Some("success" | "error" | "canceled")
            );
            Ok(ended.then_some(job))
        })?;
        match job["status"].as_str() {
            Some("success") => Ok(()),
            _ => bail!("{method} {path}: {}", job["opresult"]),
        }
    }

    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let address = format!("{ADDRESS}{path}");
        let mut arguments = vec![
            "--silent",
            "--show-error",
            "--fail-with-body",
            "--insecure",
            "--max-time",
            "60",
        ];
        arguments.extend(["--user", USER, "--request", method, &address]);
        let text = body.map(Value::to_string);
        if let Some(text) = &text {
            arguments.extend(["--header", "Content-Type: application/json", "--data", text]);
        }
        let said = self.cluster.run("curl", &arguments)?;
        serde_json::from_str(&said).with_context(|| format!("{method} {path} answered {said}"))
    }
}
