//! Verified load on an open file or device that is never opened anew, or over connections that are never made again: whoever writes here
//! knows nothing of the processes behind it.
//!
//! Each thread has a part of the disk for itself and a model of it: what it has written is what it reads, and no call may fail.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::waiting::{now, wait_until};
use nix::fcntl::{FallocateFlags, OFlag, fallocate};

use crate::aligned::Aligned;
use crate::disk::{Disk, Durable, Space};
use crate::disks::nbd::Nbd;
use crate::fsx::noise;

/// Bytes that a thread has for itself.
const PART_LEN: usize = 1 << 20;
/// Longest transfer.
const TRANSFER_LEN: usize = 256 << 10;
/// Unit of direct I/O.
const SECTOR: usize = 512;
/// How long no thread gets on before the load counts as hung.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Operations of each thread that count as getting on.
const STEPS: u64 = 3;

/// Threads that load one disk.
#[derive(Debug)]
pub struct Load {
    threads: Vec<JoinHandle<Result<Duration>>>,
    done: Arc<Vec<AtomicU64>>,
    stop: Arc<AtomicBool>,
}

/// A file or device that is open, with memory for direct I/O.
#[derive(Debug)]
struct OpenFile {
    file: File,
    memory: Aligned,
}

impl Disk for OpenFile {
    fn size(&mut self) -> std::io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        let memory = self.memory.get(into.len());
        self.file.read_exact_at(memory, offset)?;
        into.copy_from_slice(memory);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> std::io::Result<()> {
        let memory = self.memory.get(data.len());
        memory.copy_from_slice(data);
        self.file.write_all_at(memory, offset)?;
        match durable {
            Durable::Now => self.flush(),
            Durable::Later => Ok(()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.sync_data()
    }

    fn zero(&mut self, offset: u64, len: u64, _space: Space) -> std::io::Result<()> {
        self.discard(offset, len)
    }

    fn discard(&mut self, offset: u64, len: u64) -> std::io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |bytes: u64| i64::try_from(bytes).map_err(std::io::Error::other);
        Ok(fallocate(&self.file, flags, signed(offset)?, signed(len)?)?)
    }
}

/// How a thread moves data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transfers {
    /// Sectors, past the page cache.
    Direct,
    /// Any bytes.
    Buffered,
}

impl Load {
    /// Loads the disk at `path` with `direct` threads that go past the page cache, and `buffered` ones. It has 1 MiB for each of them.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub fn start(path: &Path, direct: usize, buffered: usize) -> Result<Load> {
        let mut disks = Vec::new();
        for index in 0..direct + buffered {
            let transfers = match index < direct {
                true => Transfers::Direct,
                false => Transfers::Buffered,
            };
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            if transfers == Transfers::Direct {
                options.custom_flags(OFlag::O_DIRECT.bits());
            }
            let disk: Box<dyn Disk> = Box::new(OpenFile {
                file: options.open(path)?,
                memory: Aligned::new(TRANSFER_LEN),
            });
            disks.push((disk, transfers));
        }
        Load::over(disks)
    }

    /// Loads a disk over `connections` to an NBD server's default export at `socket`, none of which is ever made again. The disk has 1 MiB for each.
    ///
    /// # Errors
    /// If one cannot be made.
    pub fn start_nbd(socket: &Path, connections: usize) -> Result<Load> {
        let mut disks = Vec::new();
        for _ in 0..connections {
            let disk: Box<dyn Disk> = Box::new(Nbd::connect_once(socket)?);
            disks.push((disk, Transfers::Direct));
        }
        Load::over(disks)
    }

    fn over(disks: Vec<(Box<dyn Disk>, Transfers)>) -> Result<Load> {
        let count = disks.len();
        let stop = Arc::new(AtomicBool::new(false));
        let done: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
        let mut threads = Vec::new();
        for (index, (disk, transfers)) in disks.into_iter().enumerate() {
            let mut part = Part {
                disk,
                begin: (index * PART_LEN) as u64,
                model: Vec::new(),
                transfers,
                seed: index as u64 * 1_000_003,
            };
            let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || {
                let mut longest = Duration::ZERO;
                part.fill()?;
                // Relaxed: flags and counters of their own, they order nothing else.
                while !stop.load(Ordering::Relaxed) {
                    let began = now();
                    part.step()
                        .with_context(|| format!("thread {index}, {transfers:?}"))?;
                    longest = longest.max(now() - began);
                    done[index].fetch_add(1, Ordering::Relaxed);
                }
                part.check(0, PART_LEN)?;
                Ok(longest)
            }));
        }
        Ok(Load {
            threads,
            done,
            stop,
        })
    }

    /// Waits until each thread has got on.
    ///
    /// # Errors
    /// If one has failed, or does not get on for a minute.
    pub fn wait_for_progress(&self) -> Result<()> {
        // Relaxed: as above.
        let count = |one: &AtomicU64| one.load(Ordering::Relaxed);
        let before: Vec<u64> = self.done.iter().map(count).collect();
        let missing = || format!("a thread stands still: {:?}", self.done);
        wait_until(TIMEOUT, missing, || {
            let failed = self.threads.iter().any(JoinHandle::is_finished);
            let mut both = self.done.iter().zip(&before);
            let on = both.all(|(one, before)| count(one) >= before + STEPS);
            Ok((failed || on).then_some(()))
        })?;
        let failed = self.threads.iter().any(JoinHandle::is_finished);
        ensure!(!failed, "a thread has failed");
        Ok(())
    }

    /// Ends it, and verifies everything: operations, and the longest of them.
    ///
    /// # Errors
    /// The first that failed.
    pub fn finish(self) -> Result<(u64, Duration)> {
        // Relaxed: as above.
        self.stop.store(true, Ordering::Relaxed);
        let mut longest = Duration::ZERO;
        for thread in self.threads {
            let ended = thread.join();
            let ended = ended.map_err(|_panic| anyhow::anyhow!("a thread panicked"))?;
            longest = longest.max(ended?);
        }
        let done = self.done.iter().map(|one| one.load(Ordering::Relaxed));
        Ok((done.sum(), longest))
    }
}

