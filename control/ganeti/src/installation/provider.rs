//! The provider's directory: the scripts that Ganeti calls, and how an installation recognises its own directory.
//!
//! | name | content |
//! |---|---|
//! | `create`, `attach` and so on | links to this program |
//! | `archipelago-kvm` | a link to this program: the wrapper |
//! | `parameters.list` | the list of parameters, for Ganeti |
//! | `archipelago.conf` | the settings. Made first and removed last: a directory with this file is an installation's |

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use archipelago_api::durable;
use archipelago_protocol::{Error, ErrorCode};

use super::failure::failed;
use crate::call::Action;
use crate::parameters::parameters_list;
use crate::settings::{FILE_NAME, Settings};
use crate::wrapper::WRAPPER_NAME;

/// This program's own name, the target of the links.
pub(super) const PROGRAM_NAME: &str = "archipelago-ganeti";
/// Name of the list of parameters.
pub(super) const PARAMETERS_NAME: &str = "parameters.list";
/// Mode of files that everybody may read.
const MODE: u32 = 0o644;

/// Names of the links.
pub(super) fn link_names() -> impl Iterator<Item = &'static str> {
    Action::ALL
        .into_iter()
        .map(Action::name)
        .chain([WRAPPER_NAME])
}

/// Names of everything in the directory.
fn names() -> impl Iterator<Item = &'static str> {
    link_names().chain([PARAMETERS_NAME, FILE_NAME])
}

/// Whether the list of parameters in `directory` is that of this program.
pub(super) fn has_parameters_list(directory: &Path) -> bool {
    fs::read_to_string(directory.join(PARAMETERS_NAME)).is_ok_and(|text| text == parameters_list())
}

/// The wrapper in `directory`.
pub(super) fn wrapper(directory: &Path) -> PathBuf {
    directory.join(WRAPPER_NAME)
}

/// The settings of the installation in `directory`; `None` if there is none.
///
/// # Errors
/// [`ErrorCode::Exists`] if files of others are there.
pub(super) fn present(directory: &Path) -> Result<Option<Settings>, Error> {
    if let Some(settings) = Settings::read(directory)? {
        return Ok(Some(settings));
    }
    match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(directory, &error)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|error| failed(directory, &error))?;
                // An installation that was killed before it had its settings leaves such files.
                if !names().any(|name| entry.path() == unfinished(directory, name)) {
                    return Err(not_ours(directory));
                }
            }
            Ok(None)
        }
    }
}

fn not_ours(path: &Path) -> Error {
    let message = format!(
        "{} is there, and no installation of ours has made it",
        path.display()
    );
    Error::new(ErrorCode::Exists, message).with_hint("move it away, or use another --dir")
}

/// Whether `path` is the file that an installation makes under the name `name`; `None` if there is no file.
fn is_ours(path: &Path, name: &str) -> Result<Option<bool>, Error> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(|error| failed(path, &error))?,
    };
    if name == PARAMETERS_NAME {
        return Ok(Some(metadata.is_file()));
    }
    let target = fs::read_link(path).ok();
    let program = target.as_deref().and_then(Path::file_name);
    Ok(Some(program.is_some_and(|program| program == PROGRAM_NAME)))
}

/// Writes everything into `directory`: the settings `settings` first, then links to `program` and the list of parameters.
///
/// # Errors
/// [`ErrorCode::Exists`] if a name is taken by a file of others.
pub(super) fn write(directory: &Path, program: &Path, settings: &str) -> Result<(), Error> {
    for name in link_names().chain([PARAMETERS_NAME]) {
        let path = directory.join(name);
        if is_ours(&path, name)? == Some(false) {
            return Err(not_ours(&path));
        }
    }
    write_file(directory, FILE_NAME, settings)?;
    for name in link_names() {
        link(directory, name, program)?;
    }
    write_file(directory, PARAMETERS_NAME, &parameters_list())
}

fn write_file(directory: &Path, name: &str, text: &str) -> Result<(), Error> {
    let path = directory.join(name);
    durable::replace_with_mode(&path, text.as_bytes(), MODE).map_err(|error| failed(&path, &error))
}

/// Replaces the link `name` by one to `program`, atomically: Ganeti may call it at any moment.
fn link(directory: &Path, name: &str, program: &Path) -> Result<(), Error> {
    let path = directory.join(name);
    let new = durable::unfinished(&path);
    let _former = fs::remove_file(&new);
    symlink(program, &new)
        .and_then(|()| fs::rename(&new, &path))
        .map_err(|error| failed(&path, &error))
}

fn unfinished(directory: &Path, name: &str) -> PathBuf {
    durable::unfinished(&directory.join(name))
}

/// Removes what an installation has made in `directory`, which [`present`] has accepted as an installation's or as empty. The settings are
/// last.
pub(super) fn remove(directory: &Path) -> Result<(), Error> {
    for name in link_names().chain([PARAMETERS_NAME]) {
        let path = directory.join(name);
        if is_ours(&path, name)? == Some(true) {
            fs::remove_file(&path).map_err(|error| failed(&path, &error))?;
        }
    }
    for name in names() {
        let _unfinished = fs::remove_file(unfinished(directory, name));
    }
    let path = directory.join(FILE_NAME);
    match fs::remove_file(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|error| failed(&path, &error)),
    }
}
