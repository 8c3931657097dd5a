//! `archipelago init`: creates the configuration of a new node, its directories and its first pool.
//!
//! Invariant: a configuration that exists is never overwritten. The configuration is created last, so an attempt that failed
//! before can be repeated.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use archipelago_protocol::{Error, ErrorCode};

use super::{
    CHANNEL_MEMORY_MIB, CHANNEL_REQUESTS, Config, DEFAULT_POOL, DataPath, POLL_US, Placement,
    SUBMISSION_CHUNK,
};
use crate::layout::{Layout, make_directory, path_error};

/// Options of a new node.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Directory of the pool `default`; `None`: the one of the layout.
    pub pool_dir: Option<PathBuf>,
    /// Which peers share a process.
    pub placement: Placement,
}

/// Creates the directories (0700) and writes the configuration, which must not exist yet. `make_pool` initialises a directory
/// as a pool, and leaves a directory unchanged that is a pool already.
///
/// # Errors
/// [`ErrorCode::Exists`] if there is a configuration; [`ErrorCode::Invalid`] if the pool directory is not UTF-8;
/// [`ErrorCode::Io`] and [`ErrorCode::NoSpace`] naming the path; what `make_pool` returns.
pub fn init(
    layout: &Layout,
    options: &InitOptions,
    make_pool: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<Config, Error> {
    let pool = match &options.pool_dir {
        Some(dir) => std::path::absolute(dir).map_err(|error| path_error(dir, &error))?,
        None => layout.default_pool(),
    };
    let Some(pool_text) = pool.to_str() else {
        return Err(Error::new(
            ErrorCode::Invalid,
            format!("pool directory `{}` is not UTF-8", pool.display()),
        ));
    };
    let path = layout.config();
    if path.exists() {
        return Err(already_configured(path));
    }
    if let Some(parent) = path.parent() {
        make_directory(parent)?;
    }
    layout.make_directories()?;
    make_pool(&pool)?;
    let text = render(options.placement, pool_text);
    let config = Config::parse(&text)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| {
            if error.kind() == ErrorKind::AlreadyExists {
                already_configured(path)
            } else {
                path_error(path, &error)
            }
        })?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| path_error(path, &error))?;
    Ok(config)
}

fn already_configured(path: &Path) -> Error {
    Error::new(
        ErrorCode::Exists,
        format!("there is a configuration already: {}", path.display()),
    )
    .with_hint("edit it, or choose another root directory")
}

/// The configuration as text, with a comment for each key.
fn render(placement: Placement, pool: &str) -> String {
    let DataPath {
        poll_us,
        submission_chunk,
        channel_requests,
        channel_memory_mib,
    } = DataPath::default();
    let pool = toml::Value::String(pool.to_owned());
    format!(
        "# Configuration of an Archipelago node. Unknown keys and values out of range are refused.

# Where the peers run: \"fused\" (one data process) or \"split\" (a process each, over shared-memory channels).
placement = \"{placement}\"

[data]
# An idle data thread polls for up to this many microseconds before it sleeps ({POLL_US:?}). It polls only if that has paid off.
poll_us = {poll_us}
# Requests submitted to the kernel at once: {SUBMISSION_CHUNK:?}.
submission_chunk = {submission_chunk}
# Requests in flight on a channel between two peers: a power of two in {CHANNEL_REQUESTS:?}.
channel_requests = {channel_requests}
# MiB of the memory that each channel has for bounce buffers and metadata: {CHANNEL_MEMORY_MIB:?}.
channel_memory_mib = {channel_memory_mib}

# `user`: the endpoint process, to which guests connect, runs as this user (name or number). This needs placement = \"split\"
# and a daemon that runs as root. `group`: its members may connect to the sockets of volumes, like that user and root.
#[endpoint]
#user = \"archipelago\"
#group = \"kvm\"

[pool.{DEFAULT_POOL}]
kind = \"file\"
directory = {pool}
# `false`: use the page cache although the file system supports O_DIRECT; `node status` shows which access is in use.
#direct = true
"
    )
}
