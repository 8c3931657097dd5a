//! Programs that the daemon runs and waits for.

use std::ffi::OsStr;
use std::process::{Output, Stdio};
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode};
use tokio::process::Command;

/// Longest run time: a block device may have to write its dirty pages.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `program` until it ends; returns its standard output.
///
/// # Errors
/// [`ErrorCode::Unsupported`] if the program is not installed, [`ErrorCode::Io`] with its error output, [`ErrorCode::Unavailable`] if it
/// does not end.
pub(super) async fn run<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Result<String, Error> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output: Output = match tokio::time::timeout(TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => {
            return Err(Error::new(
                ErrorCode::Unsupported,
                format!("{program}: {error}"),
            ));
        }
        Err(_late) => {
            let seconds = TIMEOUT.as_secs();
            let message = format!("{program} has not ended within {seconds} s");
            return Err(Error::new(ErrorCode::Unavailable, message));
        }
    };
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(Error::new(ErrorCode::Io, text.trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
