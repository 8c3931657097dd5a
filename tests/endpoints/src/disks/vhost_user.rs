//! A front end of vhost-user-blk, which reconnects with its in-flight region.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk as FrontEnd, InFlight};

use crate::disk::{Disk, Durable, LEN_MAX, Space, TIMEOUT};

/// A connected front end with one slot.
#[derive(Debug)]
pub(crate) struct VhostUser {
    socket: PathBuf,
    /// `None`: while it is connected anew.
    front_end: Option<FrontEnd>,
}

fn connect(socket: &Path) -> Result<FrontEnd> {
    FrontEnd::connect(socket, 1, LEN_MAX, InFlight::Tracked, TIMEOUT).map_err(Error::other)
}

impl VhostUser {
    pub(crate) fn connect(socket: &Path) -> Result<VhostUser> {
        Ok(VhostUser {
            socket: socket.to_owned(),
            front_end: Some(connect(socket)?),
        })
    }

    fn front_end(&mut self) -> Result<&mut FrontEnd> {
        let front_end = self.front_end.as_mut();
        front_end.ok_or_else(|| Error::other("it could not be connected anew"))
    }

    fn run(&mut self, op: Op, offset: u64, len: usize) -> Result<()> {
        let front_end = self.front_end()?;
        let answer = front_end
            .submit(0, op, offset, len)
            .and_then(|()| front_end.kick())
            .and_then(|()| front_end.answer(TIMEOUT));
        match answer.map_err(Error::other)? {
            0 => Ok(()),
            code => Err(Error::from_raw_os_error(-code)),
        }
    }

    fn run_range(&mut self, op: Op, offset: u64, len: u64) -> Result<()> {
        self.run(op, offset, usize::try_from(len).map_err(Error::other)?)
    }
}

impl Disk for VhostUser {
    fn size(&mut self) -> Result<u64> {
        // One front end at a time.
        self.front_end = None;
        let front_end = self.front_end.insert(connect(&self.socket)?);
        Ok(front_end.capacity())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        self.run(Op::Read, offset, into.len())?;
        self.front_end()?.take(0, into).map_err(Error::other)
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()> {
        self.front_end()?.fill(0, data).map_err(Error::other)?;
        self.run(Op::Write, offset, data.len())?;
        match durable {
            Durable::Later => Ok(()),
            Durable::Now => self.flush(),
        }
    }

    fn flush(&mut self) -> Result<()> {
        self.run(Op::Flush, 0, 0)
    }

    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()> {
        let unmap = space == Space::Released;
        self.run_range(Op::WriteZeroes { unmap }, offset, len)
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.run_range(Op::Discard, offset, len)
    }
}
