//! Our side: a node whose pool is on the cluster, and a client over vhost-user.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use archipelago_bench::compare::{self, Case, REQUEST_LEN_MAX, Sample};
use archipelago_bench::disk::Op;
use archipelago_bench::load;
use archipelago_bench::server::Server;
use archipelago_bench::waiting::{now, wait_until};
use archipelago_ceph::CephCluster;
use archipelago_crash_tests::node::Node;

use crate::contest::{Contestant, FIRST, OBJECT_LEN, without_cpu};

/// The RADOS pool.
pub(crate) const POOL: &str = "volumes";
/// A volume that is not in use any more is detached within this time.
const DETACH_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a write.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The volume that is measured, written once in full.
const OWNED: &str = "owned";
/// The snapshot of another one, of which clones are made.
const BASE: &str = "base";

/// A node that runs all the time: it does nothing while nothing is attached.
#[derive(Debug)]
pub(crate) struct Own {
    node: Node,
    clones: u32,
    attached: Option<String>,
}

impl Own {
    /// Starts the node, whose idle threads poll for `poll_us`, and fills two volumes of `size` bytes.
    ///
    /// # Errors
    /// If the node refuses.
    pub(crate) fn start(ceph: &CephCluster, size: u64, poll_us: Option<u32>) -> Result<Own> {
        let node = Node::start("fused")?;
        if let Some(poll_us) = poll_us {
            node.call(&["node", "stop"])?;
            set_poll_us(&node.root().join("archipelago.toml"), poll_us)?;
            node.call(&["node", "start"])?;
        }
        let conf = ceph.conf();
        let conf = conf.to_str().context("a path in UTF-8")?;
        node.call(&["pool", "add", "far", "--rados", POOL, "--ceph-conf", conf])?;
        node.call(&["pool", "remove", "default"])?;
        let mut own = Own {
            node,
            clones: 0,
            attached: None,
        };
        for name in ["filled", OWNED] {
            let size = size.to_string();
            own.node
                .call(&["volume", "create", name, "--size", &size])?;
            let socket = own.attach(name)?;
            load::fill(&mut compare::connect(&socket)?, REQUEST_LEN_MAX)?;
            own.release()?;
        }
        own.node.call(&["volume", "snapshot", "filled", BASE])?;
        Ok(own)
    }

    /// The node's root directory.
    pub(crate) fn root(&self) -> &Path {
        self.node.root()
    }

    fn attach(&mut self, name: &str) -> Result<PathBuf> {
        let socket = self.node.attach(name)?;
        self.attached = Some(name.to_owned());
        Ok(socket)
    }

    /// First writes to all objects of a fresh clone.
    fn measure_first_writes(&mut self) -> Result<Sample> {
        let socket = self.fresh_clone()?;
        let mut disk = compare::connect(&socket)?;
        let began = now();
        let mut latencies_ns = Vec::new();
        for object in 0..disk.capacity() / OBJECT_LEN {
            let sent = now();
            disk.run(Op::Write, object * OBJECT_LEN, FIRST.len, TIMEOUT)?;
            latencies_ns.push(u64::try_from(sent.elapsed().as_nanos())?);
        }
        let figures = load::figures(&mut latencies_ns, began.elapsed());
        drop(disk);
        self.release()?;
        Ok(without_cpu(figures))
    }
}

/// Changes `poll_us` in the configuration `path` of a node.
fn set_poll_us(path: &Path, poll_us: u32) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let lines = text.lines().map(|line| match line.starts_with("poll_us") {
        true => format!("poll_us = {poll_us}\n"),
        false => format!("{line}\n"),
    });
    Ok(fs::write(path, lines.collect::<String>())?)
}

impl Server for Own {
    fn name(&self) -> &'static str {
        "archipelago-fused"
    }

    fn filled(&mut self) -> Result<PathBuf> {
        self.attach(OWNED)
    }

    fn fresh_clone(&mut self) -> Result<PathBuf> {
        self.clones += 1;
        let name = format!("clone-{}", self.clones);
        self.node.call(&["volume", "clone", BASE, &name])?;
        self.attach(&name)
    }

    /// Those of the node, and the client: fio is one process with what it measures, too.
    fn pids(&self) -> Result<Vec<u32>> {
        let status = self.node.status()?;
        let processes = status["processes"].as_array();
        let processes = processes.context("`node status` shows no processes")?;
        let pids = processes
            .iter()
            .filter_map(|process| process["pid"].as_u64())
            .map(|pid| Ok(u32::try_from(pid)?));
        pids.chain([Ok(std::process::id())]).collect()
    }

    fn release(&mut self) -> Result<()> {
        let Some(name) = self.attached.take() else {
            return Ok(());
        };
        let refused = || format!("`{name}` is still in use, without a front end");
        wait_until(DETACH_TIMEOUT, refused, || Ok(self.node.detach(&name).ok()))?;
        if name.starts_with("clone-") {
            self.node.call(&["volume", "remove", &name])?;
        }
        Ok(())
    }
}

impl Contestant for Own {
    fn measure(&mut self, case: Case, time: Duration, seed: u64) -> Result<Sample> {
        match case.workload == FIRST {
            true => self.measure_first_writes(),
            false => compare::measure(self, case, time, seed),
        }
    }
}
