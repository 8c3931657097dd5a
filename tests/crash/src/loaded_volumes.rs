//! Several volumes under verified load at once, each on a thread of its own, and how long each went without service.
//!
//! A gap is the longest time between two completions of one volume, so it begins before the kill, at the last request
//! that was still done, and contains all that a guest waits for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use archipelago_bench::waiting::{now, pause};

use crate::model::Model;
use crate::node::Node;
use crate::pattern::SECTOR;
use crate::verifier::{Load, Verifier};
use crate::witness::Witness;

/// Between two polls of the main thread.
const INTERVAL: Duration = Duration::from_millis(1);

/// What the thread of a volume reports.
#[derive(Debug)]
struct Progress {
    done: u64,
    last: Instant,
    longest: Duration,
}

impl Progress {
    fn add(&mut self, done: u64) {
        let now = now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
        self.done += done;
    }
}

#[derive(Debug)]
struct Member {
    name: String,
    progress: Arc<Mutex<Progress>>,
    thread: JoinHandle<Result<Verifier>>,
}

impl Member {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Volumes under load.
#[derive(Debug)]
pub struct LoadedVolumes {
    members: Vec<Member>,
    stop: Arc<AtomicBool>,
    witness: Arc<Witness>,
}

fn drive(
    mut verifier: Verifier,
    progress: &Mutex<Progress>,
    stop: &AtomicBool,
) -> Result<Verifier> {
    while !stop.load(Ordering::Relaxed) {
        let done = verifier.step()?;
        if done > 0 {
            progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .add(done);
        }
        let between = verifier.load().rest;
        if !between.is_zero() {
            pause(between);
        }
    }
    verifier.drain()?;
    Ok(verifier)
}

impl LoadedVolumes {
    /// Makes `count` volumes of `size` bytes and drives them.
    ///
    /// # Errors
    /// If the node refuses one.
    pub fn start(node: &Node, count: usize, size: usize, load: Load, seed: u64) -> Result<Self> {
        LoadedVolumes::named(node, "disk", count, size, load, seed)
    }

    /// The same, with names that begin with `prefix`: for a second set of volumes of the same node.
    ///
    /// # Errors
    /// As [`LoadedVolumes::start`].
    pub fn named(
        node: &Node,
        prefix: &str,
        count: usize,
        size: usize,
        load: Load,
        seed: u64,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let witness = Arc::new(Witness::start(node.root())?);
        let mut members = Vec::new();
        for index in 0..count {
            let name = format!("{prefix}-{index}");
            let socket = node.create(&name, size)?;
            let number = seed.wrapping_mul(1000) + index as u64;
            let model = Model::new(number, size / SECTOR);
            let verifier = Verifier::with_load(&socket, model, number, load)?;
            let verifier = verifier.beside(Arc::clone(&witness));
            let progress = Arc::new(Mutex::new(Progress {
                done: 0,
                last: now(),
                longest: Duration::ZERO,
            }));
            let (reported, stopped) = (Arc::clone(&progress), Arc::clone(&stop));
            let thread = std::thread::Builder::new()
                .name(name.clone())
                .spawn(move || drive(verifier, &reported, &stopped))?;
            members.push(Member {
                name,
                progress,
                thread,
            });
        }
        Ok(LoadedVolumes {
            members,
            stop,
            witness,
        })
    }

    /// The plain writer beside them.
    #[must_use]
    pub fn witness(&self) -> &Witness {
        &self.witness
    }

    /// Requests done, of all volumes.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.members
            .iter()
            .map(|member| member.progress().done)
            .sum()
    }

    /// Waits until `requests` more are done, of whatever volumes.
    ///
    /// # Errors
    /// If a volume fails.
    pub fn run(&mut self, requests: u64) -> Result<()> {
        let end = self.done() + requests;
        while self.done() < end {
            self.check()?;
            pause(INTERVAL);
        }
        Ok(())
    }

    /// A gap may begin now.
    pub fn begin(&self) {
        for member in &self.members {
            member.progress().longest = Duration::ZERO;
        }
    }

    /// Waits until each volume has done `requests` more: the longest gap of any volume since [`LoadedVolumes::begin`].
    ///
    /// # Errors
    /// If a volume fails; each has its own timeout, so this ends.
    pub fn served(&mut self, requests: u64) -> Result<Duration> {
        let ends: Vec<u64> = self
            .members
            .iter()
            .map(|member| member.progress().done + requests)
            .collect();
        loop {
            self.check()?;
            let behind = |(member, end): (&Member, &u64)| member.progress().done < *end;
            if !self.members.iter().zip(&ends).any(behind) {
                let gaps = self.members.iter().map(|member| member.progress().longest);
                return Ok(gaps.max().unwrap_or_default());
            }
            pause(INTERVAL);
        }
    }

    /// Checks that all volumes are still under load.
    ///
    /// # Errors
    /// The failure of a thread that has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(index) = self
            .members
            .iter()
            .position(|member| member.thread.is_finished())
        else {
            return Ok(());
        };
        let member = self.members.swap_remove(index);
        match joined(member.thread) {
            Err(error) => Err(error.context(member.name)),
            Ok(_verifier) => bail!("{} has stopped without a request to", member.name),
        }
    }

    /// Ends the load, checks every byte of every volume and flushes it.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn finish(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for member in std::mem::take(&mut self.members) {
            let mut verifier = joined(member.thread).with_context(|| member.name.clone())?;
            verifier
                .check_all()
                .and_then(|()| verifier.flush())
                .context(member.name)?;
        }
        Ok(())
    }
}

fn joined(thread: JoinHandle<Result<Verifier>>) -> Result<Verifier> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

impl Drop for LoadedVolumes {
    fn drop(&mut self) {
        // After a failure the others end by themselves or with the test's process.
        self.stop.store(true, Ordering::Relaxed);
    }
}
