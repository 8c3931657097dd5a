//! Sources at an address: `curl` downloads them into an unnamed temporary file.

use std::ffi::OsStr;
use std::fs::File;

use archipelago_protocol::ids::VOLUME_SIZE_MAX;
use archipelago_protocol::{Error, ErrorCode};

use super::interrupt::Interrupt;
use super::spool::spool;
use super::tool::{self, Permissions, Tool};
use crate::output::Output;

/// What `curl` says at the end, before the status of HTTP.
const STATUS_MARK: &str = "archipelago-http-status:";

/// Whether `name` is an address of HTTP.
pub(super) fn is_address(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let begins = |with: &[u8]| {
        name.get(..with.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(with))
    };
    begins(b"http://") || begins(b"https://")
}

/// Downloads what is at `address`.
pub(super) fn run(address: &str, interrupt: &Interrupt, output: Output) -> Result<File, Error> {
    let program = tool::find("curl", "curl", "or download the file first")?;
    let size_max = VOLUME_SIZE_MAX.to_string();
    let status = format!("%{{stderr}}{STATUS_MARK}%{{http_code}}\n");
    // What was asked for over TLS is not fetched without.
    let redirections = match address.get(..6) {
        Some(scheme) if scheme.eq_ignore_ascii_case("https:") => "=https",
        _ => "=http,https",
    };
    let arguments = [
        // First: no configuration of the user's.
        "--disable",
        "--proto",
        "=http,https",
        "--proto-redir",
        redirections,
        "--location",
        "--max-redirs",
        "10",
        "--fail",
        "--silent",
        "--show-error",
        "--globoff",
        "--connect-timeout",
        "30",
        // Slower than this for two minutes is not going on.
        "--speed-limit",
        "1",
        "--speed-time",
        "120",
        "--max-filesize",
        &size_max,
        "--write-out",
        &status,
        "--",
        address,
    ]
    .map(str::to_owned);
    let mut tool = Tool::start(
        &program,
        &arguments,
        Permissions {
            network: true,
            ..Permissions::default()
        },
    )?;
    let file = spool(tool.stdout(), address, interrupt, output)?;
    match tool.wait(interrupt)? {
        status if status.success() => Ok(file),
        status => Err(failure(&tool.said(), address, &status.to_string())),
    }
}

/// Why a download failed, from what `curl` has said.
fn failure(said: &str, address: &str, ended: &str) -> Error {
    if let Some(error) = archipelago_protocol::last_words::decode(said.as_bytes()) {
        return error;
    }
    let status = said.lines().find_map(|line| line.strip_prefix(STATUS_MARK));
    let why = said.lines().find(|line| line.starts_with("curl: "));
    let why = why.map_or_else(|| format!("curl ended ({ended})"), str::to_owned);
    // `curl: (22) The requested URL returned error: 404`
    let why = why.split_once(") ").map_or(why.as_str(), |(_, why)| why);
    let code = match status {
        Some("404" | "410") => ErrorCode::NotFound,
        _ => ErrorCode::Unavailable,
    };
    Error::new(code, format!("{address}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_from_files_and_failures_named() {
        for (name, expected) in [
            ("http://host/disk", true),
            ("HTTPS://host/disk", true),
            ("ftp://host/disk", false),
            ("http:/host", false),
            ("./http://host", false),
            ("", false),
        ] {
            assert_eq!(is_address(OsStr::new(name)), expected, "{name}");
        }
        let said =
            "curl: (22) The requested URL returned error: 404\narchipelago-http-status:404\n";
        let error = failure(said, "http://host/disk", "exit status: 22");
        assert_eq!(error.code, ErrorCode::NotFound);
        assert_eq!(
            error.message,
            "http://host/disk: The requested URL returned error: 404"
        );
        let error = failure("archipelago-http-status:000\n", "http://h", "signal: 9");
        assert_eq!(error.message, "http://h: curl ended (signal: 9)");
        assert_eq!(error.code, ErrorCode::Unavailable);
    }
}
