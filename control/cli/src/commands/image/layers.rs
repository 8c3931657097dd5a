//! The files of an image: its own, and its backing files if requested; and the QEMU options that open them.
//!
//! QEMU gets a tree of nodes in which each file is a descriptor that this command has opened, with its format: the names in the images have
//! no effect on what is opened.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode};
use nix::fcntl::OFlag;
use nix::sys::stat::SFlag;
use serde_json::{Value, json};

use super::failures::read_error;
use super::header::{self, Backing};
use super::interrupt::Interrupt;
use super::source::Version;
use super::tool::Inherited;
use crate::format::Format;

/// Longest chain of images: snapshots are made by hand, or by a tool that merges them again.
const LAYERS_MAX: usize = 64;

/// Whether files below an image are read too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BackingFiles {
    Refused,
    Taken,
}

/// One file.
#[derive(Debug)]
struct Layer {
    title: String,
    file: File,
    inherited: Inherited,
    format: Format,
    version: Option<Version>,
    len: u64,
}

/// The files of an image, its own first.
#[derive(Debug)]
pub(super) struct Layers(Vec<Layer>);

impl Layers {
    /// The files of the image in `file`. `path` is the image's own path, if it has one.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for an image that names backing files, unless they may be read.
    pub(super) fn open(
        file: &File,
        title: &str,
        path: Option<&Path>,
        format: Format,
        backing: BackingFiles,
        interrupt: &Interrupt,
    ) -> Result<Layers, Error> {
        let own = file
            .try_clone()
            .map_err(|error| read_error(title, &error))?;
        let mut layers = vec![Layer::new(own, title.to_owned(), format)?];
        let mut path = path.map(Path::to_owned);
        loop {
            let last = layers.last().expect("there is one");
            let below = header::backing(&last.file, &last.title, last.format, interrupt)?;
            let Some(below) = below else {
                return Ok(Layers(layers));
            };
            if backing == BackingFiles::Refused {
                return Err(refused(&last.title, &below));
            }
            if layers.len() == LAYERS_MAX {
                let message =
                    format!("{title}: more than {LAYERS_MAX} images, one below the other");
                return Err(Error::new(ErrorCode::Invalid, message));
            }
            let above = path.ok_or_else(|| {
                let message =
                    format!("{title}: a backing file is supported only if the image is a file");
                Error::new(ErrorCode::Invalid, message)
            })?;
            let (found, format) = locate(&above, &last.title, &below)?;
            let name = found.display().to_string();
            let opened = open_disk(&found).map_err(|error| {
                let error = read_error(&name, &error);
                let message = format!("the backing file of {}: {}", last.title, error.message);
                Error { message, ..error }
            })?;
            layers.push(Layer::new(opened, name, format)?);
            path = Some(found);
        }
    }

    /// The descriptors that a program reads.
    pub(super) fn inherited(&self) -> Vec<&Inherited> {
        self.0.iter().map(|layer| &layer.inherited).collect()
    }

    /// The block node that QEMU opens.
    pub(super) fn block_node(&self) -> String {
        let below = self.0.iter().rev().fold(Value::Null, |below, layer| {
            let mut node = json!({
                "driver": layer.format.name(),
                "file": { "driver": layer.driver(), "filename": layer.inherited.path() },
            });
            match layer.format {
                // Without this, QEMU opens the backing file that the image names.
                Format::Qcow2 | Format::Vmdk => node["backing"] = below,
                // Without this, QEMU rounds the size down to what an old BIOS could address.
                Format::Vpc => node["force_size_calc"] = json!("current_size"),
                Format::Raw | Format::Vhdx => {}
            }
            node
        });
        format!("json:{below}")
    }

    /// Length of the file at `depth` below the image. QEMU pads the last sector of a raw file.
    pub(super) fn len(&self, depth: usize) -> Option<u64> {
        self.0.get(depth).map(|layer| match layer.format {
            Format::Raw => layer.len.next_multiple_of(SECTOR_SIZE),
            _ => layer.len,
        })
    }

    /// Bytes of all files.
    pub(super) fn total_len(&self) -> u64 {
        self.0.iter().map(|layer| layer.len).sum()
    }

    /// Refuses backing files that were written while they were read.
    pub(super) fn check_unchanged(&self) -> Result<(), Error> {
        for layer in &self.0[1..] {
            Version::check(layer.version, &layer.file, &layer.title)?;
        }
        Ok(())
    }
}

impl Layer {
    fn new(file: File, title: String, format: Format) -> Result<Layer, Error> {
        let failed = |error: std::io::Error| read_error(&title, &error);
        let version = Version::of(&file).map_err(failed)?;
        let len = Version::len(&file).map_err(failed)?;
        Ok(Layer {
            inherited: Inherited::new(&file)?,
            version,
            len,
            title,
            file,
            format,
        })
    }

