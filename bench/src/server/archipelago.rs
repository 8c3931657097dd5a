//! Archipelago, in either placement and of any build: nodes that serve one pool by turns.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_api::client::Client;
use archipelago_api::layout::Layout;

use super::{SERVER_CPU, Server, own_program};
use crate::program::stdout_of;
use crate::waiting::wait_until;

/// A volume that is not in use any more is detached within this time.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a volume in one container (`docs/pool-format.md`).
const CONTAINER_LEN: u64 = 64 << 30;
/// The volume that is measured, written once in full.
const OWNED: &str = "owned";
/// The snapshot that clones are made of.
const BASE: &str = "base";
/// The pool that builds have in common.
const COMMON_POOL: &str = "pool";

/// Programs and settings of a node.
#[derive(Debug, Clone)]
pub struct Build {
    /// What the tables call it.
    pub name: String,
    /// `fused` or `split`.
    pub placement: String,
    /// The `archipelago` command; the daemon is beside it.
    pub command: PathBuf,
    /// `poll_us` in its configuration; `None`: as `init` writes it.
    pub poll_us: Option<u32>,
    /// Name of its pool.
    pub pool: String,
}

impl Build {
    /// This build in `placement`.
    ///
    /// # Errors
    /// If there is no `archipelago` command.
    pub fn own(placement: &str) -> Result<Build> {
        Ok(Build {
            name: format!("archipelago-{placement}"),
            placement: placement.to_owned(),
            command: own_program("archipelago")?,
            poll_us: None,
            pool: COMMON_POOL.to_owned(),
        })
    }

    /// Reads `NAME=DIRECTORY[,poll_us=N][,own_pool]`: another build, fused. With `own_pool` its metadata is in a pool of its own: for
    /// a build whose format of pools is another one.
    ///
    /// # Errors
    /// If `text` has another form.
    pub fn parse(text: &str) -> Result<Build> {
        let (name, rest) = text.split_once('=').context("NAME=DIRECTORY is wanted")?;
        let mut settings = rest.split(',');
        let dir = settings.next().unwrap_or_default();
        let command = Path::new(dir).join("archipelago");
        ensure!(command.exists(), "{} does not exist", command.display());
        let mut build = Build {
            name: name.to_owned(),
            placement: "fused".to_owned(),
            command,
            poll_us: None,
            pool: COMMON_POOL.to_owned(),
        };
        for setting in settings {
            match setting.split_once('=') {
                Some(("poll_us", poll_us)) => {
                    build.poll_us = Some(poll_us.parse().context("poll_us")?);
                }
                None if setting == "own_pool" => build.pool = format!("pool-{name}"),
                _ => bail!("`{setting}` is neither poll_us=N nor own_pool"),
            }
        }
        Ok(build)
    }

    /// Whether no other build uses its pool.
    fn has_own_pool(&self) -> bool {
        self.pool != COMMON_POOL
    }
}

/// The volumes that all servers serve, and where on the disk they are.
#[derive(Debug, Clone)]
pub struct Volumes {
    /// Bytes of each.
    pub size: u64,
    /// Container of the filled volume: its first `size` bytes are the volume, every block of it written.
    pub filled: PathBuf,
    /// Container of the snapshot that clones are made of, likewise. Nothing writes to it.
    pub base: PathBuf,
}

impl Volumes {
    /// Makes them in the pools of `builds` below `dir`; `fill` writes a volume through its socket.
    ///
    /// # Errors
    /// If a node refuses, or a volume has more than one container.
    pub fn make(
        dir: &Path,
        builds: &[Build],
        size: u64,
        fill: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<Volumes> {
        ensure!(
            size <= CONTAINER_LEN,
            "a volume of {size} bytes has several containers: {CONTAINER_LEN} at most"
        );
        let prepared = |build: Build| {
            // Short: so are the paths of sockets.
            let name = format!("{}-0", build.name);
            Volumes::make_with(dir, &Build { name, ..build }, size, fill)
        };
        let volumes = prepared(Build::own("fused")?)?;
        for build in builds.iter().filter(|build| build.has_own_pool()) {
            let own = prepared(build.clone())?;
            // The map of a volume that was written in full is the same: its containers can be those of the common pool.
            for (own, common) in [(&own.filled, &volumes.filled), (&own.base, &volumes.base)] {
                fs::remove_file(own)?;
                fs::hard_link(common, own)?;
            }
        }
        Ok(volumes)
    }

    /// Makes them in the pool of `build`.
    fn make_with(
        dir: &Path,
        build: &Build,
        size: u64,
        fill: &dyn Fn(&Path) -> Result<()>,
    ) -> Result<Volumes> {
        let mut node = Archipelago::new(dir, build)?;
        let mut containers = Vec::new();
        for name in ["filled", OWNED] {
            fill(&node.volume(name, size)?)?;
            containers.push(container(
                &dir.join(&build.pool),
                &node.lineage(name)?,
                size,
            )?);
        }
        node.call(&["volume", "snapshot", "filled", BASE])?;
        node.release()?;
        let filled = containers.pop().context("two volumes were made")?;
        let base = containers.pop().context("two volumes were made")?;
        Ok(Volumes { size, filled, base })
    }
}

/// The one file that has all `size` bytes of a volume which was written in one epoch.
fn container(pool: &Path, lineage: &str, size: u64) -> Result<PathBuf> {
    let prefix = lineage.get(..2).context("a lineage is 32 digits")?;
    let dir = pool.join(prefix).join(lineage);
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("data-") {
            found.push((entry.path(), entry.metadata()?));
        }
    }
    let [(path, metadata)] = found.as_slice() else {
        bail!("{} has {} containers, not one", dir.display(), found.len());
    };
    let written = metadata.blocks() * 512;
    ensure!(
        written >= size,
        "of the {size} bytes of {} only {written} were written",
        path.display()
    );
    Ok(path.clone())
}

