//! `archipelago init`: a fresh configuration and its directories.

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

/// What a fresh node shall be.
#[derive(Debug, Clone, Default)]
pub struct InitOptions {
    /// Directory of the pool `default`.
    pub pool_dir: Option<PathBuf>,
    /// Where the peers run.
    pub placement: Placement,
}

/// Creates the directories (0700) and writes the configuration, which must not be there yet. `make_pool` makes a directory a
/// pool, or leaves it as it is if it is one.
///
/// # Errors
/// [`ErrorCode::Exists`] if there is a configuration; [`ErrorCode::Io`] and [`ErrorCode::NoSpace`] naming the path.
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
        return Err(exists(path));
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
                exists(path)
            } else {
                path_error(path, &error)
            }
        })?;
    file.write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .map_err(|error| path_error(path, &error))?;
    Ok(config)
}

fn exists(path: &Path) -> Error {
    Error::new(
        ErrorCode::Exists,
        format!("there is a configuration already: {}", path.display()),
    )
    .with_hint("edit it, or choose another root directory")
}

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
# Microseconds that an idle data thread polls before it sleeps, at most: {POLL_US:?}. It polls where that has paid.
poll_us = {poll_us}
# Requests handed to the kernel at once: {SUBMISSION_CHUNK:?}.
submission_chunk = {submission_chunk}
# Requests in flight on a channel between two peers: a power of two in {CHANNEL_REQUESTS:?}.
channel_requests = {channel_requests}
# MiB of memory of a channel of its own, for bounce buffers and metadata: {CHANNEL_MEMORY_MIB:?}.
channel_memory_mib = {channel_memory_mib}

# A user of its own for the endpoint, which is what guests talk to: by name or number; only with placement = \"split\" and
# a daemon of root. `group`: whose members may connect to the sockets of volumes, beside that user and root.
#[endpoint]
#user = \"archipelago\"
#group = \"kvm\"

[pool.{DEFAULT_POOL}]
kind = \"file\"
directory = {pool}
# `false`: through the page cache although the file system takes O_DIRECT; `node status` shows which access is in use.
#direct = true
"
    )
}
