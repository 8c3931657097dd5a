//! The reservation of an open volume: a file of the node, locked as long as this process has the volume open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use archipelago_api::layout::path_error;
use archipelago_protocol::Error;
use nix::fcntl::{Flock, FlockArg};

/// A reservation that this process holds: nobody else gets the volume as long as this is there, whichever processes of the node die.
#[derive(Debug)]
pub struct Reservation {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Reservation {
    /// Takes the one at `path`, which the node has made. `None`: it was removed before it was locked, so others may have the volume.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(path: &Path) -> Result<Option<Reservation>, Error> {
        let failed = |error: io::Error| path_error(path, &error);
        let file = match OpenOptions::new().read(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        // The daemon locks it for a moment at most, while it looks.
        let lock = Flock::lock(file, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_file, errno)| failed(errno.into()))?;
        if lock.metadata().map_err(failed)?.nlink() == 0 {
            return Ok(None);
        }
        Ok(Some(Reservation {
            path: path.to_owned(),
            _lock: lock,
        }))
    }

    /// Its name, which the node knows.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.path.file_name()?.to_str()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // One that is left is removed by the node, as nobody holds it.
        let _left = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_that_was_removed_is_none() {
        let path = std::env::temp_dir().join(format!("reservation-{}", std::process::id()));
        assert!(Reservation::take(&path).unwrap().is_none());
        File::create(&path).unwrap();
        let reservation = Reservation::take(&path).unwrap().unwrap();
        assert_eq!(reservation.name(), path.file_name().unwrap().to_str());
        let other = File::open(&path).unwrap();
        assert!(Flock::lock(other, FlockArg::LockExclusiveNonblock).is_err());
        drop(reservation);
        assert!(!path.exists());
    }
}