/// The part of the disk that a thread has for itself.
struct Part {
    disk: Box<dyn Disk>,
    begin: u64,
    model: Vec<u8>,
    transfers: Transfers,
    seed: u64,
}

impl Part {
    fn random(&mut self, bound: usize) -> usize {
        self.seed += 1;
        let word: [u8; 8] = noise(self.seed, 8).try_into().unwrap_or_default();
        let bound = bound as u64;
        usize::try_from(u64::from_le_bytes(word) % bound).unwrap_or_default()
    }

    /// A range of the part, of sectors or of bytes.
    fn range(&mut self) -> (usize, usize) {
        let unit = match self.transfers {
            Transfers::Direct => SECTOR,
            Transfers::Buffered => 1,
        };
        let at = self.random(PART_LEN / unit) * unit;
        let room = TRANSFER_LEN.min(PART_LEN - at);
        // Mostly short: more of them are in flight when something dies.
        let most = match self.random(4) {
            0 => room,
            _ => room.min(8192),
        };
        let len = (self.random(most / unit) + 1) * unit;
        (at, len)
    }

    fn fill(&mut self) -> Result<()> {
        self.model = vec![0; PART_LEN];
        for at in (0..PART_LEN).step_by(TRANSFER_LEN) {
            self.write(at, TRANSFER_LEN)?;
        }
        Ok(())
    }

    fn write(&mut self, at: usize, len: usize) -> Result<()> {
        self.seed += 1;
        let data = noise(self.seed, len);
        let offset = self.begin + at as u64;
        let written = self.disk.write(offset, &data, Durable::Later);
        written.with_context(|| format!("write of {len} bytes at {offset}"))?;
        self.model[at..at + len].copy_from_slice(&data);
        Ok(())
    }

    fn check(&mut self, at: usize, len: usize) -> Result<()> {
        for at in (at..at + len).step_by(TRANSFER_LEN) {
            let len = TRANSFER_LEN.min(len);
            let offset = self.begin + at as u64;
            let mut found = vec![0; len];
            let read = self.disk.read(offset, &mut found);
            read.with_context(|| format!("read of {len} bytes at {offset}"))?;
            let expected = &self.model[at..at + len];
            let wrong = found.iter().zip(expected).position(|(a, b)| a != b);
            ensure!(wrong.is_none(), "wrong data at {offset} + {wrong:?}");
        }
        Ok(())
    }

    fn step(&mut self) -> Result<()> {
        let (at, len) = self.range();
        match self.random(12) {
            0 => self.disk.flush().context("sync"),
            1 if self.transfers == Transfers::Direct => {
                let offset = self.begin + at as u64;
                self.disk.discard(offset, len as u64).context("discard")?;
                self.model[at..at + len].fill(0);
                Ok(())
            }
            2..=5 => self.check(at, len),
            _ => self.write(at, len),
        }
    }
}
