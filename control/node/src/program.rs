//! The command line of the program `archipelagod`: as the daemon, and as the data processes that the daemon starts.
//!
//! It is a library, so that a test can build the same program with another backend: code that delays or fails on purpose is then in no
//! installed binary.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use archipelago_api::layout::{Layout, ROOT_VARIABLE};
use archipelago_blocker_file::Claim;
use archipelago_host::{PeerSettings, last_words};
use archipelago_protocol::check::Report;
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode};
use clap::{Args, Parser, Subcommand};
use nix::sys::stat::{Mode, umask};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::node_pool::NodePool;
use crate::offline::{self, Offline};
use crate::tool::{self, Tool};
use crate::{daemon, descriptors, file_size, logging};

/// Node daemon of Archipelago: serves a node until it is stopped. `archipelago node start` runs it in the background.
#[derive(Debug, Parser)]
#[command(name = "archipelagod", version, args_conflicts_with_subcommands = true)]
struct Options {
    /// Directory that holds everything of the node; without it /etc, /run and /var/lib/archipelago
    #[arg(long, value_name = "DIR", env = ROOT_VARIABLE)]
    root: Option<PathBuf>,
    /// Leave the terminal, and write a line to the standard output when requests are served
    #[arg(long, hide = true)]
    background: bool,
    /// Take the pool over from a node of another host, which has not released it and does not write to it any more
    #[arg(long)]
    take_over: bool,
    /// Write why it could not run to the standard output, as a JSON object
    #[arg(long)]
    json: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A data process, started by the daemon with its control socket as standard input
    #[command(hide = true)]
    Peer(PeerOptions),
    /// One answer for the command, while no daemon serves the node
    #[command(hide = true)]
    Offline(Offline),
    /// A foreign program for the command, confined
    #[command(hide = true)]
    Tool(Tool),
}

#[derive(Debug, Args)]
struct PeerOptions {
    #[arg(long)]
    parent: i32,
    #[arg(long)]
    settings: String,
    #[arg(long, value_parser = parse_role, required = true)]
    role: Vec<Role>,
}

/// The role and settings of a data process whose pool is of the kind `P`.
#[derive(Debug)]
pub struct DataProcess<P = NodePool> {
    /// Process id of the daemon that started it.
    pub parent: i32,
    /// Its roles.
    pub roles: Vec<Role>,
    /// Its settings.
    pub settings: PeerSettings<P>,
}

fn parse_role(text: &str) -> Result<Role, Error> {
    Role::ALL
        .into_iter()
        .find(|role| role.name() == text)
        .ok_or_else(|| Error::new(ErrorCode::Invalid, format!("`{text}` is not a role")))
}

/// Carries out the command line; `host` runs a data process.
pub fn run(host: impl FnOnce(DataProcess) -> Result<(), Error>) -> ExitCode {
    // Whatever umask it inherits: files are private, and usable by their owner.
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let options = Options::parse();
    let report = options.background || options.json || options.command.is_some();
    let result = match options.command {
        Some(Command::Peer(peer)) => run_peer(peer, host),
        Some(Command::Offline(offline)) => offline::run(offline),
        Some(Command::Tool(tool)) => tool::run(&tool),
        None => run_daemon(&options),
    };
    exit_code(result, report)
}

/// The exit code of a program. An error is logged, and, with `report`, written to the standard output.
fn exit_code(result: Result<(), Error>, report: bool) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                "{error}{}{}",
                if error.hint.is_empty() { "" } else { "; " },
                error.hint
            );
            if report {
                last_words::report(&error);
            }
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn run_daemon(options: &Options) -> Result<(), Error> {
    logging::start("archipelagod");
    descriptors::raise();
    file_size::raise();
    // A task of the daemon that panics ends alone, and its supervisor logs that; this hook logs where it panicked.
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        tracing::error!(
            "{}",
            last_words::of_panic(thread.name().unwrap_or("?"), panic)
        );
    }));
    if options.background {
        // Fails only for the leader of a process group, which has no terminal to leave.
        let _led = nix::unistd::setsid();
    }
    let claim = match options.take_over {
        true => Claim::TakeOver,
        false => Claim::Start,
    };
    daemon::run(Layout::new(options.root.as_deref())?, claim, || {
        if options.background {
            let reported =
                writeln!(std::io::stdout(), "ready").and_then(|()| std::io::stdout().flush());
            if let Err(error) = reported {
                tracing::debug!(
                    "the process that started the daemon has closed its output: {error}"
                );
            }
        }
    })
}

/// A program that contains the blocker of another kind of pool.
#[derive(Debug, Parser)]
struct BackendOptions {
    #[command(subcommand)]
    command: BackendCommand,
}

#[derive(Debug, Subcommand)]
enum BackendCommand {
    /// A data process, started by the daemon with its control socket as standard input
    Peer(PeerOptions),
    /// Make a pool, if it is none yet, and write what is known of it to the standard output
    MakePool {
        /// The pool, in JSON
        pool: String,
    },
    /// Check a pool that nobody serves, and write the report to the standard output
    CheckPool {
        /// Settings of a data process, in JSON
        settings: String,
        /// Delete what provably nobody needs
        #[arg(long)]
        repair: bool,
    },
}

/// Carries out the command line of a program that hosts the blocker of another kind of pool: `host` runs a data process, `make` makes a
/// pool, and `check` checks one, with or without repairs.
pub fn run_backend<P: DeserializeOwned, C: DeserializeOwned, A: Serialize>(
    host: impl FnOnce(DataProcess<P>) -> Result<(), Error>,
    make: impl FnOnce(C) -> Result<A, Error>,
    check: impl FnOnce(&PeerSettings<P>, bool) -> Result<Report, Error>,
) -> ExitCode {
    umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let result = match BackendOptions::parse().command {
        BackendCommand::Peer(peer) => run_peer(peer, host),
        BackendCommand::MakePool { pool } => {
            logging::start("make-pool");
            parse_settings(&pool)
                .and_then(make)
                .and_then(|made| answer(&made))
        }
        BackendCommand::CheckPool { settings, repair } => {
            logging::start("check-pool");
            parse_settings(&settings)
                .and_then(|settings| check(&settings, repair))
                .and_then(|report| answer(&report))
        }
    };
    exit_code(result, true)
}

/// Writes `answer` to the standard output, as JSON.
fn answer(answer: &impl Serialize) -> Result<(), Error> {
    let text = serde_json::to_string(answer).unwrap_or_default();
    writeln!(std::io::stdout(), "{text}")
        .map_err(|error| Error::new(ErrorCode::Io, format!("standard output: {error}")))
}

fn parse_settings<T: DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| {
        Error::new(
            ErrorCode::Invalid,
            format!("settings of a data process: {error}"),
        )
    })
}

fn run_peer<P: DeserializeOwned>(
    options: PeerOptions,
    host: impl FnOnce(DataProcess<P>) -> Result<(), Error>,
) -> Result<(), Error> {
    logging::start(match options.role.as_slice() {
        [Role::Endpoint] => "endpoint",
        [Role::Mapper] => "mapper",
        [Role::Blocker] => "blocker",
        _ => "data",
    });
    // The daemon's own limit, unless it has been changed since.
    descriptors::raise();
    file_size::raise();
    let settings = parse_settings(&options.settings)?;
    host(DataProcess {
        parent: options.parent,
        roles: options.role,
        settings,
    })
}
