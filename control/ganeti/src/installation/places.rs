//! The directories of an installation.

use std::path::PathBuf;

/// Where Ganeti looks for a provider of our name, on Debian.
pub const PROVIDER_DIRECTORY: &str = "/usr/share/ganeti/extstorage/archipelago";
/// Where Ganeti looks for providers, on Debian: of two providers with the same name, the one in the earlier directory is used.
pub(super) const SEARCH_PATH: [&str; 4] = [
    "/srv/ganeti/extstorage",
    "/usr/local/lib/ganeti/extstorage",
    "/usr/lib/ganeti/extstorage",
    "/usr/share/ganeti/extstorage",
];
/// Where Ganeti stores the output of providers. Ganeti fails without this directory, and does not make it.
pub const LOG_DIRECTORY: &str = "/var/log/ganeti/extstorage";

/// The directories of an installation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The provider's directory.
    pub provider: PathBuf,
    /// The directory of Ganeti's logs of providers.
    pub logs: PathBuf,
}
