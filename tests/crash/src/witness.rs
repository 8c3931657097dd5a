//! A plain writer beside a pool: for how long its file system, and the machine, make anybody wait.
//!
//! It rewrites a block of its own and syncs it, over and over, without anything of the product. A busy disk or a commit of the file
//! system holds it up as it holds up the pool, so a guest is disturbed by the product only if it waits longer than this writer.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use archipelago_bench::program::output;
use archipelago_bench::waiting::{now, pause};

const BLOCK: usize = 4096;
/// Between two writes: not a load.
const PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug, Default)]
struct Progress {
    stop: AtomicBool,
    /// Since [`Witness::longest`] was asked last, in microseconds.
    longest_us: AtomicU64,
    /// Since the start.
    longest: Mutex<Longest>,
}

#[derive(Debug, Default)]
struct Longest {
    done: Duration,
    /// Since when a write is under way.
    since: Option<Instant>,
}

impl Progress {
    fn longest(&self) -> MutexGuard<'_, Longest> {
        // Whole after each of its assignments.
        self.longest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer under way.
#[derive(Debug)]
pub struct Witness {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<()>>,
}

fn drive(file: &File, progress: &Progress) {
    let mut byte = 0_u8;
    while !progress.stop.load(Ordering::Relaxed) {
        byte = byte.wrapping_add(1);
        let begun = now();
        progress.longest().since = Some(begun);
        // Only how long it takes counts: a full btrfs may refuse it.
        let _done = file.write_all_at(&[byte; BLOCK], 0);
        let _synced = file.sync_data();
        let took = begun.elapsed();
        {
            let mut longest = progress.longest();
            longest.done = longest.done.max(took);
            longest.since = None;
        }
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        progress.longest_us.fetch_max(took_us, Ordering::Relaxed);
        pause(PAUSE);
    }
}

impl Witness {
    /// Starts to write in `directory`.
    ///
    /// # Errors
    /// If there is no room for a block.
    pub fn start(directory: &Path) -> Result<Witness> {
        let path = directory.join("witness");
        let file = File::create(&path)?;
        // In place on btrfs too; other file systems refuse it.
        let _in_place = output(Command::new("chattr").arg("+C").arg(&path))?;
        file.write_all_at(&[0; BLOCK], 0)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        let progress = Arc::new(Progress::default());
        let reported = Arc::clone(&progress);
        let thread = std::thread::Builder::new()
            .name("witness".to_owned())
            .spawn(move || drive(&file, &reported))?;
        Ok(Witness {
            progress,
            thread: Some(thread),
        })
    }

    /// The longest that a synced write took since this was asked last.
    #[must_use]
    pub fn longest(&self) -> Duration {
        Duration::from_micros(self.progress.longest_us.swap(0, Ordering::Relaxed))
    }

    /// The longest that a synced write took since the start, one that is under way included.
    #[must_use]
    pub fn stall(&self) -> Duration {
        let longest = self.progress.longest();
        let under_way = longest.since.map(|since| since.elapsed());
        longest.done.max(under_way.unwrap_or_default())
    }

    /// Ends it: its file is closed then.
    ///
    /// # Errors
    /// If it panicked.
    pub fn finish(mut self) -> Result<()> {
        self.progress.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Err(_panic)) => bail!("a plain writer panicked"),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        // After a failure it ends by itself, or with the test's process.
        self.progress.stop.store(true, Ordering::Relaxed);
    }
}