    /// QEMU's driver for the kind of the file.
    fn driver(&self) -> &'static str {
        let mode = nix::sys::stat::fstat(&self.file).map_or(0, |found| found.st_mode);
        if SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFBLK {
            "host_device"
        } else {
            "file"
        }
    }
}

/// Opens a file or device that an image names. Other kinds of files are refused: to open a pipe, for example, may block.
fn open_disk(path: &Path) -> std::io::Result<File> {
    let check = |found: &std::fs::Metadata| {
        let found = found.file_type();
        if found.is_file() || found.is_block_device() {
            Ok(())
        } else {
            let what = "is neither a file nor a block device";
            Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, what))
        }
    };
    check(&std::fs::metadata(path)?)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    // The name may lead to another file meanwhile.
    check(&file.metadata()?)?;
    Ok(file)
}

fn refused(title: &str, below: &Backing) -> Error {
    let message = format!(
        "{title} has a backing file, `{}`: it is not a whole image",
        below.name.escape_debug()
    );
    Error::new(ErrorCode::Invalid, message).with_hint(
        "if you trust the image, --backing reads that file too; otherwise inspect the image with `qemu-img info`",
    )
}

/// Path and format of the file below the image at `above`.
fn locate(above: &Path, title: &str, below: &Backing) -> Result<(PathBuf, Format), Error> {
    let refused = |what: &str| {
        let name = below.name.escape_debug();
        let message = format!("the backing file of {title}, `{name}`, {what}");
        Error::new(ErrorCode::Invalid, message)
    };
    // QEMU reads the part before a colon as a protocol.
    let colon = below.name.find(':');
    let slash = below.name.find('/').unwrap_or(usize::MAX);
    if colon.is_some_and(|colon| colon < slash) {
        return Err(refused("is no file: only files are taken"));
    }
    if below.name.is_empty() || below.name.contains('\0') {
        return Err(refused("has no name"));
    }
    let format = below.format.as_deref().ok_or_else(|| {
        // A guest that has written a raw backing file decides what it looks like.
        refused("has a format that the image does not name")
            .with_hint("record the format in the image: `qemu-img rebase -u -F FORMAT -b FILE`")
    })?;
    let format = Format::of_name(format)
        .ok_or_else(|| refused(&format!("has the format `{}`", format.escape_debug())))?;
    let directory = above.parent().unwrap_or(Path::new("/"));
    Ok((directory.join(&below.name), format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_whose_format_is_known_are_below_an_image() {
        let at = |name: &str, format: Option<&str>| {
            let below = Backing {
                name: name.to_owned(),
                format: format.map(str::to_owned),
            };
            locate(Path::new("/images/top"), "top", &below)
        };
        let (path, format) = at("base", Some("raw")).unwrap();
        assert_eq!(
            (path.as_path(), format),
            (Path::new("/images/base"), Format::Raw)
        );
        let (path, _) = at("/other/a:b", Some("qcow2")).unwrap();
        assert_eq!(path, Path::new("/other/a:b"));
        for (name, format) in [
            ("json:{\"driver\":\"raw\"}", Some("raw")),
            ("nbd://host/x", Some("raw")),
            ("fat:rw:x", Some("raw")),
            ("base", None),
            ("base", Some("ssh")),
            ("", Some("raw")),
        ] {
            assert_eq!(
                at(name, format).unwrap_err().code,
                ErrorCode::Invalid,
                "{name}"
            );
        }
    }
    #[test]
    fn what_would_block_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [path.as_path(), dir.path()] {
            let error = open_disk(path).unwrap_err();
            assert!(error.to_string().contains("neither"), "{error}");
        }
        let path = dir.path().join("file");
        std::fs::write(&path, b"x").unwrap();
        open_disk(&path).unwrap();
    }

    #[test]
    fn qemu_is_told_that_nothing_is_below() {
        let node = |format: Format| {
            let file = tempfile::tempfile().unwrap();
            let layer = Layer::new(file, "image".to_owned(), format).unwrap();
            let node = Layers(vec![layer]).block_node();
            let node = node.strip_prefix("json:").unwrap();
            serde_json::from_str::<Value>(node).unwrap()
        };
        for format in [Format::Qcow2, Format::Vmdk] {
            assert_eq!(node(format).get("backing"), Some(&Value::Null));
        }
        assert_eq!(node(Format::Vpc)["force_size_calc"], "current_size");
        let raw = tempfile::tempfile().unwrap();
        raw.set_len(1025).unwrap();
        let raw = Layer::new(raw, "raw".to_owned(), Format::Raw).unwrap();
        assert_eq!(Layers(vec![raw]).len(0), Some(1536));
    }
}
