//! `node run|start|stop|status`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use archipelago_node::api::types::{NodeStatus, Stopped};
use archipelago_node::client::{Client, Method};
use archipelago_node::config::{Config, Pool};
use archipelago_node::daemon::{NodeLock, PoolUser, ServingNode};
use archipelago_node::layout::{Layout, path_error};
use archipelago_node::logging::rotation;
use archipelago_protocol::{Error, ErrorCode, last_words};
use archipelago_runtime::{Clock, SystemClock};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;

use crate::options::{Node, Opening};
use crate::output::Output;

/// How long a daemon may take until it serves: recovery of the catalogue included.
const START_PATIENCE: Duration = Duration::from_secs(90);
/// How long a daemon that is stopping may take: it drains for 60 s, and three processes have some seconds to end.
const END_TIMEOUT: Duration = Duration::from_secs(100);
/// How long the kernel may take to close what a daemon's dead processes had open of the pool.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// Milliseconds between two looks at a pool that is waited for.
const RETRY_MS: u8 = 10;
/// What a daemon in the background says when it serves.
const READY: &[u8; 6] = b"ready\n";
/// Lines of the log that are shown when it does not.
const TAIL_LINES: usize = 12;

/// What `start` and `stop` say to scripts.
#[derive(Debug, Serialize)]
struct Running {
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// What a stop ended by force.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unfinished: Vec<String>,
}

pub(super) fn run(
    command: Node,
    layout: &Layout,
    client: &Client,
    output: Output,
) -> Result<(), Error> {
    match command {
        Node::Run(opening) => {
            let mut daemon = daemon(layout, opening);
            if output.is_json() {
                daemon.arg("--json");
            }
            let error = daemon.exec();
            Err(Error::new(
                ErrorCode::Internal,
                format!("archipelagod: {error}"),
            ))
        }
        Node::Start(opening) => start(layout, opening, output),
        Node::Stop => stop(layout, client, output),
        Node::Status => {
            let status: NodeStatus = client.get("/v1/node/status")?;
            output.print(&status, super::status::render)
        }
    }
}

/// The daemon's program: beside ours, else wherever `PATH` says.
fn daemon(layout: &Layout, opening: Opening) -> Command {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name("archipelagod"));
    let program = beside
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from("archipelagod"));
    let mut command = Command::new(program);
    command.env_remove(archipelago_node::layout::ROOT_VARIABLE);
    if let Some(root) = layout.root() {
        command.arg("--root").arg(root);
    }
    if opening.take_over {
        command.arg("--take-over");
    }
    command
}

fn start(layout: &Layout, opening: Opening, output: Output) -> Result<(), Error> {
    // Judged here, where the person who can mend it looks.
    Config::read(layout.config())?;
    let (log, from) = open_log(layout)?;
    let mut child = daemon(layout, opening)
        .arg("--background")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| {
            Error::new(
                ErrorCode::Unavailable,
                format!("starting archipelagod: {error}"),
            )
        })?;
    let beginning = await_ready(&mut child);
    if !matches!(beginning, Beginning::Ready) {
        return Err(not_started(layout, &mut child, beginning, from, output));
    }
    output.print(
        &Running {
            running: true,
            pid: Some(child.id()),
            unfinished: Vec::new(),
        },
        |_quiet| String::new(),
    )
}

fn open_log(layout: &Layout) -> Result<(File, u64), Error> {
    let path = layout.log();
    let failed = |error: std::io::Error| path_error(&path, &error);
    layout.make_directories()?;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > rotation::LEN_MAX) {
        std::fs::rename(&path, rotation::predecessor(&path)).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let len = file.metadata().map_err(failed)?.len();
    Ok((file, len))
}

/// What became of a daemon that was started.
#[derive(Debug)]
enum Beginning {
    Ready,
    /// It closed its output: it is about to exit. What it said before, if it could.
    Ended(Option<Error>),
    Late,
}

/// Waits until the daemon says that it serves, ends, or takes too long.
fn await_ready(child: &mut Child) -> Beginning {
    let Some(mut stdout) = child.stdout.take() else {
        return Beginning::Late;
    };
    let patience = PollTimeout::try_from(START_PATIENCE).unwrap_or(PollTimeout::MAX);
    let mut descriptors = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut descriptors, patience), Ok(1..)) {
        return Beginning::Late;
    }
    let mut word = [0; READY.len()];
    let mut said = Vec::new();
    match stdout.read_exact(&mut word) {
        Ok(()) if word == *READY => return Beginning::Ready,
        Ok(()) => said.extend(word),
        // Shorter than the word: nothing that could be heard.
        Err(_ended) => return Beginning::Ended(None),
    }
    match stdout.take(last_words::LEN_MAX).read_to_end(&mut said) {
        Ok(_) => Beginning::Ended(last_words::decode(&said)),
        Err(_lost) => Beginning::Ended(None),
    }
}

