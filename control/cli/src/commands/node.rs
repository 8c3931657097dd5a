//! `node run|start|stop|status`.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use archipelago_api::client::{Client, Method};
use archipelago_api::config::Config;
use archipelago_api::layout::{LOG_LEN_MAX, Layout, path_error};
use archipelago_api::pools::PoolList;
use archipelago_api::types::{Ended, NodeStatus, Stopped};
use archipelago_protocol::{Error, ErrorCode, last_words};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;

use super::program;
use crate::options::{Node, Opening};
use crate::output::Output;

/// How long a daemon may take until it serves, including recovery of the catalogue.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// What a daemon in the background writes to its standard output when it serves.
const READY: &[u8; 6] = b"ready\n";
/// Lines of the log that are shown if it does not start.
const TAIL_LINES: usize = 12;

/// The JSON object that `start` and `stop` print.
#[derive(Debug, Serialize)]
struct Running {
    running: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// What a forced stop has interrupted.
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
        Node::Start(opening) => start(layout, client, opening, output),
        Node::Stop => stop(layout, client, output),
        Node::Status => {
            let status: NodeStatus = client.get("/v1/node/status")?;
            output.print(&status, super::status::render)
        }
    }
}

/// The command that runs the daemon in the foreground.
fn daemon(layout: &Layout, opening: Opening) -> Command {
    let mut command = program::command();
    if let Some(root) = layout.root() {
        command.arg("--root").arg(root);
    }
    if opening.take_over {
        command.arg("--take-over");
    }
    command
}

fn start(layout: &Layout, client: &Client, opening: Opening, output: Output) -> Result<(), Error> {
    // Validated here too, so that a mistake is reported to the person who runs this command.
    let config = Config::read(layout.config())?;
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
    note_unserved(&config, client, output);
    output.print(
        &Running {
            running: true,
            pid: Some(child.id()),
            unfinished: Vec::new(),
        },
        |_quiet| String::new(),
    )
}

/// Prints which pools a node of several pools does not serve.
fn note_unserved(config: &Config, client: &Client, output: Output) {
    if config.pools.len() < 2 {
        return;
    }
    // A daemon that has ended meanwhile has reported the reason in its log.
    let Ok(list) = client.get::<PoolList>("/v1/pools") else {
        return;
    };
    for pool in &list.pools {
        if let Some(why) = &pool.status.unserved {
            let name = &pool.status.name;
            output.note(&format!(
                "note: pool `{name}` is not served, and tried again: {why}"
            ));
        }
    }
}

fn open_log(layout: &Layout) -> Result<(File, u64), Error> {
    let path = layout.log();
    let failed = |error: std::io::Error| path_error(&path, &error);
    layout.make_directories()?;
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_LEN_MAX) {
        std::fs::rename(&path, layout.former_log()).map_err(failed)?;
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
    /// It closed its output, and is about to exit. The error that it reported, if it did.
    Ended(Option<Error>),
    Late,
}

/// Waits until the daemon reports that it serves, or ends, or exceeds the timeout.
fn await_ready(child: &mut Child) -> Beginning {
    let Some(mut stdout) = child.stdout.take() else {
        return Beginning::Late;
    };
    let timeout = PollTimeout::try_from(START_TIMEOUT).unwrap_or(PollTimeout::MAX);
    let mut descriptors = [PollFd::new(stdout.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut descriptors, timeout), Ok(1..)) {
        return Beginning::Late;
    }
    let mut word = [0; READY.len()];
    let mut text = Vec::new();
    match stdout.read_exact(&mut word) {
        Ok(()) if word == *READY => return Beginning::Ready,
        Ok(()) => text.extend(word),
        // An output this short is not an error report.
        Err(_ended) => return Beginning::Ended(None),
    }
    match stdout.take(last_words::LEN_MAX).read_to_end(&mut text) {
        Ok(_) => Beginning::Ended(last_words::decode(&text)),
        Err(_lost) => Beginning::Ended(None),
    }
}

/// Why the daemon did not start: the error that it reported, or else the end of its log.
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
            format!("it did not serve within {} s", START_TIMEOUT.as_secs())
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

/// Writes to the log in place of a daemon that could not; fails if the log cannot be written.
fn log_line(log: &Path, line: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(log)?;
    file.write_all(format!("{line}\n").as_bytes())
}

fn tail(layout: &Layout, from: u64) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(layout.log()).and_then(|mut file| {
        // A log that is shorter now was truncated meanwhile.
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(if from <= len { from } else { 0 }))?;
        file.take(LOG_LEN_MAX).read_to_end(&mut text)
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
    let (unfinished, ended): (_, Ended) = match asked {
        Ok(Stopped { unfinished }) => (unfinished, program::ask(layout, &["await-end"])?),
        // No daemon: the wanted state. A daemon that is ending is waited for.
        Err(error) if error.code == ErrorCode::Unavailable => (
            Vec::new(),
            program::ask(layout, &["await-end", "--unreachable"])?,
        ),
        Err(error) => return Err(error),
    };
    for line in ended.notes.iter().chain(&unfinished) {
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
