//! Directories that an installation makes, and removes if they are empty.

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use archipelago_protocol::Error;

use super::failure::failed;

/// Mode of the directories of Ganeti's own logs.
const LOGS_MODE: u32 = 0o750;
/// The directory of the logs of operating systems' scripts, which Ganeti itself makes beside the providers' logs.
const SIBLING_NAME: &str = "os";
/// Mode of directories that everybody may read.
const MODE: u32 = 0o755;

/// Those of `paths` and their parents that do not exist, the outer ones first.
pub(super) fn missing(paths: &[&Path]) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = Vec::new();
    for path in paths {
        let mut above: Vec<&Path> = path.ancestors().take_while(|one| !one.exists()).collect();
        above.reverse();
        for one in above {
            if !missing.iter().any(|known| known == one) {
                missing.push(one.to_owned());
            }
        }
    }
    missing
}

/// Makes `path` and its parents, readable for everybody, whatever the umask.
pub(super) fn make(path: &Path) -> Result<(), Error> {
    for one in missing(&[path]) {
        make_one(&one, MODE)?;
    }
    Ok(())
}

/// Makes the directory of logs, with the owner and the group of Ganeti's other logs.
pub(super) fn make_logs(path: &Path) -> Result<(), Error> {
    if let Some(parent) = path.parent() {
        make(parent)?;
    }
    if path.exists() {
        return Ok(());
    }
    make_one(path, LOGS_MODE)?;
    match fs::metadata(path.with_file_name(SIBLING_NAME)) {
        Ok(sibling) => chown(path, Some(sibling.uid()), Some(sibling.gid()))
            .map_err(|error| failed(path, &error)),
        // Without Ganeti's logs, the installing user owns it.
        Err(_none) => Ok(()),
    }
}

fn make_one(path: &Path, mode: u32) -> Result<(), Error> {
    let made = DirBuilder::new().mode(mode).create(path);
    let made = match made {
        // Another installation has made it meanwhile.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        made => made,
    };
    made.and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|error| failed(path, &error))
}

/// Removes those directories of `made` that are empty, the inner ones first.
pub(super) fn remove(made: &[PathBuf]) {
    for path in made.iter().rev() {
        // A directory with files of others is kept.
        let _kept = fs::remove_dir(path);
    }
}
