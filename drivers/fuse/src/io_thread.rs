//! The queue and the thread of one open file: here the callers' side; `worker` carries the requests out.
//!
//! A thread for each open file: a file whose storage hangs does not delay others. The length of the queue is bounded by the kernel's limit
//! of requests in flight, and by the programs that wait for theirs.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use archipelago_kept_volume::Opener;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::job::Job;
use crate::worker::{FileSize, Worker};

/// The queue of an open file. Its thread closes the file and ends when the last sender is dropped.
#[derive(Debug)]
pub(crate) struct IoThread {
    /// `None` while this is dropped.
    jobs: Option<Sender<Job>>,
    doorbell: Arc<EventFd>,
}

impl IoThread {
    /// Starts the thread for the file of `opener`, whose requests wait for up to `wait_max` while its endpoint is away. Nothing is opened
    /// yet.
    ///
    /// # Errors
    /// The kernel's error: no descriptor, no thread.
    pub(crate) fn start(
        opener: Opener,
        size: FileSize,
        wait_max: Duration,
    ) -> std::io::Result<(IoThread, JoinHandle<()>)> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let doorbell = Arc::new(EventFd::from_value_and_flags(0, flags)?);
        let (jobs, queue) = channel();
        let worker = Worker::new(opener, size, queue, Arc::clone(&doorbell), wait_max);
        let thread = std::thread::Builder::new().name("volume".to_owned());
        let thread = thread.spawn(move || worker.run())?;
        let jobs = Some(jobs);
        Ok((IoThread { jobs, doorbell }, thread))
    }

    /// Queues `job`.
    pub(crate) fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends only after its last sender is dropped.
            let _sent = jobs.send(job);
            self.ring();
        }
    }

    fn ring(&self) {
        // A counter that is full is readable already.
        let _rung = self.doorbell.write(1);
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.jobs = None;
        self.ring();
    }
}
