//! Controls the supervisors of a pool's processes: sets the wanted state and waits for their end.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::process::Process;
use super::supervisor::{Event, Wish, supervise_always};

/// The supervisors of a pool's processes: sends them the wanted state, and waits for their end.
#[derive(Debug)]
pub(crate) struct Supervision {
    wishes: Vec<watch::Sender<Wish>>,
    /// One for each process, once they have been started.
    supervisors: Mutex<Vec<JoinHandle<()>>>,
    /// The service of the pool.
    service: Mutex<Option<JoinHandle<()>>>,
}

impl Supervision {
    /// For `processes` processes, which do not run yet.
    pub(crate) fn new(processes: usize) -> Supervision {
        Supervision {
            wishes: (0..processes)
                .map(|_| watch::Sender::new(Wish::Live))
                .collect(),
            supervisors: Mutex::default(),
            service: Mutex::default(),
        }
    }

    /// Starts a supervisor for each of `processes`, which sends starts and deaths to `events`.
    pub(crate) fn start(&self, processes: &[Arc<Process>], events: &mpsc::UnboundedSender<Event>) {
        let supervisors = processes.iter().zip(&self.wishes).map(|(process, wish)| {
            tokio::spawn(supervise_always(
                Arc::clone(process),
                wish.subscribe(),
                events.clone(),
            ))
        });
        // A panic under the lock has left the list complete.
        let mut kept = self
            .supervisors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *kept = supervisors.collect();
    }

    /// Sets the wanted state of the process `index`.
    pub(crate) fn wish(&self, index: usize, wish: Wish) {
        self.wishes[index].send_replace(wish);
    }

    /// The supervisors, so that the caller can wait for them.
    pub(crate) fn take_supervisors(&self) -> Vec<JoinHandle<()>> {
        // A panic under the lock has left the list complete.
        let mut supervisors = self
            .supervisors
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *supervisors)
    }

    /// Stores the task that serves the pool, and ends the previous one.
    pub(crate) fn set_service(&self, service: Option<JoinHandle<()>>) {
        // As above.
        let mut kept = self.service.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(former) = std::mem::replace(&mut *kept, service) {
            former.abort();
        }
    }
}
