//! Sources at an address: `curl` downloads them into an unnamed temporary file.

use std::ffi::OsStr;
use std::fs::File;

use archipelago_protocol::ids::VOLUME_SIZE_MAX;
use archipelago_protocol::{Error, ErrorCode};

use super::interrupt::Interrupt;
use super::spool::spool;
use super::tool::{self, Permissions, Tool};
use crate::output::Output;

/// What precedes the HTTP status in the last line of `curl`'s output.
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

/// Downloads the file at `address`.
pub(super) fn run(address: &str, interrupt: &Interrupt, output: Output) -> Result<File, Error> {
    let program = tool::find("curl", "curl", "or download the file first")?;
    let size_max = VOLUME_SIZE_MAX.to_string();
    let status = format!("%{{stderr}}{STATUS_MARK}%{{http_code}}\n");
    // A download that begins over TLS follows no redirection to plain HTTP.
    let redirections = match address.get(..6) {
        Some(scheme) if scheme.eq_ignore_ascii_case("https:") => "=https",
        _ => "=http,https",
    };
    let arguments = [
        // The user's configuration of curl is not read. This option must be the first.
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
        // A download that is slower than this for two minutes is ended.
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
        status => Err(failure(&tool.output(), address, &status.to_string())),
    }
}

/// Why a download failed, from the output of `curl`.
fn failure(text: &str, address: &str, ended: &str) -> Error {
    if let Some(error) = archipelago_protocol::last_words::decode(text.as_bytes()) {
        return error;
    }
    let status = text.lines().find_map(|line| line.strip_prefix(STATUS_MARK));
    let why = text.lines().find(|line| line.starts_with("curl: "));
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
        let text =
            "curl: (22) The requested URL returned error: 404\narchipelago-http-status:404\n";
        let error = failure(text, "http://host/disk", "exit status: 22");
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
