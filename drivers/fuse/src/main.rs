//! `archipelago-fuse`: serves one mount. `archipelago mount` starts it.

#![forbid(unsafe_code)]

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_api::layout::{Layout, ROOT_VARIABLE};
use archipelago_fuse::{MountOptions, mount};
use archipelago_protocol::{Error, Name, last_words};
use archipelago_runtime::set_io_flusher;
use clap::Parser;

/// What a process in the background writes to its standard output when its mount is there.
const READY: &[u8] = b"ready\n";
/// How long requests wait for the node: longer than its stop (60 s), an update of its programs and its start (50 s) take together.
const WAIT_MAX_SECONDS: u64 = 300;

/// Serves the volumes, snapshots and images of a node as files in DIR, until it is unmounted.
#[derive(Debug, Parser)]
#[command(name = "archipelago-fuse", version)]
struct Options {
    /// Directory that holds everything of the node, also $ARCHIPELAGO_ROOT
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Give other users access
    #[arg(long)]
    allow_other: bool,
    /// Show only this volume, snapshot or image
    #[arg(long, value_name = "NAME")]
    only: Option<Name>,
    /// How long requests on open files wait for a node that is away, before they fail
    #[arg(long, value_name = "SECONDS", default_value_t = WAIT_MAX_SECONDS, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wait_max: u64,
    /// Print `ready` when the mount is there, or why it is not, for `archipelago mount`
    #[arg(long, hide = true)]
    background: bool,
    /// Where to mount
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

fn main() -> ExitCode {
    let options = Options::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        .init();
    let background = options.background;
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if background {
                report(format!("{}\n", last_words::encode(&error)).as_bytes());
            }
            tracing::error!("{error} ({})", error.hint);
            ExitCode::from(error.code.exit_code())
        }
    }
}

fn serve(options: Options) -> Result<(), Error> {
    if options.background {
        // The call fails for a process that leads a session already: it stays in its session.
        let _alone = nix::unistd::setsid();
    }
    // A single file may be the backing file of a block device to which this host writes back. Without this privilege there are no such
    // devices.
    if options.only.is_some()
        && let Err(error) = set_io_flusher()
    {
        tracing::debug!("PR_SET_IO_FLUSHER: {error}");
    }
    let root = options
        .root
        .or_else(|| std::env::var_os(ROOT_VARIABLE).map(PathBuf::from));
    let client = Client::new(Layout::new(root.as_deref())?);
    let mount_options = MountOptions {
        read_only: options.read_only,
        allow_other: options.allow_other,
        only: options.only,
        wait_max: Duration::from_secs(options.wait_max),
    };
    mount(client, &options.directory, mount_options, || {
        if options.background {
            report(READY);
        }
    })
}

/// Reports to the process that started this one. That process may have closed the pipe, which is not a failure.
fn report(what: &[u8]) {
    let mut stdout = std::io::stdout().lock();
    let _written = stdout.write_all(what).and_then(|()| stdout.flush());
}
