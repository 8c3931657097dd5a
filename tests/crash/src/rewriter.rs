//! A guest of blocks that all have been written: it reads and rewrites them on a thread of its own, so it needs no space.
//!
//! Each block says which write made it; each read is checked, and each request is done within a deadline.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::load::Random;
use archipelago_bench::waiting::{now, pause};

use crate::disk::{Disk, InFlight};
use crate::model::Model;
use crate::pattern::SECTOR;

/// Bytes of its requests.
pub const BLOCK: usize = 4096;
const SECTORS: usize = BLOCK / SECTOR;
/// One request in so many is a flush.
const FLUSH_EVERY: u64 = 32;
/// Between two requests: a guest beside the test, not a load.
const PAUSE: Duration = Duration::from_millis(1);

/// What a rewriter reports while it runs.
#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    done: AtomicU64,
    /// Since [`Rewriter::longest`] was asked last, in microseconds.
    longest_us: AtomicU64,
}

/// A guest under way.
#[derive(Debug)]
pub struct Rewriter {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<()>>>,
}

struct Guest {
    disk: Disk,
    model: Model,
    random: Random,
    write: u64,
    timeout: Duration,
    block: Vec<u8>,
}

impl Guest {
    fn blocks(&self) -> usize {
        self.model.sectors() / SECTORS
    }

    fn run(&mut self, op: Op, block: usize) -> Result<()> {
        let len = if op == Op::Flush { 0 } else { BLOCK };
        let done = self.disk.run(op, (block * BLOCK) as u64, len, self.timeout);
        done.with_context(|| format!("{op:?} of block {block}"))
    }

    fn write(&mut self, block: usize) -> Result<()> {
        self.write += 1;
        self.model
            .fill(&mut self.block, block * SECTORS, self.write);
        self.disk.fill(0, &self.block)?;
        self.run(Op::Write, block)?;
        self.model.note(block * SECTORS, SECTORS, self.write);
        Ok(())
    }

    fn check(&mut self, block: usize) -> Result<()> {
        self.run(Op::Read, block)?;
        self.disk.take(0, &mut self.block)?;
        self.model.check(&self.block, block * SECTORS)
    }

    fn drive(&mut self, progress: &Progress) -> Result<()> {
        while !progress.stop.load(Ordering::Relaxed) {
            let begun = now();
            let done = progress.done.load(Ordering::Relaxed);
            let block = usize::try_from(self.random.below(self.blocks() as u64))?;
            match self.random.below(2) {
                _ if done.is_multiple_of(FLUSH_EVERY) => self.run(Op::Flush, 0)?,
                0 => self.write(block)?,
                _ => self.check(block)?,
            }
            let took = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            progress.longest_us.fetch_max(took, Ordering::Relaxed);
            progress.done.fetch_add(1, Ordering::Relaxed);
            pause(PAUSE);
        }
        (0..self.blocks()).try_for_each(|block| self.check(block))
    }
}

impl Rewriter {
    /// Writes and flushes all of the volume of `blocks` blocks at `socket`, then continues in the background. A request that is not
    /// done within `timeout`, also over a restart of the server, is a failure.
    ///
    /// # Errors
    /// If the volume does not take it.
    pub fn start(socket: &Path, blocks: usize, seed: u64, timeout: Duration) -> Result<Rewriter> {
        let disk = Disk::connect(socket, 1, BLOCK, InFlight::Tracked, timeout)?;
        ensure!(
            disk.capacity() == (blocks * BLOCK) as u64,
            "{blocks} blocks"
        );
        let mut guest = Guest {
            disk,
            model: Model::new(seed, blocks * SECTORS),
            random: Random::new(seed),
            write: 0,
            timeout,
            block: vec![0; BLOCK],
        };
        (0..blocks).try_for_each(|block| guest.write(block))?;
        guest.run(Op::Flush, 0)?;
        let progress = Arc::new(Progress::default());
        let reported = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("rewriter".to_owned())
            .spawn(move || guest.drive(&reported))?;
        Ok(Rewriter {
            progress,
            thread: Some(thread),
        })
    }

    /// Requests done so far.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.progress.done.load(Ordering::Relaxed)
    }

    /// The longest that a request took since this was asked last.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.progress.longest_us.swap(0, Ordering::Relaxed))
    }

    /// Finds out whether it is still under way.
    ///
    /// # Errors
    /// What was wrong, if it has ended.
    pub fn check(&mut self) -> Result<()> {
        if self.thread.as_ref().is_none_or(JoinHandle::is_finished) {
            self.join()?;
            bail!("a guest has ended without a request to");
        }
        Ok(())
    }

    /// Ends it, after it has checked every block.
    ///
    /// # Errors
    /// What was wrong.
    pub fn finish(mut self) -> Result<()> {
        self.join()
    }

    fn join(&mut self) -> Result<()> {
        self.progress.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_panic)) => bail!("a guest panicked"),
            None => Ok(()),
        }
    }
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        // After a failure it ends by itself, or with the test's process.
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}
