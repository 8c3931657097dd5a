//! A file or a block device of this host: system calls, past the page cache wherever the request allows it.

use std::fs::{File, OpenOptions};
use std::io::{Error, Result, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_bench::waiting::{now, pause};
use archipelago_protocol::Access;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, OFlag, fallocate};
use nix::unistd::{Whence, lseek64};

use crate::aligned::Aligned;
use crate::disk::{Disk, Durable, LEN_MAX, Run, Space, TIMEOUT};

/// Between two attempts to open.
const RETRY: Duration = Duration::from_millis(20);
/// Unit of direct I/O.
const SECTOR: u64 = 512;

/// What is at the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    BlockDevice,
}

/// An open file or device.
#[derive(Debug)]
pub(crate) struct Posix {
    path: PathBuf,
    kind: Kind,
    access: Access,
    /// `None`: while it is opened anew.
    open: Option<Open>,
    memory: Aligned,
}

#[derive(Debug)]
struct Open {
    buffered: File,
    direct: File,
}

impl Open {
    fn new(path: &Path, access: Access) -> Result<Open> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::Write);
        let buffered = options.open(path)?;
        let direct = options.custom_flags(OFlag::O_DIRECT.bits()).open(path)?;
        // A device whose file has been taken away, and not given another one yet.
        match (&buffered).seek(SeekFrom::End(0))? {
            0 => Err(Errno::ENXIO.into()),
            _ => Ok(Open { buffered, direct }),
        }
    }
}

fn signed(value: u64) -> Result<i64> {
    i64::try_from(value).map_err(Error::other)
}

impl Posix {
    pub(crate) fn open(path: &Path, kind: Kind, access: Access) -> Result<Posix> {
        let mut posix = Posix {
            path: path.to_owned(),
            kind,
            access,
            open: None,
            memory: Aligned::new(LEN_MAX),
        };
        posix.run(|_open, _memory| Ok(()))?;
        Ok(posix)
    }

    /// Does `what`, again on a file that is opened anew if the one before has died.
    fn run<T>(&mut self, mut what: impl FnMut(&Open, &mut Aligned) -> Result<T>) -> Result<T> {
        let deadline = now() + TIMEOUT;
        loop {
            let done = match &self.open {
                Some(open) => what(open, &mut self.memory),
                None => match Open::new(&self.path, self.access) {
                    Ok(open) => {
                        self.open = Some(open);
                        continue;
                    }
                    Err(error) => Err(error),
                },
            };
            match done {
                Err(error) if is_passing(&error) && now() < deadline => {
                    // Closed before another is opened: a device that is open does not go away.
                    self.open = None;
                    pause(RETRY);
                }
                done => return done,
            }
        }
    }

    fn fallocate(&mut self, how: FallocateFlags, offset: u64, len: u64) -> Result<()> {
        let (offset, len) = (signed(offset)?, signed(len)?);
        let flags = how | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        self.run(|open, _| Ok(fallocate(&open.buffered, flags, offset, len)?))
    }
}

/// Whether another process may serve what this one did not.
fn is_passing(error: &Error) -> bool {
    let passing = [
        Errno::EIO,
        Errno::ENOTCONN,
        Errno::ECONNABORTED,
        Errno::ENXIO,
        Errno::ENOENT,
        Errno::ENODEV,
        Errno::EBUSY,
    ];
    let number = error.raw_os_error().map(Errno::from_raw);
    number.is_some_and(|number| passing.contains(&number))
}

/// Whether direct I/O can do it.
fn is_direct(offset: u64, len: usize) -> bool {
    offset.is_multiple_of(SECTOR) && (len as u64).is_multiple_of(SECTOR)
}

impl Disk for Posix {
    fn size(&mut self) -> Result<u64> {
        self.open = None;
        self.run(|open, _| (&open.buffered).seek(SeekFrom::End(0)))
    }

    fn unit(&self) -> u64 {
        match self.kind {
            Kind::File => 1,
            // Its page cache is the kernel's own: nothing of ours.
            Kind::BlockDevice => SECTOR,
        }
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let len = into.len();
        self.run(|open, memory| match is_direct(offset, len) {
            true => {
                let memory = memory.get(len);
                open.direct.read_exact_at(memory, offset)?;
                into.copy_from_slice(memory);
                Ok(())
            }
            false => open.buffered.read_exact_at(into, offset),
        })
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()> {
        self.run(|open, memory| {
            match is_direct(offset, data.len()) {
                true => {
                    let memory = memory.get(data.len());
                    memory.copy_from_slice(data);
                    open.direct.write_all_at(memory, offset)?;
                }
                false => open.buffered.write_all_at(data, offset)?,
            }
            match durable {
                Durable::Later => Ok(()),
                Durable::Now => open.direct.sync_data(),
            }
        })
    }

    fn flush(&mut self) -> Result<()> {
        self.run(|open, _| open.buffered.sync_data())
    }

    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()> {
        let how = match space {
            Space::Kept => FallocateFlags::FALLOC_FL_ZERO_RANGE,
            Space::Released => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
        };
        self.fallocate(how, offset, len)
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.fallocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE, offset, len)
    }

    fn grow(&mut self, size: u64) -> Result<bool> {
        match self.kind {
            Kind::BlockDevice => Ok(false),
            Kind::File => self.run(|open, _| open.buffered.set_len(size).map(|()| true)),
        }
    }

    fn run_at(&mut self, offset: u64) -> Result<Option<Run>> {
        if self.kind == Kind::BlockDevice {
            return Ok(None);
        }
        let from = signed(offset)?;
        self.run(|open, _| {
            let end = (&open.buffered).seek(SeekFrom::End(0))?;
            let seek = |whence| match lseek64(&open.buffered, from, whence) {
                Ok(at) => u64::try_from(at).map_err(Error::other),
                Err(Errno::ENXIO) => Ok(end),
                Err(errno) => Err(errno.into()),
            };
            let data = seek(Whence::SeekData)?;
            let hole = seek(Whence::SeekHole)?;
            Ok(Some(Run { data, hole }))
        })
    }
}
