//! The program `archipelago-rados`: its path, and what it does for the daemon besides hosting peers.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use archipelago_api::config::RadosPool;
use archipelago_blocker_file::Claim;
use archipelago_host::PeerSettings;
use archipelago_protocol::check::Report;
use archipelago_protocol::{Error, ErrorCode, last_words};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::process::Command;

use crate::node_pool::{MakePool, NodePool};

/// Name of the program.
const NAME: &str = "archipelago-rados";
/// Longest time in which it may make a pool; each of its steps has its own timeout.
const MAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// The program's report of a pool that it has made.
#[derive(Debug, Deserialize)]
struct Made {
    fsid: String,
}

/// Path of the program: beside this program, else the one in `PATH`.
pub(crate) fn path() -> PathBuf {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name(NAME));
    beside
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from(NAME))
}

/// Makes a RADOS pool a pool of the node, unless it is one already, and checks that the node whose sockets are in `node` can use it.
/// Returns the pool, with the id of its cluster. `claim` is the right with which it will be opened.
///
/// # Errors
/// The error that the program reports, or that the program is not installed.
pub(crate) async fn make_pool(
    pool: RadosPool,
    node: &Path,
    claim: Claim,
) -> Result<RadosPool, Error> {
    let make = MakePool {
        rados: pool.clone(),
        node: node.to_owned(),
        claim,
    };
    let text = serde_json::to_string(&make).expect("settings have string keys");
    let child = Command::new(path())
        .arg("make-pool")
        .arg(text)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = match tokio::time::timeout(MAKE_TIMEOUT, child).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(not_started(&error)),
        Err(_late) => {
            let seconds = MAKE_TIMEOUT.as_secs();
            return Err(unavailable(format!(
                "{NAME} has no answer after {seconds} s"
            )));
        }
    };
    let made: Made = answer(&output)?;
    Ok(RadosPool {
        fsid: made.fsid,
        ..pool
    })
}

/// Checks the pool of `settings`, which is on RADOS and not served. With `repair`, deletes what is certainly not needed.
///
/// # Errors
/// The error that the program reports, or that the program is not installed. Damage is not an error: the report contains it.
pub(crate) fn check_pool(settings: &PeerSettings<NodePool>, repair: bool) -> Result<Report, Error> {
    let text = serde_json::to_string(settings).expect("settings have string keys");
    let mut command = std::process::Command::new(path());
    command.arg("check-pool").arg(text);
    if repair {
        command.arg("--repair");
    }
    let output = command.stdin(Stdio::null()).output();
    answer(&output.map_err(|error| not_started(&error))?)
}

fn unavailable(message: String) -> Error {
    Error::new(ErrorCode::Unavailable, message)
}

fn not_started(error: &std::io::Error) -> Error {
    unavailable(format!("{NAME} cannot be started: {error}"))
        .with_hint("it belongs beside archipelagod, and needs the package librados2")
}

/// The answer or the error that the program has written to its standard output.
fn answer<T: DeserializeOwned>(output: &Output) -> Result<T, Error> {
    if !output.status.success() {
        let ended = || unavailable(format!("{NAME} ended with {}", output.status));
        return Err(last_words::decode(&output.stdout).unwrap_or_else(ended));
    }
    serde_json::from_slice(&output.stdout)
        .map_err(|error| unavailable(format!("the answer of {NAME}: {error}")))
}
