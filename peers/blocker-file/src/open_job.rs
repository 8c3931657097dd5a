//! Opens a file of the pool: a job of a thread that may block.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::time::Duration;

use archipelago_protocol::object::ObjectKind;
use nix::fcntl::OFlag;

use crate::access::overwrite_in_place;
use crate::descriptors::wait;
use crate::layout::{CONTAINER_LEN, FileId, Layout};
use crate::log_job::make_header;

/// Whether a missing file is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

/// Which file to open, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenJob {
    pub(crate) id: FileId,
    pub(crate) missing: Missing,
    /// Bypass the page cache.
    pub(crate) direct: bool,
    /// Set a new file to be overwritten in place, on a file system that copies on write.
    pub(crate) in_place: bool,
    /// Pause before the try: no descriptor was free the last time.
    pub(crate) pause: Duration,
}

/// An open file.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) file: fs::File,
    /// It was created.
    pub(crate) created: bool,
}

impl OpenJob {
    pub(crate) fn run(&self, layout: &Layout) -> io::Result<Opened> {
        if !self.pause.is_zero() {
            wait(self.pause);
        }
        match self.open_file(layout, false) {
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && self.missing == Missing::Create =>
            {
                let file = self.open_file(layout, true)?;
                Ok(Opened {
                    file,
                    created: true,
                })
            }
            file => Ok(Opened {
                file: file?,
                created: false,
            }),
        }
    }

    fn open_file(&self, layout: &Layout, create: bool) -> io::Result<fs::File> {
        let path = layout.file(self.id);
        let direct = if self.direct {
            OFlag::O_DIRECT
        } else {
            OFlag::empty()
        };
        let open = |flags: OFlag| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(create)
                .mode(0o600)
                .custom_flags(flags.bits())
                .open(&path)
        };
        if create {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(layout.lineage(self.id.object.lineage))?;
        }
        let file = match open(direct | OFlag::O_NOATIME) {
            // Only the owner of a file may use `O_NOATIME`.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => open(direct)?,
            other => other?,
        };
        if create && self.in_place {
            overwrite_in_place(&file, &path);
        }
        if create && self.id.object.kind == ObjectKind::Data {
            // The full length at once, as a hole: writes beyond the end of a file are serialised.
            file.set_len(CONTAINER_LEN)?;
        }
        if self.missing == Missing::Create && self.id.object.kind == ObjectKind::Log {
            // Also for a file whose creation was interrupted.
            make_header(&file)?;
        }
        Ok(file)
    }
}
