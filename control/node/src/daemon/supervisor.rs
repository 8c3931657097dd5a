//! Keeps a process alive: starts it again at once when it dies, more slowly when it dies repeatedly.
//!
//! | after | waits before the next life |
//! |---|---|
//! | a life of at least [`STABLE`] | nothing |
//! | a shorter one | nothing the first time, then 50 ms, doubled up to [`BACKOFF_MAX`] |

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::process::{Life, Process};

/// A life this long forgives all earlier deaths.
const STABLE: Duration = Duration::from_secs(10);
/// First wait of a process that dies repeatedly.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// What the daemon shall do about a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Keep it alive.
    Live,
    /// It was told to stop: its end is no accident.
    Stop,
    /// It did not stop in time.
    Kill,
}

/// Something that happened to a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// A life began.
    Started(Arc<Process>),
    /// A life ended, though nobody wished it.
    Died(Arc<Process>, Option<ExitStatus>),
}

/// How long to wait before the next life.
#[derive(Debug, Default)]
struct Backoff {
    deaths: u32,
}

impl Backoff {
    fn after(&mut self, life: Duration) -> Duration {
        if life >= STABLE {
            self.deaths = 0;
        }
        self.deaths += 1;
        match self.deaths {
            1 => Duration::ZERO,
            more => BACKOFF_MIN
                .saturating_mul(1 << (more - 2).min(10))
                .min(BACKOFF_MAX),
        }
    }
}

/// Runs `process` until `wish` says otherwise.
pub(crate) async fn supervise(
    process: Arc<Process>,
    mut wish: watch::Receiver<Wish>,
    events: mpsc::UnboundedSender<Event>,
) {
    let mut backoff = Backoff::default();
    let mut first = true;
    while *wish.borrow() == Wish::Live {
        if !first {
            process.count_restart();
        }
        first = false;
        let began = Instant::now();
        let end = live(&process, &mut wish, &events).await;
        if *wish.borrow() != Wish::Live {
            break;
        }
        process.set_life(Life::Between);
        let wait = backoff.after(began.elapsed());
        match end {
            Some(status) => tracing::warn!(
                "the {} process died ({status}), next life in {wait:?}",
                process.title()
            ),
            None => tracing::error!(
                "the {} process cannot be started, next try in {wait:?}",
                process.title()
            ),
        }
        // Nobody listens any more when the daemon is ending.
        let _ended = events.send(Event::Died(Arc::clone(&process), end));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = wish.changed() => {}
        }
    }
    process.set_life(Life::Ended);
}

/// One life; `None`: it could not begin.
async fn live(
    process: &Arc<Process>,
    wish: &mut watch::Receiver<Wish>,
    events: &mpsc::UnboundedSender<Event>,
) -> Option<ExitStatus> {
    let mut child = match process.spawn() {
        Ok(child) => child,
        Err(error) => {
            tracing::error!("starting the {} process: {error}", process.title());
            return None;
        }
    };
    let pid = child.id().unwrap_or(0);
    process.set_life(Life::Running(pid));
    tracing::info!("the {} process runs as {pid}", process.title());
    let _ended = events.send(Event::Started(Arc::clone(process)));
    loop {
        tokio::select! {
            status = child.wait() => return status.ok(),
            changed = wish.changed() => {
                if changed.is_err() || *wish.borrow() == Wish::Kill {
                    tracing::warn!("the {} process {pid} is killed: it did not stop in time", process.title());
                    if let Err(error) = child.start_kill() {
                        tracing::warn!("killing {pid}: {error}");
                    }
                    return child.wait().await.ok();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_death_costs_no_wait_and_repeated_ones_more_and_more() {
        let mut backoff = Backoff::default();
        let short = Duration::from_millis(1);
        let waits: Vec<u128> = (0..10).map(|_| backoff.after(short).as_millis()).collect();
        assert_eq!(waits, [0, 50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.after(STABLE), Duration::ZERO);
        assert_eq!(backoff.after(short), BACKOFF_MIN);
    }
}