/// A node of the common pool; its processes run while it serves.
#[derive(Debug)]
pub struct Archipelago {
    name: String,
    root: PathBuf,
    command: PathBuf,
    running: bool,
    /// The option with which volumes are attached; `None`: over vhost-user.
    attach_option: Option<&'static str>,
    /// Volumes to be detached.
    attached: Vec<String>,
    clones: u32,
}

impl Archipelago {
    /// Configures a node of the build's pool below `dir`, with a root directory of its own.
    ///
    /// # Errors
    /// If `init` refuses.
    pub fn new(dir: &Path, build: &Build) -> Result<Self> {
        let root = dir.join(&build.name);
        fs::create_dir_all(&root)?;
        let server = Archipelago {
            name: build.name.clone(),
            root,
            command: build.command.clone(),
            running: false,
            attach_option: None,
            attached: Vec::new(),
            clones: 0,
        };
        let pool = dir.join(&build.pool);
        let pool = pool.to_str().context("the directory is not UTF-8")?;
        server.call(&["init", "--placement", &build.placement, "--pool-dir", pool])?;
        if let Some(poll_us) = build.poll_us {
            server.configure("poll_us", poll_us)?;
        }
        Ok(server)
    }

    /// Volumes are attached with `option` of `volume attach`; `None`: over vhost-user.
    #[must_use]
    pub fn attached_by(mut self, option: Option<&'static str>) -> Self {
        self.attach_option = option;
        self
    }

    fn configure(&self, key: &str, value: u32) -> Result<()> {
        let path = self.root.join("archipelago.toml");
        let mut found = false;
        let edit = |line: &str| {
            if line.starts_with(key) {
                found = true;
                format!("{key} = {value}\n")
            } else {
                format!("{line}\n")
            }
        };
        let text: String = fs::read_to_string(&path)?.lines().map(edit).collect();
        ensure!(found, "{} has no `{key}`", path.display());
        Ok(fs::write(&path, text)?)
    }

    /// Starts the node, unless it runs.
    ///
    /// # Errors
    /// If it does not serve its pool.
    pub(crate) fn start(&mut self) -> Result<()> {
        if self.running {
            return Ok(());
        }
        // Before the outcome is known: a start that has failed may have left a daemon.
        self.running = true;
        let mut start = Command::new("taskset");
        start
            .args(["-c", SERVER_CPU])
            .arg(&self.command)
            .arg("--root")
            .arg(&self.root)
            .args(["node", "start"]);
        stdout_of(&mut start).map(drop)
    }

    /// A fresh volume of `size` bytes, attached.
    ///
    /// # Errors
    /// If the node refuses.
    pub fn volume(&mut self, name: &str, size: u64) -> Result<PathBuf> {
        self.start()?;
        self.call(&["volume", "create", name, "--size", &size.to_string()])?;
        self.attach(name)
    }

    /// A client of the node's API.
    ///
    /// # Errors
    /// If the directory has no place for sockets.
    pub(crate) fn client(&self) -> Result<Client> {
        Ok(Client::new(Layout::new(Some(&self.root))?))
    }

    fn attach(&mut self, name: &str) -> Result<PathBuf> {
        self.start()?;
        let attach = ["volume", "attach", name];
        let attach: Vec<&str> = attach.into_iter().chain(self.attach_option).collect();
        let place = self.call(&attach)?.trim().into();
        self.attached.push(name.to_owned());
        Ok(place)
    }

