//! Programs of this project: `archipelagod`, and what only `archipelagod` can do while no daemon serves the node.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use archipelago_api::layout::{Layout, ROOT_VARIABLE};
use archipelago_protocol::{Error, ErrorCode, last_words};
use serde::de::DeserializeOwned;

/// The program of the daemon.
pub(super) fn command() -> Command {
    named("archipelagod")
}

/// The program `name` of this project: the one beside this program, else the one in `PATH`.
pub(super) fn named(name: &str) -> Command {
    let beside = std::env::current_exe()
        .ok()
        .map(|program| program.with_file_name(name));
    let program = beside
        .filter(|program| program.exists())
        .unwrap_or_else(|| PathBuf::from(name));
    let mut command = Command::new(program);
    command.env_remove(ROOT_VARIABLE);
    command
}

/// What the program answers to `arguments` about the node at `layout`, without a daemon.
///
/// # Errors
/// The error that the program reported, else how it ended.
pub(super) fn ask<T: DeserializeOwned>(layout: &Layout, arguments: &[&str]) -> Result<T, Error> {
    let failed = |what: String| Error::new(ErrorCode::Unavailable, what);
    let mut command = command();
    command.arg("offline");
    if let Some(root) = layout.root() {
        command.arg("--root").arg(root);
    }
    let output = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| failed(format!("starting archipelagod: {error}")))?;
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map_err(|error| {
            let message = format!("the answer of archipelagod is not understood: {error}");
            Error::new(ErrorCode::Internal, message)
                .with_hint("command and daemon must be of one version")
        });
    }
    let ended = || {
        let status = output.status;
        failed(format!(
            "archipelagod ended ({status}) before it could say why"
        ))
    };
    Err(last_words::decode(&output.stdout).unwrap_or_else(ended))
}

/// Why no process serves the sockets of the node at `layout`, if its pools show the reason.
pub(super) fn explain_absence(layout: &Layout) -> Option<Error> {
    ask::<Option<Error>>(layout, &["absence"]).ok().flatten()
}