/// Why the daemon did not start: in its own words, or else what its log ends with.
fn not_started(
    layout: &Layout,
    child: &mut Child,
    beginning: Beginning,
    from: u64,
    output: Output,
) -> Error {
    let why = match beginning {
        Beginning::Ended(Some(error)) => {
            let _reaped = child.wait();
            return error;
        }
        Beginning::Late => {
            let _gone = child.kill();
            format!("it did not serve within {} s", START_PATIENCE.as_secs())
        }
        Beginning::Ended(None) | Beginning::Ready => match child.wait() {
            Ok(status) => format!("it ended ({status}) before it could say why"),
            Err(error) => format!("it ended: {error}"),
        },
    };
    let _reaped = child.wait();
    let ending = tail(layout, from);
    let log = layout.log();
    if let Err(error) = log_line(&log, &format!("archipelagod did not start: {why}")) {
        return Error::new(
            ErrorCode::Unavailable,
            format!(
                "the node daemon did not start: {why}; its log could not be written: {}: {error}",
                log.display()
            ),
        )
        .with_hint(format!("make room for {} and start again", log.display()));
    }
    output.note(&ending.join("\n"));
    Error::new(
        ErrorCode::Unavailable,
        format!("the node daemon did not start: {why}"),
    )
    .with_hint(format!("its log: {}", layout.log().display()))
}

/// Says in the log what the daemon could not: and so finds out whether anything can be written there.
fn log_line(log: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(log)?;
    file.write_all(format!("{line}\n").as_bytes())
}

fn tail(layout: &Layout, from: u64) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(layout.log()).and_then(|mut file| {
        // One that is shorter now was cut meanwhile.
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(if from <= len { from } else { 0 }))?;
        file.take(rotation::LEN_MAX).read_to_end(&mut text)
    });
    if let Err(error) = read {
        return vec![format!("{}: {error}", layout.log().display())];
    }
    let lines: Vec<String> = String::from_utf8_lossy(&text)
        .lines()
        .map(str::to_owned)
        .collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].to_vec()
}

fn stop(layout: &Layout, client: &Client, output: Output) -> Result<(), Error> {
    let asked: Result<Stopped, Error> = client.call(Method::Post, "/v1/node/stop", &());
    let unfinished = match asked {
        Ok(Stopped { unfinished }) => unfinished,
        // Nobody there is what was asked for; a daemon that is just ending is waited for below.
        Err(error) if error.code == ErrorCode::Unavailable => {
            NodeLock::wait_free(layout, END_TIMEOUT)?;
            stop_found_by_pool(layout, output)?;
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    NodeLock::wait_free(layout, END_TIMEOUT)?;
    for line in &unfinished {
        output.note(line);
    }
    output.print(
        &Running {
            running: false,
            pid: None,
            unfinished,
        },
        |_quiet| String::new(),
    )
}

/// Ends a daemon whose run directory was removed under it, which only the pool's lock still knows; waits until the kernel has
/// closed what a daemon that has died had open.
fn stop_found_by_pool(layout: &Layout, output: Output) -> Result<(), Error> {
    let Ok(config) = Config::read(layout.config()) else {
        // Nothing says which pool would be served.
        return Ok(());
    };
    let Pool::File { directory, .. } = config.pool().1;
    let pool = directory.display();
    let deadline = SystemClock.now() + END_TIMEOUT;
    let release_deadline = SystemClock.now() + RELEASE_TIMEOUT;
    let mut stopping: Option<ServingNode> = None;
    loop {
        let user = PoolUser::of(directory);
        let ends = stopping.as_ref().is_some_and(ServingNode::is_alive);
        match user {
            PoolUser::Nobody if !ends => return Ok(()),
            PoolUser::Node(node) if node.run != layout.run() => {
                output.note(&format!(
                    "note: pool `{pool}` is served by another node, process {} with its sockets in {}, which goes on",
                    node.daemon,
                    node.run.display()
                ));
                return Ok(());
            }
            PoolUser::Node(node) if stopping.is_none() => {
                output.note(&format!(
                    "note: {} was removed under the daemon, process {}: it is told to stop by a signal",
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

/// Tells a daemon to stop, by the signal for that.
fn end(node: &ServingNode) -> Result<(), Error> {
    let refused = |why: &str| {
        Error::new(
            ErrorCode::Denied,
            format!(
                "process {} (archipelagod) cannot be told to stop: {why}",
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
