//! A node of ours in the machine, with two pools of files; and the provider where Ganeti looks.
//!
//! Everything of the node lies in a directory with a name of its own: loop devices are the host's, and tell by their files whose they are.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::server::own_program;
use archipelago_bench::waiting::wait_until;
use serde_json::Value;

use crate::cluster::Cluster;

/// Names of the pools; the first one is meant where none is named.
pub const POOLS: [&str; 2] = ["default", "second"];
/// What the wrapper becomes: by the name `kvm` it would try KVM first.
const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Longest time until a killed daemon has released its node.
const RELEASE: Duration = Duration::from_secs(30);

/// The node.
#[derive(Debug, Clone)]
pub struct Storage<'a> {
    cluster: &'a Cluster,
    command: PathBuf,
    root: PathBuf,
}

impl<'a> Storage<'a> {
    /// Makes the node, starts it, and installs the provider.
    ///
    /// # Errors
    /// If any of that fails.
    pub fn start(cluster: &'a Cluster) -> Result<Storage<'a>> {
        let command = own_program("archipelago")?;
        let root = cluster.dir().join("node");
        // What may lie in memory does, as on a host.
        let run = root.join("run");
        std::fs::create_dir_all(&run)?;
        let run = run.to_str().context("a path in UTF-8")?;
        cluster.run("mount", &["-t", "tmpfs", "-o", "mode=755", "run", run])?;
        let storage = Storage {
            cluster,
            command,
            root,
        };
        let [first, second] = POOLS.map(|pool| cluster.dir().join("pools").join(pool));
        let text = |path: &PathBuf| path.to_str().map(str::to_owned).context("a path in UTF-8");
        storage.call(&["init", "--pool-dir", &text(&first)?])?;
        storage.call(&["node", "start"])?;
        std::fs::create_dir_all(&second)?;
        storage.call(&["pool", "add", POOLS[1], "--dir", &text(&second)?])?;
        storage.install()?;
        Ok(storage)
    }

    fn install(&self) -> Result<()> {
        self.call(&["ganeti", "install", "--qemu", QEMU]).map(drop)
    }

    /// The cluster whose node it runs on.
    #[must_use]
    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// Directory of everything of the node.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs the command `archipelago`: what it printed.
    ///
    /// # Errors
    /// If it fails, with what it said.
    pub fn call(&self, arguments: &[&str]) -> Result<String> {
        let program = self.command.to_str().context("a path in UTF-8")?;
        let root = self.root.to_str().context("a path in UTF-8")?;
        let arguments = [&["--root", root], arguments].concat();
        self.cluster.machine().call(program, &arguments)
    }

    /// The same, for its JSON.
    ///
    /// # Errors
    /// As [`Storage::call`].
    pub fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let said = self.call(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&said).with_context(|| format!("{arguments:?} printed: {said}"))
    }

    /// Names of the volumes that are there, without images and snapshots.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn volumes(&self) -> Result<Vec<String>> {
        names(&self.ask(&["volume", "list"])?, "volumes")
    }

    /// How many attachments there are.
    ///
    /// # Errors
    /// If the node does not answer.
    pub fn attachments(&self) -> Result<usize> {
        let all = self.ask(&["volume", "attachments"])?;
        let all = all["attachments"].as_array().or(all.as_array());
        Ok(all.context("a list of attachments")?.len())
    }

    /// Ends the daemon as an operator does, and starts it again.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&self) -> Result<()> {
        self.call(&["node", "stop"])?;
        self.call(&["node", "start"]).map(drop)
    }

    /// Kills the daemon, with `kill -9`, and starts it again.
    ///
    /// # Errors
    /// If it does not start.
    pub fn kill_and_start(&self) -> Result<()> {
        let pid = self.ask(&["node", "status"])?["pid"].to_string();
        self.cluster.run("kill", &["-9", &pid])?;
        let missing = || "the killed daemon has not released its node".to_owned();
        wait_until(RELEASE, missing, || match self.call(&["node", "start"]) {
            Err(error) if error.to_string().contains("serves this node") => Ok(None),
            started => started.map(|_said| Some(())),
        })
    }
}

/// The `name` of each entry of a list, which may stand below `key`.
fn names(list: &Value, key: &str) -> Result<Vec<String>> {
    let entries = list[key].as_array().or(list.as_array());
    let entries = entries.with_context(|| format!("no {key} in {list}"))?;
    let name = |entry: &Value| entry["name"].as_str().map(str::to_owned);
    Ok(entries.iter().filter_map(name).collect())
}
