//! Keeps a process alive: starts it again at once when it dies, more slowly when it dies repeatedly.
//!
//! | after | waits before the next life |
//! |---|---|
//! | a life of at least [`STABLE`] | nothing |
//! | a shorter one | nothing the first time, then 50 ms, doubled up to [`BACKOFF_MAX`] |

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::Error;
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::process::{Life, Process};
use crate::last_words;

/// A life this long forgives all earlier deaths.
const STABLE: Duration = Duration::from_secs(1);
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
    /// It did not stop in time, or is not worth waiting for.
    Kill,
}

/// Something that happened to a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// A life began.
    Started(Arc<Process>),
    /// A life ended, though nobody wished it.
    Died(Arc<Process>, End),
}

/// How a life ended.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// `None`: it could not begin.
    pub(crate) status: Option<ExitStatus>,
    /// Why, if it could still say so.
    pub(crate) last_words: Option<Error>,
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
        match end.status {
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

/// One life.
async fn live(
    process: &Arc<Process>,
    wish: &mut watch::Receiver<Wish>,
    events: &mpsc::UnboundedSender<Event>,
) -> End {
    let mut child = match process.spawn() {
        Ok(child) => child,
        Err(error) => {
            tracing::error!("starting the {} process: {error}", process.title());
            return End::default();
        }
    };
    let pid = child.id().unwrap_or(0);
    process.set_life(Life::Running(pid));
    tracing::info!("the {} process runs as {pid}", process.title());
    let _ended = events.send(Event::Started(Arc::clone(process)));
    loop {
        tokio::select! {
            status = child.wait() => return end(status.ok(), &mut child).await,
            changed = wish.changed() => {
                if changed.is_err() || *wish.borrow() == Wish::Kill {
                    tracing::warn!("the {} process {pid} is killed", process.title());
                    if let Err(error) = child.start_kill() {
                        tracing::warn!("killing {pid}: {error}");
                    }
                    return end(child.wait().await.ok(), &mut child).await;
                }
            }
        }
    }
}

/// Listens to what a process that has ended had to say. Nobody else holds its output, so this does not wait.
async fn end(status: Option<ExitStatus>, child: &mut Child) -> End {
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take()
        && let Err(error) = stdout
            .take(last_words::LEN_MAX)
            .read_to_end(&mut said)
            .await
    {
        tracing::debug!("the last words are lost: {error}");
    }
    End {
        status,
        last_words: last_words::hear(&said),
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
