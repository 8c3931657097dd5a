//! The configuration file: it is parsed into checked types here, so other modules handle no strings.
//!
//! Unknown keys, wrong types and values out of range are refused; the error contains the key, the value and the valid range.

mod account;
mod edit;
mod endpoint;
mod init;
mod rados;
mod section;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use archipelago_protocol::{Error, ErrorCode, Name};
use serde::{Deserialize, Serialize};

use crate::layout::path_error;
pub use account::Account;
pub use edit::{with_pool, without_pool};
pub use endpoint::Endpoint;
pub use init::{InitOptions, init};
pub use rados::{DEFAULT_CLIENT, RadosPool};
use section::Section;

/// Name of the pool of a new node.
pub const DEFAULT_POOL: &str = "default";
/// Valid `data.threads`: a thread has an arena for each of its channels, and a copy of the catalogue.
pub const THREADS: RangeInclusive<u32> = 1..=16;
/// Valid numbers in `data.cpus`: those of a CPU set of the C library.
pub const CPU: RangeInclusive<u32> = 0..=1023;
/// Valid `data.poll_us`. Spinning for more than a millisecond only wastes CPU time.
pub const POLL_US: RangeInclusive<u32> = 0..=1000;
/// Valid `data.submission_chunk`.
pub const SUBMISSION_CHUNK: RangeInclusive<u32> = 1..=64;
/// Valid `data.channel_requests`, powers of two: the tag of a request has 16 bits for the slot.
pub const CHANNEL_REQUESTS: RangeInclusive<u32> = 16..=4096;
/// Valid `data.channel_memory_mib`.
pub const CHANNEL_MEMORY_MIB: RangeInclusive<u32> = 1..=1024;
/// Most pools of a node: each has its data processes, and each request to the node may need a connection to each pool.
pub const POOLS_MAX: usize = 64;
/// Largest configuration file that is read, in bytes.
const FILE_LEN_MAX: u64 = 1 << 20;
/// What to do about an invalid configuration.
pub const CORRECT_IT: &str =
    "correct it, or move it away and let `archipelago init` write a fresh one";

/// Where the peers run.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Placement {
    /// Endpoint, mapper and blocker in one thread of one process.
    #[default]
    Fused,
    /// A process each, over shared-memory channels.
    Split,
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Placement::Fused => "fused",
            Placement::Split => "split",
        })
    }
}

impl FromStr for Placement {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "fused" => Ok(Placement::Fused),
            "split" => Ok(Placement::Split),
            _ => Err(Error::new(
                ErrorCode::Invalid,
                format!("placement `{text}` is none of: fused, split"),
            )),
        }
    }
}

/// Knobs of the data path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPath {
    /// Data threads of each pool of files, in the fused placement: each serves some of the volumes. Any other process has one.
    pub threads: u32,
    /// CPUs that data threads are bound to, in turn; none: to no CPU.
    pub cpus: Vec<u32>,
    /// Microseconds that an idle data thread polls before it sleeps, at most: where that has paid.
    pub poll_us: u32,
    /// Requests handed to the kernel at once: a whole kick at once makes device and server take turns.
    pub submission_chunk: u32,
    /// Requests in flight on a channel between two peers.
    pub channel_requests: u32,
    /// MiB of a channel's own memory: bounce buffers and metadata.
    pub channel_memory_mib: u32,
}

impl Default for DataPath {
    fn default() -> Self {
        DataPath {
            threads: 1,
            cpus: Vec::new(),
            poll_us: 50,
            submission_chunk: 8,
            channel_requests: 1024,
            channel_memory_mib: 64,
        }
    }
}

/// A configured pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum PoolConfig {
    /// Container files of a directory.
    File {
        /// The directory.
        directory: PathBuf,
        /// Whether to use `O_DIRECT` where the file system takes it.
        direct: bool,
    },
    /// Objects of a RADOS pool.
    Rados(RadosPool),
}

