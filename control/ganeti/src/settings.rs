//! The settings of an installation, in a small file beside the links that Ganeti calls.
//!
//! Lines of `key = value`; empty lines and lines that begin with `#` are ignored.
//!
//! | key | value |
//! |---|---|
//! | `root` | directory of the node, if it is not the system's (`--root`) |
//! | `qemu` | the QEMU binary that the wrapper executes |
//! | `ganeti-state` | Ganeti's state directory |
//! | `made` | a directory that the installation made, and removes if it is empty; one line for each directory |

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use archipelago_api::layout::{Layout, ROOT_VARIABLE, path_error};
use archipelago_protocol::{Error, ErrorCode};

/// Name of the file.
pub const FILE_NAME: &str = "archipelago.conf";
/// Its first line.
const HEADER: &str = "# Written by `archipelago ganeti install`.";
/// The variable with the path of the QEMU binary, for a program without a settings file.
const QEMU_VARIABLE: &str = "ARCHIPELAGO_KVM";
/// Ganeti's default state directory.
const GANETI_STATE: &str = "/var/lib/ganeti";
/// The file with Ganeti's version in its state directory: `3.0.2`.
const RELEASE_VERSION: &str = "ssconf_release_version";

/// The settings of an installation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Directory of the node.
    pub root: Option<PathBuf>,
    /// The QEMU binary that the wrapper executes.
    pub qemu: Option<PathBuf>,
    /// Ganeti's state directory.
    pub ganeti_state: Option<PathBuf>,
    /// Directories that the installation made, the outer ones first.
    pub made: Vec<PathBuf>,
}

impl Settings {
    /// The settings in `directory`; none if there is no file.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`], naming the line that is not understood; [`path_error`]'s error for a file that cannot be read.
    pub fn read(directory: &Path) -> Result<Option<Settings>, Error> {
        let path = directory.join(FILE_NAME);
        match fs::read_to_string(&path) {
            Ok(text) => Settings::parse(&text).map(Some).map_err(|error| Error {
                message: format!("{}: {}", path.display(), error.message),
                ..error
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(path_error(&path, &error)),
        }
    }

    fn parse(text: &str) -> Result<Settings, Error> {
        let mut settings = Settings::default();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let refused = || {
                let message = format!("line {}: `{line}` is not a setting", index + 1);
                Error::new(ErrorCode::Invalid, message)
                    .with_hint("write it anew: archipelago ganeti install")
            };
            let (key, value) = line.split_once('=').ok_or_else(refused)?;
            let (key, value) = (key.trim(), value.trim());
            let path = Some(PathBuf::from(value)).filter(|path| path.is_absolute());
            match (key, path) {
                ("root", Some(path)) => settings.root = Some(path),
                ("qemu", Some(path)) => settings.qemu = Some(path),
                ("ganeti-state", Some(path)) => settings.ganeti_state = Some(path),
                ("made", Some(path)) => settings.made.push(path),
                _ => return Err(refused()),
            }
        }
        Ok(settings)
    }

    /// The file's text.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for a path that a line cannot hold.
    pub fn render(&self) -> Result<String, Error> {
        let mut text = format!("{HEADER}\n");
        let paths = [
            ("root", &self.root),
            ("qemu", &self.qemu),
            ("ganeti-state", &self.ganeti_state),
        ];
        let paths = paths
            .into_iter()
            .filter_map(|(key, path)| Some((key, path.as_ref()?)));
        let made = self.made.iter().map(|path| ("made", path));
        for (key, path) in paths.chain(made) {
            let legal = |text: &&str| text.trim() == *text && !text.contains(['\n', '\r']);
            let value = path.to_str().filter(legal).ok_or_else(|| {
                let message = format!("{}: no line can hold this path", path.display());
                Error::new(ErrorCode::Invalid, message)
            })?;
            text.push_str(&format!("{key} = {value}\n"));
        }
        Ok(text)
    }

    /// The settings in the environment, for a program without a settings file. With a settings file the environment is not read: scripts,
    /// wrapper and check must use the same node, whatever the environment of Ganeti's daemons is.
    #[must_use]
    pub fn from_environment() -> Settings {
        let path = |variable| std::env::var_os(variable).map(PathBuf::from);
        Settings {
            root: path(ROOT_VARIABLE),
            qemu: path(QEMU_VARIABLE),
            ..Settings::default()
        }
    }

    /// The layout of the node; by default the system's.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn layout(&self) -> Result<Layout, Error> {
        Layout::new(self.root.as_deref())
    }

    /// Ganeti's state directory.
    #[must_use]
    pub fn ganeti_state(&self) -> &Path {
        let default = || Path::new(GANETI_STATE);
        self.ganeti_state.as_deref().unwrap_or_else(default)
    }

    /// Ganeti's version, major and minor; `None` if its state does not contain it.
    #[must_use]
    pub fn ganeti_version(&self) -> Option<(u32, u32)> {
        let text = fs::read_to_string(self.ganeti_state().join(RELEASE_VERSION)).ok()?;
        let mut numbers = text.trim().split('.');
        let mut number = || numbers.next()?.parse().ok();
        Some((number()?, number()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_is_read() {
        for settings in [
            Settings::default(),
            Settings {
                root: Some("/srv/a = b".into()),
                qemu: Some("/usr/bin/kvm".into()),
                ganeti_state: Some("/var/lib/g".into()),
                made: vec!["/a".into(), "/a/b".into()],
            },
        ] {
            let text = settings.render().unwrap();
            assert_eq!(Settings::parse(&text), Ok(settings));
        }
        for path in ["/a\nqemu = /b", "/a ", "/a\r"] {
            let settings = Settings {
                root: Some(path.into()),
                ..Settings::default()
            };
            assert!(settings.render().is_err(), "{path:?}");
        }
    }

    #[test]
    fn a_line_that_says_nothing_is_named() {
        for line in ["root", "root = run", "colour = red", "made = log", "= /a"] {
            let error = Settings::parse(&format!("# a\n\n{line}\n")).unwrap_err();
            assert!(error.message.contains("line 3"), "{}", error.message);
        }
    }

    #[test]
    fn the_version_of_ganeti_is_read_from_its_state() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings {
            ganeti_state: Some(dir.path().to_owned()),
            ..Settings::default()
        };
        assert_eq!(settings.ganeti_version(), None);
        for (text, expected) in [
            ("3.0.2\n", Some((3, 0))),
            ("3.1.0~rc2\n", Some((3, 1))),
            ("3\n", None),
            ("x.y\n", None),
        ] {
            fs::write(dir.path().join(RELEASE_VERSION), text).unwrap();
            assert_eq!(settings.ganeti_version(), expected, "{text}");
        }
    }
}
