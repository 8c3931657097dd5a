//! A listening socket in the file system: made in the place of a stale one, removed with its endpoint.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The file of a socket. Dropping it removes the file, unless another socket has replaced it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, without blocking, with the mode bits `mode`. Binds beside it and renames, so that the socket never exists
    /// with other mode bits, and a stale one is replaced.
    ///
    /// # Errors
    /// The error of the file system; `AlreadyExists` if the path is not a socket.
    pub fn listen(path: &Path, mode: u32) -> std::io::Result<(UnixListener, SocketFile)> {
        if let Ok(found) = fs::symlink_metadata(path)
            && !found.file_type().is_socket()
        {
            let text = "the path exists and is not a socket";
            return Err(std::io::Error::new(std::io::ErrorKind::AlreadyExists, text));
        }
        let mut fresh = path.as_os_str().to_owned();
        fresh.push("~");
        let _not_there = fs::remove_file(&fresh);
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(mode))?;
        fs::rename(&fresh, path)?;
        // A client may disconnect before it is accepted.
        listener.set_nonblocking(true)?;
        let made = fs::symlink_metadata(path)?;
        let file = SocketFile {
            path: path.to_owned(),
            identity: (made.dev(), made.ino()),
        };
        Ok((listener, file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // A successor may have put its own socket there.
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours {
            let _gone_already = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_file_is_not_and_that_of_a_successor_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let (first, file) = SocketFile::listen(&path, 0o600).unwrap();
        drop(first);
        let (_second, successor) = SocketFile::listen(&path, 0o660).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(file);
        assert!(path.exists());
        drop(successor);
        assert!(!path.exists());
        fs::write(&path, "precious").unwrap();
        assert!(SocketFile::listen(&path, 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
