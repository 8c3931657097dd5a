//! Installs the provider and the wrapper where Ganeti looks, removes them, and checks the installation.
//!
//! | file | content |
//! |---|---|
//! | `provider` | the provider's directory: links to this program, the list of parameters, the settings |
//! | `made` | directories that an installation makes, and removes again |
//! | `checks`, `ganeti` | whether the parts work together: scripts, QEMU, node; Ganeti and its cluster |
//!
//! Everything that an installation makes is in one directory, except the directory of logs, which Ganeti needs and does not make. The
//! settings in the first directory list what was made. An interrupted installation is completed by a second one, and undone by an
//! uninstallation.

mod checks;
mod failure;
mod finding;
mod ganeti;
mod made;
mod places;
mod provider;

use std::path::{Path, PathBuf};

use archipelago_protocol::Error;
use serde::Serialize;

use crate::settings::Settings;

pub use finding::Finding;
pub use places::{LOG_DIRECTORY, PROVIDER_DIRECTORY, Places};

/// The state of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The provider's directory.
    pub directory: PathBuf,
    /// The wrapper, for `kvm_path`.
    pub wrapper: PathBuf,
    /// The result of each check.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether every check succeeded.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.problem.is_none())
    }
}

/// Installs `settings` at `places`, with links to `program`. Settings that are missing keep the values of a former installation there. May
/// be repeated: updates what differs.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if files of others are in the way; otherwise the error of the system.
pub fn install(places: &Places, program: &Path, settings: Settings) -> Result<Report, Error> {
    let present = provider::present(&places.provider)?.unwrap_or_default();
    let mut made = present.made;
    let missing = made::missing(&[&places.provider, &places.logs]);
    made.retain(|path| !missing.contains(path));
    made.extend(missing);
    let settings = Settings {
        root: settings.root.or(present.root),
        qemu: settings.qemu.or(present.qemu),
        ganeti_state: settings.ganeti_state.or(present.ganeti_state),
        made,
    };
    let text = settings.render()?;
    // The directory of the settings first, then the settings, which list the directories that are made from here on.
    made::make(&places.provider)?;
    provider::write(&places.provider, program, &text)?;
    made::make_logs(&places.logs)?;
    check(places)
}

/// Removes what an installation at `directory` has made, and only that. Files of others stay, with their directories. Returns the path of
/// the removed wrapper; `None` if there was none.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if the directory was not made by an installation; then nothing is removed.
pub fn uninstall(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let settings = provider::present(directory)?;
    provider::remove(directory)?;
    // An installation may have been interrupted before its settings listed this directory.
    let directories = [directory.to_owned()];
    made::remove(&directories);
    made::remove(settings.as_ref().map_or(&[], |settings| &settings.made));
    Ok(settings.map(|_removed| provider::wrapper(directory)))
}

/// Checks the installation at `places`, and what it depends on.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if the directory was not made by an installation.
pub fn check(places: &Places) -> Result<Report, Error> {
    let settings = provider::present(&places.provider)?;
    Ok(Report {
        directory: places.provider.clone(),
        wrapper: provider::wrapper(&places.provider),
        findings: checks::look(places, settings.as_ref()),
    })
}