/// The configuration of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the peers run.
    pub placement: Placement,
    /// Knobs of the data path.
    pub data: DataPath,
    /// The user of the endpoint's process, if it has one of its own.
    pub endpoint: Option<Endpoint>,
    /// The pools by name.
    pub pools: BTreeMap<Name, PoolConfig>,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if there is none, [`ErrorCode::Invalid`] with key, value and valid range.
    pub fn read(path: &Path) -> Result<Config, Error> {
        let at = path.display();
        let long = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() > FILE_LEN_MAX);
        if long {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("{at}: longer than {FILE_LEN_MAX} bytes"),
            )
            .with_hint(CORRECT_IT));
        }
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorCode::NotFound,
                format!("there is no configuration {at}"),
            )
            .with_hint(
                "`archipelago init` writes one; `--root DIR` or $ARCHIPELAGO_ROOT sets where",
            ),
            std::io::ErrorKind::InvalidData => {
                Error::new(ErrorCode::Invalid, format!("{at}: not UTF-8 text"))
                    .with_hint(CORRECT_IT)
            }
            _ => path_error(path, &error),
        })?;
        Config::parse(&text).map_err(|error| Error {
            message: format!("{at}: {}", error.message),
            hint: CORRECT_IT.to_owned(),
            ..error
        })
    }

    /// Checks the text of a configuration.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] with key, value and valid range.
    pub fn parse(text: &str) -> Result<Config, Error> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| syntax(text, &error))?;
        let mut top = Section::new(String::new(), table);
        let placement = match top.string("placement")? {
            None => Placement::default(),
            Some(text) => match text.parse() {
                Ok(placement) => placement,
                Err(_unknown) => {
                    return Err(top.invalid_value(
                        "placement",
                        &format!("\"{text}\""),
                        "\"fused\" or \"split\"",
                    ));
                }
            },
        };
        let data = match top.subsection("data")? {
            None => DataPath::default(),
            Some(section) => data_path(section)?,
        };
        let endpoint = top
            .subsection("endpoint")?
            .map(Endpoint::parse)
            .transpose()?;
        if let (Some(endpoint), Placement::Fused) = (&endpoint, placement) {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "endpoint.user = {} needs placement = \"{}\": in \"{placement}\" the endpoint has no process of its own",
                    endpoint.user,
                    Placement::Split
                ),
            ));
        }
        if data.threads > 1 && placement == Placement::Split {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "data.threads = {} needs placement = \"{}\": in \"{placement}\" each process has one data thread",
                    data.threads,
                    Placement::Fused
                ),
            ));
        }
        let mut pools = BTreeMap::new();
        if let Some(section) = top.subsection("pool")? {
            for (name, section) in section.into_sections()? {
                let name: Name = name.parse().map_err(|error: Error| {
                    Error::new(
                        ErrorCode::Invalid,
                        format!("key `pool.{name}`: {}", error.message),
                    )
                })?;
                pools.insert(name, pool(section)?);
            }
        }
        top.finish(&["placement", "data", "endpoint", "pool"])?;
        check_pools(&pools)?;
        Ok(Config {
            placement,
            data,
            endpoint,
            pools,
        })
    }

    /// The pool that is used if none is named: the only one, or the one named [`DEFAULT_POOL`].
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if there are several pools and none has that name.
    pub fn default_pool(&self) -> Result<&Name, Error> {
        default_pool(self.pools.keys())
    }
}

/// The pool of `pools` that is used if none is named: the only one, or the one named [`DEFAULT_POOL`].
///
/// # Errors
/// [`ErrorCode::Invalid`] if there are several pools and none has that name.
pub fn default_pool<'a>(pools: impl Iterator<Item = &'a Name> + Clone) -> Result<&'a Name, Error> {
    let mut all = pools.clone();
    if let (Some(only), None) = (all.next(), all.next()) {
        return Ok(only);
    }
    let names = || pools.clone().map(|name| format!("`{name}`"));
    pools
        .clone()
        .find(|name| name.as_str() == DEFAULT_POOL)
        .ok_or_else(|| {
            let message = format!(
                "a pool must be named: this node has {}, and none is named `{DEFAULT_POOL}`",
                names().collect::<Vec<_>>().join(", ")
            );
            Error::new(ErrorCode::Invalid, message).with_hint("give --pool NAME")
        })
}

impl PoolConfig {
    /// The directory of the pool, if it consists of files.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            PoolConfig::File { directory, .. } => Some(directory),
            PoolConfig::Rados(_) => None,
        }
    }

    /// Its location for people: the directory, or `rados:POOL/NAMESPACE`.
    #[must_use]
    pub fn place(&self) -> PathBuf {
        match self {
            PoolConfig::File { directory, .. } => directory.clone(),
            PoolConfig::Rados(rados) => rados.place().into(),
        }
    }

    /// Its kind, as written in the configuration.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            PoolConfig::File { .. } => "file",
            PoolConfig::Rados(_) => "rados",
        }
    }

    /// Whether this pool is inside `other`.
    fn is_inside(&self, other: &PoolConfig) -> bool {
        match (self, other) {
            (PoolConfig::Rados(one), PoolConfig::Rados(other)) => one.overlaps(other),
            _ => match (self.directory(), other.directory()) {
                (Some(one), Some(other)) => one.starts_with(other),
                _ => false,
            },
        }
    }
}