    fn lineage(&self, name: &str) -> Result<String> {
        let info = self.json(&["--json", "volume", "info", name])?;
        let lineage = info["lineage"].as_str();
        Ok(lineage.context("`volume info` has no lineage")?.to_owned())
    }

    fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.call(arguments)?)?)
    }

    fn call(&self, arguments: &[&str]) -> Result<String> {
        stdout_of(
            Command::new(&self.command)
                .arg("--root")
                .arg(&self.root)
                .args(arguments),
        )
    }
}

/// The processes that serve files of the node at `root`.
fn mounts_of(root: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // One that has ended meanwhile is none of them.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = command.split(|byte| *byte == 0);
        let program = arguments.next().unwrap_or_default();
        let is_of_node = |argument: &[u8]| argument == root.as_os_str().as_encoded_bytes();
        if program.ends_with(b"/archipelago-fuse") && arguments.any(is_of_node) {
            found.push(pid);
        }
    }
    Ok(found)
}

impl Server for Archipelago {
    fn name(&self) -> &str {
        &self.name
    }

    fn filled(&mut self) -> Result<PathBuf> {
        self.attach(OWNED)
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        self.start()?;
        self.clones += 1;
        // Never removed: returning its space in the background would disturb the next measurement.
        let name = format!("{}-clone-{}", self.name, self.clones);
        self.call(&["volume", "clone", BASE, &name])?;
        self.attach(&name)
    }

    fn pids(&self) -> Result<Vec<u32>> {
        let status = self.json(&["--json", "node", "status"])?;
        status["processes"]
            .as_array()
            .context("`node status` shows no processes")?
            .iter()
            .filter_map(|process| process["pid"].as_u64())
            .map(|pid| Ok(u32::try_from(pid)?))
            .chain(mounts_of(&self.root)?.into_iter().map(Ok))
            .collect()
    }

    fn release(&mut self) -> Result<()> {
        // Closed before the node stops: pending write-back happens now, not while another server is measured.
        while let Some(name) = self.attached.last() {
            let refused = || format!("`{name}` is still in use, without a front end");
            // An older build refuses at once while the volume is being closed.
            wait_until(DETACH_TIMEOUT, refused, || {
                Ok(self.call(&["volume", "detach", name]).ok().map(drop))
            })?;
            self.attached.pop();
        }
        if self.running {
            self.call(&["node", "stop"])?;
            self.running = false;
        }
        Ok(())
    }
}

impl Drop for Archipelago {
    fn drop(&mut self) {
        if self.running
            && let Err(error) = self.call(&["node", "stop"])
        {
            eprintln!(
                "bench: the node of {} did not stop: {error:#}",
                self.root.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_a_name_a_directory_and_settings() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("archipelago"), "").unwrap();
        let dir = dir.path().to_str().unwrap();
        let build = Build::parse(&format!("old={dir},poll_us=0")).unwrap();
        assert_eq!((build.name.as_str(), build.poll_us), ("old", Some(0)));
        assert_eq!(Build::parse(&format!("old={dir}")).unwrap().poll_us, None);
        let build = Build::parse(&format!("old={dir},own_pool,poll_us=1")).unwrap();
        assert_eq!((build.pool.as_str(), build.poll_us), ("pool-old", Some(1)));
        for wrong in [
            dir,
            "old=/nowhere",
            &format!("old={dir},poll_us=few"),
            &format!("old={dir},poll"),
        ] {
            Build::parse(wrong).unwrap_err();
        }
    }

    #[test]
    fn a_volume_with_holes_or_several_containers_is_not_offered_to_a_peer() {
        let pool = tempfile::tempdir().unwrap();
        let lineage = "ab000000000000000000000000000000";
        let dir = pool.path().join("ab").join(lineage);
        fs::create_dir_all(&dir).unwrap();
        let first = dir.join("data-0000000000000001-00000000");
        let found = || container(pool.path(), lineage, 8192);
        assert!(found().unwrap_err().to_string().contains("0 containers"));
        let file = fs::File::create(&first).unwrap();
        file.set_len(CONTAINER_LEN).unwrap();
        assert!(found().unwrap_err().to_string().contains("only 0 were"));
        fs::write(dir.join("head"), [1]).unwrap();
        fs::write(&first, [1; 8192]).unwrap();
        assert_eq!(found().unwrap(), first);
        fs::write(dir.join("data-0000000000000002-00000000"), [1]).unwrap();
        assert!(found().unwrap_err().to_string().contains("2 containers"));
    }
}
