//! Reservations: a process that has a volume open over a segment channel keeps it while what serves the channel is dead.
//!
//! A reservation is a file, `LINEAGE.ACCESS.NUMBER`, which the process locks (flock) for as long as it has the volume open. The kernel
//! holds the lock, so a reservation outlives the data process, the daemon and a restart of the node, and ends with its process, whatever
//! ends that. Nobody has to renew it, and nothing of it is kept in memory.
//!
//! Invariants
//! - A reservation is made only for whoever has just opened the volume, under the lock of the pool's changes.
//! - Whatever opens a volume by itself, without the daemon (an endpoint of the data process), has none beside it that excludes it: an
//!   attach looks for reservations, and what is attached so is not reserved.
//! - A file that nobody locks is of a process that has ended, or not come yet: the next look removes it. A process that locks its file
//!   looks whether the file is still there, and has no reservation otherwise.
//! - If any other node has had the pool since this one did, the process that opens the pool removes all of them before it serves anybody
//!   ([`archipelago_blocker_file::Claimant::kept`]).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use archipelago_api::layout::{make_directory, path_error};
use archipelago_protocol::{Access, Error, Lineage};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::fresh::fresh_lineage;

/// The reservations of a pool.
#[derive(Debug)]
pub(crate) struct Reservations {
    directory: PathBuf,
}

fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
    }
}

/// What the reservation `name` is of, if it is a reservation.
pub(crate) fn lineage_of(name: &str) -> Option<Lineage> {
    let (lineage, _access) = name.split_once('.')?;
    lineage.parse().ok()
}

/// The access of the file `name`, if it is a reservation of `lineage`.
fn access_of(name: &str, lineage: Lineage) -> Option<Access> {
    let (access, _number) = name
        .strip_prefix(&lineage.to_string())?
        .strip_prefix('.')?
        .split_once('.')?;
    [Access::Read, Access::Write]
        .into_iter()
        .find(|one| access_name(*one) == access)
}

/// Whether a process holds the reservation at `path`. One that nobody holds is removed.
fn is_held(path: &Path) -> io::Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened?,
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        // Under the lock: a process that comes for it now finds that it is gone.
        Ok(_lock) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(false),
        },
        Err((_file, Errno::EWOULDBLOCK)) => Ok(true),
        Err((_file, errno)) => Err(errno.into()),
    }
}

impl Reservations {
    /// Those in `directory`.
    pub(crate) fn new(directory: PathBuf) -> Reservations {
        Reservations { directory }
    }

    /// What processes hold of `lineage`, but for the reservation `own`.
    fn held(&self, lineage: Lineage, own: Option<&str>) -> Result<Vec<Access>, Error> {
        let failed = |error: io::Error| path_error(&self.directory, &error);
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut held = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| own != Some(*name)) else {
                continue;
            };
            if let Some(access) = access_of(name, lineage)
                && is_held(&entry.path()).map_err(failed)?
            {
                held.push(access);
            }
        }
        Ok(held)
    }

    /// Whether a process other than that of `own` holds what excludes `access` to `lineage`: a writer excludes everybody.
    ///
    /// # Errors
    /// If it cannot be found out: then nobody may open it.
    pub(crate) fn exclude(
        &self,
        lineage: Lineage,
        access: Access,
        own: Option<&str>,
    ) -> Result<bool, Error> {
        let held = self.held(lineage, own)?;
        Ok(!held.is_empty() && (access == Access::Write || held.contains(&Access::Write)))
    }

    /// The access to `lineage` that `own` is a reservation for, if a process holds it.
    pub(crate) fn access_kept(&self, own: &str, lineage: Lineage) -> Result<Option<Access>, Error> {
        let Some(access) = access_of(own, lineage).filter(|_| !own.contains('/')) else {
            return Ok(None);
        };
        let path = self.directory.join(own);
        let is_held = is_held(&path).map_err(|error| path_error(&path, &error))?;
        Ok(is_held.then_some(access))
    }

    /// Makes one that nobody holds yet.
    pub(crate) fn make(&self, lineage: Lineage, access: Access) -> Result<PathBuf, Error> {
        make_directory(&self.directory)?;
        let number = fresh_lineage()?;
        let name = format!("{lineage}.{}.{number}", access_name(access));
        let path = self.directory.join(name);
        let mut options = OpenOptions::new();
        let made = options.write(true).create_new(true).mode(0o600).open(&path);
        made.map_err(|error| path_error(&path, &error))?;
        Ok(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINEAGE: Lineage = Lineage(7);

    fn name(path: &Path) -> &str {
        path.file_name().unwrap().to_str().unwrap()
    }

    fn hold(path: &Path) -> Flock<File> {
        Flock::lock(File::open(path).unwrap(), FlockArg::LockExclusive).unwrap()
    }

    #[test]
    fn a_reservation_excludes_others_as_long_as_its_process_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let reservations = Reservations::new(dir.path().join("reserved"));
        let excludes = |lineage, access, own: Option<&str>| {
            reservations.exclude(lineage, access, own).unwrap()
        };
        assert!(!excludes(LINEAGE, Access::Write, None));
        for (kept, read, write) in [(Access::Write, true, true), (Access::Read, false, true)] {
            let path = reservations.make(LINEAGE, kept).unwrap();
            let lock = hold(&path);
            assert_eq!(excludes(LINEAGE, Access::Read, None), read);
            assert_eq!(excludes(LINEAGE, Access::Write, None), write);
            assert!(!excludes(LINEAGE, Access::Write, Some(name(&path))));
            assert!(!excludes(Lineage(8), Access::Write, None));
            assert_eq!(lineage_of(name(&path)), Some(LINEAGE));
            let access_kept = |lineage| reservations.access_kept(name(&path), lineage).unwrap();
            assert_eq!(access_kept(LINEAGE), Some(kept));
            assert_eq!(access_kept(Lineage(8)), None);
            drop(lock);
            assert!(!excludes(LINEAGE, Access::Write, None), "its process ended");
            assert!(!path.exists() && access_kept(LINEAGE).is_none());
        }
    }

    #[test]
    fn only_the_name_of_a_reservation_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let reservations = Reservations::new(dir.path().join("reserved"));
        let path = reservations.make(LINEAGE, Access::Write).unwrap();
        let _lock = hold(&path);
        let outside = format!("../reserved/{}", name(&path));
        for strange in ["", ".", "x", outside.as_str()] {
            let kept = reservations.access_kept(strange, LINEAGE);
            assert_eq!(kept.unwrap(), None, "{strange}");
            assert_eq!(lineage_of(strange), None);
        }
    }
}
