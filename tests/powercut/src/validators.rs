//! Threads that look at points, each with a medium and guest memory of its own.
//!
//! Invariants
//! - Points are handed out in their order, so those before a failed one are looked at to their end: the failure that is
//!   reported is the first one, whichever thread was quicker.
//! - A panic of a peer is a failed point, too, and names it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Result, anyhow};
use archipelago_simulation::memory::MemoryPool;
use crossbeam_channel::{Receiver, Sender};

use crate::medium::{FileSystem, Medium};
use crate::point::Point;

/// Threads that look at the points of one recording.
pub const THREADS: usize = 4;

/// A failed point.
#[derive(Debug)]
pub struct Failure {
    /// Its number.
    pub number: u64,
    /// What is wrong.
    pub error: anyhow::Error,
}

/// The threads.
#[derive(Debug)]
pub struct Validators {
    points: Sender<Point>,
    threads: Vec<JoinHandle<()>>,
    first: Arc<Mutex<Option<Failure>>>,
}

impl Validators {
    /// Starts them, for images of `kind`.
    ///
    /// # Errors
    /// If there is no place for an image.
    pub fn start(kind: FileSystem) -> Result<Self> {
        // None waits: what is handed out is being looked at, and the reader is far ahead all the same.
        let (points, queue) = crossbeam_channel::bounded(0);
        let first = Arc::new(Mutex::new(None));
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            let medium = Medium::new(kind)?;
            let (queue, first) = (Receiver::clone(&queue), Arc::clone(&first));
            threads.push(std::thread::spawn(move || {
                validate(&queue, &medium, &first);
            }));
        }
        Ok(Validators {
            points,
            threads,
            first,
        })
    }

    /// Hands out a point, as soon as somebody is free. `false`: one has failed, and no more are wanted.
    #[must_use]
    pub fn take(&self, point: Point) -> bool {
        let failed = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = failed.is_none();
        drop(failed);
        wanted && self.points.send(point).is_ok()
    }

    /// Waits until all that were handed out have been looked at.
    ///
    /// # Errors
    /// The first that failed.
    pub fn finish(self) -> Result<(), Failure> {
        drop(self.points);
        for thread in self.threads {
            if let Err(panic) = thread.join() {
                // Not a peer's, which is caught where points are looked at.
                resume_unwind(panic);
            }
        }
        let mut failed = self.first.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map_or(Ok(()), Err)
    }
}

fn validate(queue: &Receiver<Point>, medium: &Medium, first: &Mutex<Option<Failure>>) {
    let mut memory = MemoryPool::default();
    for point in queue {
        let number = point.number;
        let look = AssertUnwindSafe(|| point.look(medium, &memory));
        let result = catch_unwind(look).unwrap_or_else(|_panic| {
            // What the panic has left there is nobody's.
            memory = MemoryPool::default();
            Err(anyhow!("it panicked: see above"))
        });
        let Err(error) = result else {
            continue;
        };
        let mut known = first.lock().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_none_or(|known| number < known.number) {
            *known = Some(Failure { number, error });
        }
    }
}
