//! `archipelago init`: creates the configuration of a new node, its directories and its first pool.
//!
//! Invariant: an existing configuration is never overwritten. It is created last, complete and durable, so `init` can be repeated after a
//! failure or a crash.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use archipelago_protocol::{Error, ErrorCode};

use super::{
    CHANNEL_MEMORY_MIB, CHANNEL_REQUESTS, Config, DEFAULT_POOL, DataPath, POLL_US, Placement,
    SUBMISSION_CHUNK, THREADS,
};
use crate::durable;
use crate::layout::{Layout, make_directory, path_error};

/// Options of a new node.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Directory of the pool `default`; default: the pool directory of the layout.
    pub pool_dir: Option<PathBuf>,
    /// Which peers share a process.
    pub placement: Placement,
}

/// Creates the directories (0700) and writes the configuration, which must not exist yet. `make_pool` initialises a directory
/// as a pool, and does nothing if the directory is already a pool.
///
/// # Errors
/// [`ErrorCode::Exists`] if there is a configuration; [`ErrorCode::Invalid`] if the pool directory is not UTF-8; [`ErrorCode::Io`] and
/// [`ErrorCode::NoSpace`] with the path; the error of `make_pool`.
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
    durable::create(path, text.as_bytes()).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => already_configured(path),
        _ => path_error(path, &error),
    })?;
    Ok(config)
}

fn already_configured(path: &Path) -> Error {
    Error::new(
        ErrorCode::Exists,
        format!("the configuration {} exists already", path.display()),
    )
    .with_hint("edit it, or choose another root directory")
}

/// The configuration as text, with a comment for each key.
fn render(placement: Placement, pool: &str) -> String {
    let DataPath {
        threads,
        cpus: _none,
        poll_us,
        submission_chunk,
        channel_requests,
        channel_memory_mib,
    } = DataPath::default();
    let [
        threads_range,
        poll_us_range,
        submission_chunk_range,
        channel_requests_range,
        channel_memory_mib_range,
    ] = [
        THREADS,
        POLL_US,
        SUBMISSION_CHUNK,
        CHANNEL_REQUESTS,
        CHANNEL_MEMORY_MIB,
    ]
    .map(|range| format!("{} to {}", range.start(), range.end()));
    let pool = toml::Value::String(pool.to_owned());
    format!(
        "# Configuration of an Archipelago node. Unknown keys and values out of range are refused.

# Where the peers run: \"fused\" (one data process) or \"split\" (a process each, over shared-memory channels).
placement = \"{placement}\"

[data]
# Data threads of each pool of files ({threads_range}), in the placement \"fused\". Volumes are spread over the threads; one volume stays on one.
threads = {threads}
# CPUs that the threads are bound to, in turn.
#cpus = [0, 1]
# An idle data thread polls for up to this many microseconds before it sleeps ({poll_us_range}). It polls only while polling has recently
# shortened waits.
poll_us = {poll_us}
# Largest batch of requests for one call into the kernel ({submission_chunk_range}).
submission_chunk = {submission_chunk}
# Requests in flight on a shared-memory channel between two peers: a power of two ({channel_requests_range}).
channel_requests = {channel_requests}
# MiB of memory that each such channel has for copies of data and for metadata ({channel_memory_mib_range}).
channel_memory_mib = {channel_memory_mib}

# `user`: the endpoint process, to which guests connect, runs as this user (name or number). This needs placement = \"split\"
# and a daemon that runs as root. `group`: its members may connect to the sockets of volumes, like that user and root.
#[endpoint]
#user = \"archipelago\"
#group = \"kvm\"

[pool.{DEFAULT_POOL}]
kind = \"file\"
directory = {pool}
# `false`: use the page cache even if the file system supports O_DIRECT; `node status` shows whether direct or cached I/O is used.
#direct = true
"
    )
}
