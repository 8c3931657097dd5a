//! A guest that takes an error status for an answer, but not silence.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk, InFlight, Waited};
use archipelago_crash_tests::pattern::SECTOR;

use crate::oracle::Oracle;
use crate::server::DEADLINE;

/// Bytes of the longest request.
const BUFFER_LEN: usize = 128 << 10;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// An error status.
    Failed,
}

/// A volume in use, and what it may hold.
#[derive(Debug)]
pub struct Guest {
    disk: Disk,
    /// How long a request may take.
    pub timeout: Duration,
    /// Servers that died meanwhile.
    pub successors: u64,
}

impl Guest {
    /// Connects to a volume.
    ///
    /// # Errors
    /// If nobody serves it within [`DEADLINE`].
    pub fn connect(socket: &Path) -> Result<Guest> {
        let disk = Disk::connect(socket, 1, BUFFER_LEN, InFlight::Tracked, DEADLINE)?;
        Ok(Guest {
            disk,
            timeout: DEADLINE,
            successors: 0,
        })
    }

    fn run(&mut self, op: Op, first: usize, sectors: usize) -> Result<Status> {
        self.disk
            .submit(0, op, (first * SECTOR) as u64, sectors * SECTOR)?;
        self.disk.kick()?;
        loop {
            if let Some(done) = self.disk.next_done()? {
                return match done.result {
                    0 => Ok(Status::Ok),
                    -5 => Ok(Status::Failed),
                    other => bail!("{op:?} ended with {other}, which is no error status"),
                };
            }
            match self.disk.wait(self.timeout) {
                Ok(Waited::Rung) => {}
                Ok(Waited::Disconnected) => {
                    self.successors += 1;
                    self.disk.reconnect(self.timeout)?;
                }
                Ok(Waited::Nothing) => bail!("HANG: {op:?} at {first}"),
                Err(error) => return Err(error.context(format!("HANG: {op:?} at {first}"))),
            }
        }
    }

    /// Writes number `write`, or discards if that is 0.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn write(
        &mut self,
        oracle: &mut Oracle,
        first: usize,
        sectors: usize,
        write: u64,
    ) -> Result<Status> {
        let op = if write == 0 {
            Op::WriteZeroes { unmap: true }
        } else {
            let mut data = vec![0; sectors * SECTOR];
            oracle.fill(&mut data, first, write);
            self.disk.fill(0, &data)?;
            Op::Write
        };
        let status = self.run(op, first, sectors)?;
        match status {
            Status::Ok => oracle.written(first, sectors, write),
            Status::Failed => oracle.refused(first, sectors, write),
        }
        Ok(status)
    }

    /// Reads something.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn touch(&mut self, _: &mut Oracle) -> Result<Status> {
        self.run(Op::Read, 0, 1)
    }

    /// Flushes.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn flush(&mut self, oracle: &mut Oracle) -> Result<Status> {
        let status = self.run(Op::Flush, 0, 0)?;
        if status == Status::Ok {
            oracle.flushed();
        }
        Ok(status)
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// If there is no answer, or a wrong one.
    pub fn check_all(&mut self, oracle: &Oracle) -> Result<Status> {
        let mut data = vec![0; BUFFER_LEN];
        for first in (0..oracle.sectors()).step_by(BUFFER_LEN / SECTOR) {
            let sectors = (oracle.sectors() - first).min(BUFFER_LEN / SECTOR);
            let data = &mut data[..sectors * SECTOR];
            if self.run(Op::Read, first, sectors)? == Status::Failed {
                return Ok(Status::Failed);
            }
            self.disk.take(0, data)?;
            oracle.check(data, first)?;
        }
        Ok(Status::Ok)
    }
}
