//! The paths of a node's files.
//!
//! | what | with a root directory | without |
//! |---|---|---|
//! | configuration | `DIR/archipelago.toml` | `/etc/archipelago/archipelago.toml` |
//! | sockets, lock, log, grants | `DIR/run` | `/run/archipelago` |
//! | sockets of volumes | `DIR/run/volume` | `/run/archipelago/volume` |
//! | volumes as files and block devices | `DIR/run/attached` | `/run/archipelago/attached` |
//! | sockets and grants of a further pool | `DIR/run/pools/NAME` | `/run/archipelago/pools/NAME` |
//! | files that outlive a reboot | `DIR/state` | `/var/lib/archipelago` |
//! | the pool `default`, unless configured elsewhere | `DIR/pool` | `/var/lib/archipelago/pool` |
//!
//! Socket names are derived from lineages, not from names: so they do not change at a rename, and fit into a socket address.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use archipelago_protocol::{AttachmentId, Error, ErrorCode, Lineage};

/// Environment variable with the root directory.
pub const ROOT_VARIABLE: &str = "ARCHIPELAGO_ROOT";
/// Extension of the socket of a volume that is opened over a segment channel.
pub const BULK_SOCKET: &str = "bulk";
/// Longest path of a UNIX socket: `sun_path` without its final zero.
pub const SOCKET_PATH_MAX: usize = 107;
/// Longest path of the run directory: a socket's path without `/volume/`, 32 digits and `.sock`.
pub const RUN_PATH_MAX: usize = SOCKET_PATH_MAX - ("/volume/".len() + 32 + ".sock".len());

/// Bytes after which a log is truncated. The run directory is in memory: 16 MiB with the predecessor, some 100,000 lines, and the lines of
/// the second between two checks, which the daemon limits.
pub const LOG_LEN_MAX: u64 = 8 << 20;

/// The error of creating, reading or writing `path`, one of a node's files.
#[must_use]
pub fn path_error(path: &Path, error: &io::Error) -> Error {
    let at = path.display();
    match error.kind() {
        ErrorKind::PermissionDenied => Error::new(ErrorCode::Io, format!("{at}: {error}"))
            .with_hint(
                "run the command as the owner of the directory, or give --root DIR with a directory of your own",
            ),
        ErrorKind::StorageFull => Error::new(ErrorCode::NoSpace, format!("{at}: {error}")),
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory => Error::new(
            ErrorCode::Invalid,
            format!("{at}: a directory is needed here: {error}"),
        ),
        _ => Error::new(ErrorCode::Io, format!("{at}: {error}")),
    }
}

/// The paths of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: Option<PathBuf>,
    config: PathBuf,
    run: PathBuf,
    state: PathBuf,
}

