//! What the program does for the command `archipelago` while no daemon serves the node: returns one answer, as JSON on the standard output.
//!
//! The command itself opens no pools and waits for no locks, so it links nothing of the data path.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_api::config::{Config, PoolConfig};
use archipelago_api::layout::Layout;
use archipelago_api::types::{Done, Ended};
use archipelago_protocol::{Error, ErrorCode, Name};
use archipelago_runtime::{Clock, SystemClock};
use clap::{Args, Subcommand};
use nix::errno::Errno;
use nix::poll::poll;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::daemon::{NodeLock, PoolUser, RELEASE_TIMEOUT, ServingNode};
use crate::doctor::check_offline;

/// Longest time in which a daemon may stop: it drains for 60 s, and then three processes have some seconds to end.
const END_TIMEOUT: Duration = Duration::from_secs(100);
/// Milliseconds between two checks of a pool while waiting for it.
const RETRY_MS: u8 = 10;

/// A question, and the node that it is about.
#[derive(Debug, Args)]
pub(crate) struct Offline {
    /// Directory that holds everything of the node
    #[arg(long)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, Subcommand)]
enum Question {
    /// Make a directory a pool
    MakePool { directory: PathBuf },
    /// Check a pool that nobody serves
    CheckPool {
        name: Name,
        #[arg(long)]
        repair: bool,
    },
    /// Why nobody serves the node's sockets, if its pools tell
    Absence,
    /// Wait for the daemon's end
    AwaitEnd {
        /// It does not answer: find it by its pools
        #[arg(long)]
        unreachable: bool,
    },
}

/// Carries out the request and writes the answer.
///
/// # Errors
/// The reason why there is no answer.
pub(crate) fn run(offline: Offline) -> Result<(), Error> {
    let layout = Layout::new(offline.root.as_deref())?;
    match offline.question {
        Question::MakePool { directory } => {
            archipelago_blocker_file::create(&directory)?;
            answer(&Done {})
        }
        Question::CheckPool { name, repair } => answer(&check_offline(&layout, &name, repair)?),
        Question::Absence => answer(&absence(&layout)),
        Question::AwaitEnd { unreachable } => {
            NodeLock::wait_free(&layout, END_TIMEOUT)?;
            let mut ended = Ended::default();
            if unreachable {
                ended.notes.extend(stop_found_by_pools(&layout)?);
                NodeLock::wait_free(&layout, END_TIMEOUT)?;
            }
            answer(&ended)
        }
    }
}

fn answer(answer: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(answer).expect("answers have string keys");
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Error::new(ErrorCode::Io, format!("standard output: {error}")))
}

/// The node that serves the pools of the node at `layout`, whose sockets are not served.
fn absence(layout: &Layout) -> Option<Error> {
    let config = Config::read(layout.config()).ok()?;
    let users = config.pools.values().map(PoolUser::of_pool);
    let nodes = users.filter_map(|user| match user {
        PoolUser::Node(node) => Some(node),
        PoolUser::Nobody | PoolUser::Process(_) => None,
    });
    // This node itself, if it serves any of them.
    let node = nodes.min_by_key(|node| node.run != layout.run())?;
    let (socket, command) = (layout.api_socket(), layout.command());
    let (socket, run) = (socket.display(), node.run.display());
    let unavailable = |message| Error::new(ErrorCode::Unavailable, message);
    Some(if node.run == layout.run() {
        unavailable(format!(
            "{socket} does not exist, but process {} (archipelagod) still serves this node: {run} was removed while the daemon was running",
            node.daemon,
        ))
        .with_hint(format!(
            "virtual machines that are connected go on; `{command} node stop` ends the daemon cleanly, \
             `{command} node start` then starts the next one"
        ))
    } else {
        unavailable(format!(
            "no node daemon serves {socket}; its pool is served by another node: process {} (archipelagod), with its sockets in {run}",
            node.daemon,
        ))
        .with_hint("name that node's root directory with --root, or stop that node first")
    })
}

/// Ends a daemon whose run directory was removed while it ran; only the locks of its pools still lead to it. Returns what was found.
fn stop_found_by_pools(layout: &Layout) -> Result<Vec<String>, Error> {
    let Ok(config) = Config::read(layout.config()) else {
        // Without a configuration, its pools are not known.
        return Ok(Vec::new());
    };
    let mut notes = Vec::new();
    for directory in config.pools.values().filter_map(PoolConfig::directory) {
        notes.extend(stop_found_by_pool(layout, directory)?);
    }
    Ok(notes)
}

/// Ends a daemon whose run directory was removed while it ran; only the pool's lock still leads to it. Waits until the kernel has closed
/// the files of a daemon that has died. Returns what was found.
fn stop_found_by_pool(layout: &Layout, directory: &Path) -> Result<Option<String>, Error> {
    let pool = directory.display();
    let deadline = SystemClock.now() + END_TIMEOUT;
    let release_deadline = SystemClock.now() + RELEASE_TIMEOUT;
    let mut stopping: Option<ServingNode> = None;
    let mut note = None;
    loop {
        let user = PoolUser::of(directory);
        let ends = stopping.as_ref().is_some_and(ServingNode::is_alive);
        match user {
            PoolUser::Nobody if !ends => return Ok(note),
            PoolUser::Node(node) if node.run != layout.run() => {
                return Ok(Some(format!(
                    "note: pool `{pool}` is served by another node, process {} with its sockets in {}, which goes on",
                    node.daemon,
                    node.run.display()
                )));
            }
            PoolUser::Node(node) if stopping.is_none() => {
                note = Some(format!(
                    "note: {} was removed while the daemon, process {}, was running: sending it SIGTERM",
                    node.run.display(),
                    node.daemon
                ));
                end(&node)?;
                stopping = Some(node);
            }
            PoolUser::Process(pid)
                if stopping.is_none() && SystemClock.now() >= release_deadline =>
            {
                let who =
                    pid.map_or_else(|| "a process".to_owned(), |pid| format!("process {pid}"));
                return Err(Error::new(
                    ErrorCode::Unavailable,
                    format!("{who} still has pool `{pool}` open, and no daemon to stop it"),
                )
                .with_hint(
                    "if it has ended, its last call on the storage has not returned; a process of another host or \
                     container is ended there",
                ));
            }
            PoolUser::Nobody | PoolUser::Node(_) | PoolUser::Process(_) => {}
        }
        if let Some(node) = &stopping
            && SystemClock.now() >= deadline
        {
            let message = format!(
                "process {} (archipelagod) has not stopped after {} s",
                node.daemon,
                END_TIMEOUT.as_secs()
            );
            return Err(Error::new(ErrorCode::Unavailable, message)
                .with_hint(format!("`kill -9 {}` ends it by force", node.daemon)));
        }
        let _interrupted = poll(&mut [], RETRY_MS);
    }
}

/// Sends a daemon the signal to stop.
fn end(node: &ServingNode) -> Result<(), Error> {
    let refused = |why: &str| {
        Error::new(
            ErrorCode::Denied,
            format!(
                "process {} (archipelagod) cannot be stopped: {why}",
                node.daemon
            ),
        )
        .with_hint(format!(
            "as its user or root: `kill {}` stops it cleanly",
            node.daemon
        ))
    };
    let Ok(pid) = i32::try_from(node.daemon) else {
        return Err(refused("no process has this number"));
    };
    match kill(Pid::from_raw(pid), Signal::SIGTERM) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(refused(errno.desc())),
    }
}
