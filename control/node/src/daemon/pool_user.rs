//! Finds the node that serves a pool without its sockets, which are lost if a user has removed the run directory.
//!
//! The lock of the pool contains the data process, whose command line contains its daemon and its run directory. The daemon counts only if
//! it is the parent of that process: a data process whose daemon has died is about to end.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use archipelago_api::config::PoolConfig;
use archipelago_api::layout::Layout;
use archipelago_blocker_file::holder;
use archipelago_host::PeerSettings;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Clock, SystemClock};

use crate::node_pool::NodePool;

/// Timeout for the file system's answer which process holds a lock.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a daemon may take to end after it has released its node's lock; until then, its last data process is its child.
const ENDING_TIMEOUT: Duration = Duration::from_secs(3);
/// Milliseconds between two checks while waiting.
const RETRY_MS: u8 = 5;

/// A node that serves a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServingNode {
    /// Process id of its daemon.
    pub(crate) daemon: u32,
    /// Its run directory, from the command lines of its processes.
    pub(crate) run: PathBuf,
    pool: PathBuf,
}

/// What has a pool open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PoolUser {
    /// No process, or the file system does not report one.
    Nobody,
    /// A node whose daemon runs.
    Node(ServingNode),
    /// A process that has ended or is about to end, or one that is not visible from here.
    Process(Option<u32>),
}

impl PoolUser {
    /// What has the pool open, according to its lock. For a cluster, no process is known.
    #[must_use]
    pub(crate) fn of_pool(pool: &PoolConfig) -> PoolUser {
        pool.directory().map_or(PoolUser::Nobody, PoolUser::of)
    }

    /// What has the pool in `directory` open.
    #[must_use]
    pub(crate) fn of(directory: &Path) -> PoolUser {
        let (sender, receiver) = mpsc::channel();
        let asked = directory.to_owned();
        // On its own thread: a file system that does not answer blocks only this thread.
        let thread = std::thread::Builder::new().name("pool-user".to_owned());
        let _thread = thread.spawn(move || {
            let _late = sender.send(holder(&asked));
        });
        match receiver.recv_timeout(LOOK_TIMEOUT) {
            Ok(Ok(Some(holder))) => match holder.pid.and_then(ServingNode::of_process) {
                Some(node) => PoolUser::Node(node),
                None => PoolUser::Process(holder.pid),
            },
            Ok(Ok(None)) | Ok(Err(_)) | Err(_) => PoolUser::Nobody,
        }
    }

    /// Waits until no process has the pool in `directory` open, or another daemon serves it, at most for `timeout`.
    ///
    /// # Errors
    /// A text for users: which process still has the pool open, or why that is not known.
    pub(crate) fn wait_free(directory: &Path, timeout: Duration) -> Result<(), String> {
        let deadline = SystemClock.now() + timeout;
        loop {
            let pool = directory.display();
            let left = match holder(directory) {
                Ok(None) => return Ok(()),
                Ok(Some(holder))
                    if holder
                        .pid
                        .and_then(ServingNode::of_process)
                        .is_some_and(|node| node.daemon != std::process::id()) =>
                {
                    return Ok(());
                }
                Ok(Some(holder)) => match holder.pid {
                    Some(pid) => format!(
                        "process {pid}, which has ended, still has files of pool `{pool}` open"
                    ),
                    None => format!("pool `{pool}` is still open"),
                },
                Err(error) => {
                    return Err(format!(
                        "whether pool `{pool}` is closed is unknown: {error}"
                    ));
                }
            };
            if SystemClock.now() >= deadline {
                return Err(format!(
                    "{left} after {} s: its file system cannot be unmounted yet",
                    timeout.as_secs()
                ));
            }
            let _interrupted = nix::poll::poll(&mut [], RETRY_MS);
        }
    }
}

impl ServingNode {
    /// The node that serves `pool` and is not about to end; waits for one that is ending. Does not change the pool.
    pub(crate) fn of_pool(pool: &PoolConfig) -> Option<ServingNode> {
        let deadline = SystemClock.now() + ENDING_TIMEOUT;
        loop {
            let node = ServingNode::find(pool)?;
            if SystemClock.now() >= deadline {
                return Some(node);
            }
            let _interrupted = nix::poll::poll(&mut [], RETRY_MS);
        }
    }

    /// The node that serves `pool`, according to the arguments of its processes.
    fn find(pool: &PoolConfig) -> Option<ServingNode> {
        let place = pool.place();
        let processes = std::fs::read_dir("/proc").ok()?;
        processes
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter_map(ServingNode::of_process)
            .find(|node| node.pool == place)
    }

    /// The node to which the data process `pid` belongs.
    fn of_process(pid: u32) -> Option<ServingNode> {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let arguments: Vec<&str> = line
            .split(|byte| *byte == 0)
            .map(std::str::from_utf8)
            .collect::<Result<_, _>>()
            .ok()?;
        if arguments.get(1) != Some(&"peer") {
            return None;
        }
        let value = |name: &str| {
            let at = arguments.iter().position(|argument| *argument == name)?;
            arguments.get(at + 1).copied()
        };
        let daemon = value("--parent")?.parse().ok()?;
        let settings: PeerSettings<NodePool> = serde_json::from_str(value("--settings")?).ok()?;
        (parent_of(pid) == Some(daemon)).then_some(ServingNode {
            daemon,
            run: settings.node,
            pool: settings.pool.place(),
        })
    }

    /// Whether the daemon of this node still runs.
    #[must_use]
    pub(crate) fn is_alive(&self) -> bool {
        status_of(self.daemon, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
    }

    /// The error for a command that needs exclusive use of the pool of the node at `layout`.
    pub(crate) fn in_use(&self, layout: &Layout) -> Error {
        let ServingNode { daemon, run, pool } = self;
        let (pool, run_directory) = (pool.display(), run.display());
        let (message, hint) = if run == layout.run() {
            (
                format!(
                    "process {daemon} (archipelagod) serves this node and its pool `{pool}`; {run_directory} was removed under it"
                ),
                format!("`{} node stop` ends it", layout.command()),
            )
        } else {
            (
                format!(
                    "pool `{pool}` is served by another node: process {daemon} (archipelagod), with its sockets in {run_directory}"
                ),
                format!("stop that node first: `kill {daemon}` ends it cleanly"),
            )
        };
        Error::new(ErrorCode::InUse, message).with_hint(hint)
    }
}

fn parent_of(pid: u32) -> Option<u32> {
    status_of(pid, "PPid")?.parse().ok()
}

/// The value of `key` in the kernel's status file of a process.
fn status_of(pid: u32, key: &str) -> Option<String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.map(|value| value.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_are_no_data_process_are_no_node() {
        let own = std::process::id();
        assert_eq!(ServingNode::of_process(own), None);
        assert_eq!(
            parent_of(own),
            Some(nix::unistd::getppid().as_raw().unsigned_abs())
        );
        assert_eq!(status_of(own, "Pp"), None, "a whole key");
        let node = |daemon| ServingNode {
            daemon,
            run: "/run".into(),
            pool: "/pool".into(),
        };
        assert!(node(own).is_alive());
        assert!(!node(u32::MAX).is_alive());
    }
}
