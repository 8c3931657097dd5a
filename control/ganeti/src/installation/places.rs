//! Where things are put.

use std::path::PathBuf;

/// Where Ganeti looks for a provider of our name, on Debian.
pub const PROVIDER_DIRECTORY: &str = "/usr/share/ganeti/extstorage/archipelago";
/// Where Ganeti looks for providers, on Debian: the first directory that has one of a name counts.
pub(super) const SEARCH_PATH: [&str; 4] = [
    "/srv/ganeti/extstorage",
    "/usr/local/lib/ganeti/extstorage",
    "/usr/lib/ganeti/extstorage",
    "/usr/share/ganeti/extstorage",
];
/// Where Ganeti logs what providers say. It fails without this directory, and does not make it.
pub const LOG_DIRECTORY: &str = "/var/log/ganeti/extstorage";

/// Where things are put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The provider's directory.
    pub provider: PathBuf,
    /// The directory of Ganeti's logs of providers.
    pub logs: PathBuf,
}