impl Layout {
    /// The layout under `root`, or the system's without one.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if the working directory is unknown, or the path is too long for sockets in it.
    pub fn new(root: Option<&Path>) -> Result<Layout, Error> {
        let layout = match root {
            Some(root) => {
                let root = std::path::absolute(root).map_err(|error| {
                    Error::new(
                        ErrorCode::Invalid,
                        format!("root directory `{}`: {error}", root.display()),
                    )
                })?;
                Layout {
                    config: root.join("archipelago.toml"),
                    run: root.join("run"),
                    state: root.join("state"),
                    root: Some(root),
                }
            }
            None => Layout {
                root: None,
                config: "/etc/archipelago/archipelago.toml".into(),
                run: "/run/archipelago".into(),
                state: "/var/lib/archipelago".into(),
            },
        };
        let len = layout.run.as_os_str().len();
        if len > RUN_PATH_MAX {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!(
                    "`{}` has {len} bytes, sockets in it need a path of at most {RUN_PATH_MAX}",
                    layout.run.display()
                ),
            )
            .with_hint("use a root directory with a shorter path"));
        }
        Ok(layout)
    }

    /// Creates the directories of state and sockets, accessible only to their owner; existing ones are not changed. `/run` is empty after a
    /// reboot, so this is done at every start.
    ///
    /// # Errors
    /// As [`path_error`].
    pub fn make_directories(&self) -> Result<(), Error> {
        for path in [self.run(), self.state(), &self.journals(), &self.volumes()] {
            make_directory(path)?;
        }
        Ok(())
    }

    /// The root directory, if one was given.
    #[must_use]
    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Directory of sockets, lock and log.
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Directory of files that outlive a reboot.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Directory of the pool `default`, unless configured elsewhere.
    #[must_use]
    pub fn default_pool(&self) -> PathBuf {
        match &self.root {
            Some(root) => root.join("pool"),
            None => self.state.join("pool"),
        }
    }

    /// Lock file: locked by the daemon as long as it runs; contains its process id.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// Socket of the HTTP API.
    #[must_use]
    pub fn api_socket(&self) -> PathBuf {
        self.run.join("api.sock")
    }

    /// Log of a daemon in the background.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.run.join("archipelagod.log")
    }

    /// Log of mounts in the background: it contains failed requests of programs.
    #[must_use]
    pub fn mount_log(&self) -> PathBuf {
        self.run.join("mount.log")
    }

    /// The predecessor of the log, which is made when the log is longer than [`LOG_LEN_MAX`].
    #[must_use]
    pub fn former_log(&self) -> PathBuf {
        former_log(&self.log())
    }

    /// File of the attachments.
    #[must_use]
    pub fn attachments(&self) -> PathBuf {
        self.state.join("attachments.json")
    }

    /// Directory of the presence journals of open volumes.
    #[must_use]
    pub fn journals(&self) -> PathBuf {
        self.run.join("journal")
    }

    /// Directory of the sockets of volumes: the only one to which an endpoint with its own user can write.
    #[must_use]
    pub fn volumes(&self) -> PathBuf {
        self.run.join("volume")
    }

    /// The vhost-user socket of a volume.
    #[must_use]
    pub fn volume_socket(&self, lineage: Lineage) -> PathBuf {
        self.volumes().join(format!("{lineage}.sock"))
    }

    /// The NBD socket of a volume.
    #[must_use]
    pub fn nbd_socket(&self, lineage: Lineage) -> PathBuf {
        self.volumes().join(format!("{lineage}.nbd"))
    }

    /// The vhost-user socket of a further attachment of a volume; its path is not longer than that of the first one.
    #[must_use]
    pub fn further_volume_socket(&self, id: AttachmentId) -> PathBuf {
        self.volumes().join(format!("attachment-{id}.sock"))
    }

    /// The NBD socket of a further attachment of a volume.
    #[must_use]
    pub fn further_nbd_socket(&self, id: AttachmentId) -> PathBuf {
        self.volumes().join(format!("attachment-{id}.nbd"))
    }

    /// Directory of this host's own attachments: volumes as files and block devices.
    #[must_use]
    pub fn attached(&self) -> PathBuf {
        self.run.join("attached")
    }

    /// The socket of a bulk copy of a volume.
    #[must_use]
    pub fn bulk_socket(&self, lineage: Lineage) -> PathBuf {
        self.volumes().join(format!("{lineage}.{BULK_SOCKET}"))
    }

    /// The option with which the command finds this layout, for hints.
    #[must_use]
    pub fn command(&self) -> String {
        match &self.root {
            Some(root) => format!(
                "archipelago --root {}",
                for_shell(&root.display().to_string())
            ),
            None => "archipelago".to_owned(),
        }
    }
}

/// The predecessor of the log at `path`.
#[must_use]
pub fn former_log(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// `text`, quoted as one word of a shell's command line.
fn for_shell(text: &str) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@%,=".contains(&byte);
    if !text.is_empty() && text.bytes().all(harmless) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Creates a directory and its parents, accessible only to their owner.
///
/// # Errors
/// As [`path_error`].
pub fn make_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| path_error(path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_holds_everything() {
        let layout = Layout::new(Some(Path::new("/srv/a"))).unwrap();
        for path in [
            layout.config(),
            layout.run(),
            layout.state(),
            &layout.default_pool(),
            &layout.api_socket(),
        ] {
            assert!(path.starts_with("/srv/a"), "{}", path.display());
        }
    }

    #[test]
    fn hints_can_be_pasted_into_a_shell() {
        for (root, word) in [
            ("/srv/a-1", "/srv/a-1"),
            ("/srv/my node", "'/srv/my node'"),
            ("/srv/$HOME", "'/srv/$HOME'"),
            ("/srv/it's", r"'/srv/it'\''s'"),
        ] {
            let layout = Layout::new(Some(Path::new(root))).unwrap();
            assert_eq!(layout.command(), format!("archipelago --root {word}"));
        }
    }

    #[test]
    fn directories_are_their_owners_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(&dir.path().join("node"))).unwrap();
        for _again in 0..2 {
            layout.make_directories().unwrap();
        }
        for path in [
            layout.run(),
            layout.state(),
            &layout.journals(),
            &layout.volumes(),
        ] {
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o700, "{}", path.display());
        }
        std::fs::write(dir.path().join("file"), "").unwrap();
        let layout = Layout::new(Some(&dir.path().join("file"))).unwrap();
        let error = layout.make_directories().unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid, "{error:?}");
    }

    #[test]
    fn the_longest_run_directory_still_fits_every_socket() {
        let root = format!("/{}", "x".repeat(RUN_PATH_MAX - "/run".len() - 1));
        let layout = Layout::new(Some(Path::new(&root))).unwrap();
        for path in [
            layout.volume_socket(Lineage(1)),
            layout.bulk_socket(Lineage(1)),
            layout.nbd_socket(Lineage(1)),
            layout.further_volume_socket(AttachmentId(u64::MAX)),
            layout.further_nbd_socket(AttachmentId(u64::MAX)),
            layout.api_socket(),
        ] {
            assert!(path.as_os_str().len() <= SOCKET_PATH_MAX);
        }
        let error = Layout::new(Some(Path::new(&format!("{root}x")))).unwrap_err();
        assert_eq!(error.code, ErrorCode::Invalid);
    }
}
