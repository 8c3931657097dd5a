//! A file system that is soon full, and a guest's disk that is written MiB by MiB until it is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::waiting::{now, wait_until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::disk::{Disk, InFlight};
use crate::skip;

/// Bytes of a piece.
pub const MIB: usize = 1 << 20;
/// Longest wait for anything that is to happen.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Slots of the writes and of the reads beside them.
const WRITES: usize = 0;
const READS: usize = 1;

/// Calls `test` with the directory of a file system of 48 MiB.
///
/// # Errors
/// The test's, or what is missing here.
pub fn on_a_small_file_system(test: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let size = Some("size=48m");
    let mounted = mount(
        Some("tmpfs"),
        dir.path(),
        Some("tmpfs"),
        MsFlags::empty(),
        size,
    );
    if let Err(errno) = mounted {
        return skip(&format!("mounting a small tmpfs needs privileges: {errno}"));
    }
    let result = test(dir.path());
    umount2(dir.path(), MntFlags::MNT_DETACH)?;
    result
}

/// A front end that writes one MiB after the other, each once.
#[derive(Debug)]
pub struct Writer {
    disk: Disk,
    /// Pieces that were written.
    written: usize,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The guest's status: 0, or an error number less than 0.
    pub result: i32,
    /// How long it took.
    pub after: Duration,
}

impl Writer {
    /// Connects to `socket`.
    ///
    /// # Errors
    /// If that fails.
    pub fn connect(socket: &Path) -> Result<Writer> {
        let disk = Disk::connect(socket, 2, MIB, InFlight::Tracked, TIMEOUT)?;
        Ok(Writer { disk, written: 0 })
    }

    /// Submits the next piece, which is not written yet: the same again after a failure.
    ///
    /// # Errors
    /// If it cannot be submitted.
    pub fn submit(&mut self) -> Result<()> {
        self.disk.fill(WRITES, &content(self.written))?;
        let offset = (self.written * MIB) as u64;
        self.disk.submit(WRITES, Op::Write, offset, MIB)?;
        self.disk.kick()
    }

    /// Waits until what was submitted is done. `None`: not within `timeout`.
    ///
    /// # Errors
    /// If the server does not come back, or answers something else.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Written>> {
        let begun = now();
        let result = self.result_of(WRITES, timeout)?;
        self.written += usize::from(result == Some(0));
        let after = now() - begun;
        Ok(result.map(|result| Written { result, after }))
    }

    /// Both.
    ///
    /// # Errors
    /// As they, or if it is not done within 20 s.
    pub fn write(&mut self) -> Result<Written> {
        self.submit()?;
        self.wait(TIMEOUT)?
            .with_context(|| format!("a write is not answered for {TIMEOUT:?}"))
    }

    /// Writes the next piece again and again until that succeeds.
    ///
    /// # Errors
    /// As [`Writer::write`], or if it does not within `timeout`.
    pub fn write_within(&mut self, timeout: Duration) -> Result<()> {
        let failing = || "writes still fail".to_owned();
        wait_until(timeout, failing, || {
            Ok((self.write()?.result == 0).then_some(()))
        })
    }

    /// Writes until that fails: with what.
    ///
    /// # Errors
    /// As [`Writer::write`], or if it never fails.
    pub fn fill(&mut self) -> Result<Written> {
        for _ in 0..48 {
            let written = self.write()?;
            if written.result != 0 {
                return Ok(written);
            }
        }
        anyhow::bail!("a file system of 48 MiB takes more than that")
    }

    /// Writes until one is not answered within `timeout`.
    ///
    /// # Errors
    /// As [`Writer::write`], or if one fails.
    pub fn fill_until_it_waits(&mut self, timeout: Duration) -> Result<()> {
        loop {
            self.submit()?;
            match self.wait(timeout)? {
                None => return Ok(()),
                Some(written) => ensure!(written.result == 0, "a write fails: {written:?}"),
            }
        }
    }

    /// Flushes.
    ///
    /// # Errors
    /// If that fails.
    pub fn flush(&mut self) -> Result<()> {
        self.disk.submit(WRITES, Op::Flush, 0, 0)?;
        self.disk.kick()?;
        let result = self.result_of(WRITES, TIMEOUT)?;
        ensure!(result == Some(0), "a flush: {result:?}");
        Ok(())
    }

    /// MiB that were written.
    #[must_use]
    pub fn written(&self) -> usize {
        self.written
    }

    /// Reads all that was written, also beside a write that waits, and compares it.
    ///
    /// # Errors
    /// If a read fails, waits, or gives something else.
    pub fn check(&mut self) -> Result<()> {
        let mut data = vec![0; MIB];
        for piece in 0..self.written {
            self.disk
                .submit(READS, Op::Read, (piece * MIB) as u64, MIB)?;
            self.disk.kick()?;
            let result = self.result_of(READS, TIMEOUT)?;
            ensure!(result == Some(0), "reading MiB {piece}: {result:?}");
            self.disk.take(READS, &mut data)?;
            ensure!(data == content(piece), "MiB {piece} is another one");
        }
        Ok(())
    }

    fn result_of(&mut self, slot: usize, timeout: Duration) -> Result<Option<i32>> {
        let Some(done) = self.disk.done_within(timeout, TIMEOUT)? else {
            return Ok(None);
        };
        ensure!(done.slot == slot, "slot {} was done, not {slot}", done.slot);
        Ok(Some(done.result))
    }
}

/// What `piece` holds.
fn content(piece: usize) -> Vec<u8> {
    let byte = u8::try_from(piece % 251).expect("below 251");
    vec![byte + 1; MIB]
}