fn data_path(mut section: Section) -> Result<DataPath, Error> {
    let standard = DataPath::default();
    let data = DataPath {
        threads: section
            .integer("threads", THREADS)?
            .unwrap_or(standard.threads),
        cpus: section.integers("cpus", CPU)?.unwrap_or(standard.cpus),
        poll_us: section
            .integer("poll_us", POLL_US)?
            .unwrap_or(standard.poll_us),
        submission_chunk: section
            .integer("submission_chunk", SUBMISSION_CHUNK)?
            .unwrap_or(standard.submission_chunk),
        channel_requests: section
            .integer("channel_requests", CHANNEL_REQUESTS)?
            .unwrap_or(standard.channel_requests),
        channel_memory_mib: section
            .integer("channel_memory_mib", CHANNEL_MEMORY_MIB)?
            .unwrap_or(standard.channel_memory_mib),
    };
    if !data.channel_requests.is_power_of_two() {
        let expected = format!(
            "a power of two from {} to {}",
            CHANNEL_REQUESTS.start(),
            CHANNEL_REQUESTS.end()
        );
        return Err(section.invalid_value(
            "channel_requests",
            &data.channel_requests.to_string(),
            &expected,
        ));
    }
    section.finish(&[
        "threads",
        "cpus",
        "poll_us",
        "submission_chunk",
        "channel_requests",
        "channel_memory_mib",
    ])?;
    Ok(data)
}

fn pool(mut section: Section) -> Result<PoolConfig, Error> {
    match section.string("kind")?.as_deref() {
        Some("file") => {}
        Some("rados") => return RadosPool::parse(section).map(PoolConfig::Rados),
        Some(other) => {
            let value = format!("\"{other}\"");
            return Err(section.invalid_value("kind", &value, "\"file\" or \"rados\""));
        }
        None => return Err(section.missing("kind", "\"file\" or \"rados\"")),
    }
    let Some(directory) = section.string("directory")? else {
        return Err(section.missing("directory", "an absolute path"));
    };
    if !directory.starts_with('/') {
        return Err(section.invalid_value(
            "directory",
            &format!("\"{directory}\""),
            "an absolute path",
        ));
    }
    let direct = section.boolean("direct")?.unwrap_or(true);
    section.finish(&["kind", "directory", "direct"])?;
    Ok(PoolConfig::File {
        directory: directory.into(),
        direct,
    })
}

/// Refuses a node without pools, or with more than it can serve, and pools inside one another.
fn check_pools(pools: &BTreeMap<Name, PoolConfig>) -> Result<(), Error> {
    if pools.is_empty() || pools.len() > POOLS_MAX {
        return Err(Error::new(
            ErrorCode::Invalid,
            format!(
                "section `pool`: {} pools; legal: 1 to {POOLS_MAX}",
                pools.len()
            ),
        ));
    }
    for (name, pool) in pools {
        let inside =
            |(other, outer): &(&Name, &PoolConfig)| *other != name && pool.is_inside(outer);
        if let Some((other, _)) = pools.iter().find(inside) {
            let message = match pool {
                PoolConfig::File { directory, .. } => format!(
                    "pool.{name}.directory = \"{}\" is not legal: it is inside the directory of pool.{other}",
                    directory.display()
                ),
                PoolConfig::Rados(rados) => format!(
                    "pool.{name} ({}) is not legal: pool.{other} has the same objects",
                    rados.place()
                ),
            };
            return Err(Error::new(ErrorCode::Invalid, message));
        }
    }
    Ok(())
}

fn syntax(text: &str, error: &toml::de::Error) -> Error {
    let line = error.span().map_or(1, |span| {
        text[..span.start.min(text.len())].matches('\n').count() + 1
    });
    let what = error.message().lines().collect::<Vec<_>>().join(", ");
    Error::new(ErrorCode::Invalid, format!("line {line}: {what}"))
}

#[cfg(test)]
mod tests;
