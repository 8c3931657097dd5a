//! Puts the provider and the wrapper where Ganeti looks, takes them away, and checks what is there.
//!
//! | file | what |
//! |---|---|
//! | `provider` | the provider's directory: links to this program, the list of parameters, the settings |
//! | `made` | directories that an installation makes, and takes away again |
//! | `checks`, `ganeti` | whether all of it works together: scripts, QEMU, node; Ganeti and its cluster |
//!
//! Everything that an installation makes is in one directory, but for the directory of logs, which Ganeti needs and nobody else makes. The
//! settings in it say what is ours. Whatever ends an installation: the same again finishes it, and an uninstallation removes what is there.

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

/// What is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The provider's directory.
    pub directory: PathBuf,
    /// The wrapper, for `kvm_path`.
    pub wrapper: PathBuf,
    /// What was looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether everything that was looked at is as it should be.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.findings
            .iter()
            .all(|finding| finding.problem.is_none())
    }
}

/// Installs `settings` at `places`, with links to `program`. What `settings` leave out stays as an installation there has it. May be
/// repeated: updates what differs.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if something is in the way that is not ours, what the system says otherwise.
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
    // The directory of the settings first, then they, which say what is made from here on.
    made::make(&places.provider)?;
    provider::write(&places.provider, program, &text)?;
    made::make_logs(&places.logs)?;
    check(places)
}

/// Removes what an installation at `directory` has made, and only that. Left are files of others in its directories. The wrapper that was
/// removed; nothing if there was none.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if the directory is not ours; nothing is removed then.
pub fn uninstall(directory: &Path) -> Result<Option<PathBuf>, Error> {
    let settings = provider::present(directory)?;
    provider::remove(directory)?;
    // Also if an installation was interrupted before its settings said what it has made.
    let directories = [directory.to_owned()];
    made::remove(&directories);
    made::remove(settings.as_ref().map_or(&[], |settings| &settings.made));
    Ok(settings.map(|_removed| provider::wrapper(directory)))
}

/// Looks at what is at `places`, and at what it needs.
///
/// # Errors
/// [`archipelago_protocol::ErrorCode::Exists`] if the directory is not ours.
pub fn check(places: &Places) -> Result<Report, Error> {
    let settings = provider::present(&places.provider)?;
    Ok(Report {
        directory: places.provider.clone(),
        wrapper: provider::wrapper(&places.provider),
        findings: checks::look(places, settings.as_ref()),
    })
}
