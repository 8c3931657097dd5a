//! A pool on a file system of 1 GiB that guests fill, that stays full while processes die, and that is grown at last.
//!
//! Where the file system cannot be grown (ext4 needs a capability that root may lack in a container), a file beside the pool
//! has half of the space, and is removed instead.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::{now, pause};
use serde_json::Value;

use crate::filesystem::{FileSystem, Kind};
use crate::node::Node;
use crate::skip;

const GIB: u64 = 1 << 30;
/// Longest time for what the tools take to grow a file system, and for all guests to find the space.
pub const GROWN_WITHIN: Duration = Duration::from_secs(10);
/// Guests that write fill the file system within any such time, also emulated ones on a busy host.
pub const STALLED: Duration = Duration::from_secs(60);
/// Between two looks at the file system and the status.
const LOOK: Duration = Duration::from_millis(250);

/// For how long the pool stays full: `$GROWN_SECONDS`, else 6 s.
#[must_use]
pub fn full_time() -> Duration {
    let seconds = std::env::var("GROWN_SECONDS").ok();
    Duration::from_secs(seconds.and_then(|text| text.parse().ok()).unwrap_or(6))
}

/// The file system of the pool.
#[derive(Debug)]
pub struct GrowingPool {
    files: FileSystem,
}

impl GrowingPool {
    /// Makes one. `None`: not to be had here.
    ///
    /// # Errors
    /// As [`skip`].
    #[expect(clippy::print_stdout, reason = "what differs here")]
    pub fn new(kind: Kind) -> Result<Option<GrowingPool>> {
        let files = match FileSystem::new(kind, GIB) {
            Ok(files) => files,
            Err(error) => {
                skip(&format!("no {kind}: {error:#}"))?;
                return Ok(None);
            }
        };
        if !files.can_grow()? {
            println!(
                "{kind}: root may not grow it here; a file beside the pool is removed instead"
            );
            files.leave(files.free()? / 2)?;
        }
        Ok(Some(GrowingPool { files }))
    }

    /// The pool's directory.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        self.files.path().join("pool")
    }

    /// Leaves `free` bytes free.
    ///
    /// # Errors
    /// If there are fewer.
    pub fn leave(&self, free: u64) -> Result<()> {
        self.files.leave(free)
    }

    /// Waits until all `guests` wait for space, for as long as they write. `check` finds out whether one has failed, and how much they
    /// have done: one that writes where the file system has set space aside for its file takes nothing of what is free.
    ///
    /// # Errors
    /// That of `check`, or if neither what is free nor what is done changes for [`STALLED`].
    pub fn filled(
        &self,
        node: &Node,
        guests: usize,
        mut check: impl FnMut() -> Result<u64>,
    ) -> Result<()> {
        let mut look = || Ok::<_, anyhow::Error>((check()?, self.files.free()?));
        let (mut found, mut changed) = (look()?, now());
        loop {
            let waiting = waiting(node)?;
            if waiting == guests {
                return Ok(());
            }
            let before = std::mem::replace(&mut found, look()?);
            if found != before {
                changed = now();
            }
            ensure!(
                changed.elapsed() < STALLED,
                "{waiting} of {guests} guests wait for space, and for {STALLED:?} nobody has written: {} bytes are free",
                found.1
            );
            pause(LOOK);
        }
    }

    /// Grows the file system to 4 GiB.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn make_room(&self) -> Result<()> {
        if self.files.can_grow()? {
            self.files.grow(4 * GIB)
        } else {
            self.files.remove_ballast()
        }
    }

    /// Detaches `volumes`, stops the node, and has pool and file system checked.
    ///
    /// # Errors
    /// If one finds anything.
    pub fn finish(self, node: &Node, volumes: &[String]) -> Result<()> {
        for volume in volumes {
            node.detach(volume)?;
        }
        node.call(&["doctor"])?;
        node.call(&["node", "stop"])?;
        node.call(&["doctor"])?;
        self.files.finish()
    }
}

/// How many volumes wait for space, as the status says.
///
/// # Errors
/// If the node does not run.
pub fn waiting(node: &Node) -> Result<usize> {
    let status = node.status()?;
    let waits = status["waits"].as_array().context("a list of waits")?;
    let for_space = |wait: &&Value| {
        wait["what"]
            .as_str()
            .is_some_and(|what| what.contains("space"))
    };
    let volumes = waits.iter().filter(for_space);
    let mut volumes: Vec<&str> = volumes.filter_map(|wait| wait["volume"].as_str()).collect();
    volumes.sort_unstable();
    volumes.dedup();
    Ok(volumes.len())
}

/// Kills the process of `role` and waits for its successor.
///
/// # Errors
/// If there is none soon.
pub fn replace_process(node: &Node, role: &str) -> Result<()> {
    let killed = node.process_of(role)?;
    Node::kill(killed)?;
    let pid = Value::from(killed.as_raw());
    node.wait_for_status("a successor of the killed process", |status| {
        let processes = status["processes"].as_array();
        processes.is_some_and(|all| {
            all.iter()
                .all(|process| process["serving"] == true && process["pid"] != pid)
        })
    })
}

/// Lets `continued` wait for the guests after [`GrowingPool::make_room`]: how long both took.
///
/// # Errors
/// Those of both, or if they took longer than [`GROWN_WITHIN`].
pub fn grow(pool: &GrowingPool, continued: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = now();
    pool.make_room()?;
    continued()?;
    let took = began.elapsed();
    ensure!(took < GROWN_WITHIN, "the guests continued after {took:?}");
    Ok(took)
}
