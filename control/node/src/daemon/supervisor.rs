//! Keeps a process running: starts it again at once when it dies, and more slowly when it dies repeatedly.
//!
//! | after | waits before the next start |
//! |---|---|
//! | an uptime of at least [`STABLE`] | nothing |
//! | a shorter one | nothing the first time, then 50 ms, doubled up to [`BACKOFF_MAX`] |
//!
//! The supervisor never stops trying. If it panics, that is logged and it starts again ([`keep_running`]).

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::{Error, ErrorCode, last_words};
use tokio::io::AsyncReadExt;
use tokio::process::Child;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::process::{Process, RunState};

/// An uptime after which earlier deaths do not count any more.
const STABLE: Duration = Duration::from_secs(1);
/// First wait of a process that dies repeatedly.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest wait.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Wait before a task of the daemon that panicked runs again: a repeated panic must not use up the CPU.
const PANIC_WAIT: Duration = Duration::from_secs(1);
/// Wait before a failed part of the daemon, such as its API, is started again.
const RETRY_WAIT: Duration = Duration::from_secs(1);

/// The wanted state of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Keep it running.
    Live,
    /// It was asked to stop, so its end is expected.
    Stop,
    /// It did not stop in time, or need not be waited for.
    Kill,
}

/// An event of a process.
#[derive(Debug)]
pub(crate) enum Event {
    /// An incarnation has started.
    Started(Arc<Process>),
    /// An incarnation has ended unexpectedly.
    Died(Arc<Process>, End),
}

/// How an incarnation ended.
#[derive(Debug, Default)]
pub(crate) struct End {
    /// `None`: it could not be started.
    pub(crate) status: Option<ExitStatus>,
    /// The error that the process reported before it ended, if it reported one.
    pub(crate) last_words: Option<Error>,
}

impl End {
    /// Whether the node has lost its pool to another host, so that nothing may continue.
    pub(crate) fn is_final(&self) -> bool {
        let code = self.last_words.as_ref().map(|error| error.code);
        code == Some(ErrorCode::Stale)
    }

    /// The error that the `title` process ended.
    pub(crate) fn error(&self, title: &str) -> Error {
        let unsaid = |message| Error::new(ErrorCode::Unavailable, message);
        match (&self.last_words, self.status) {
            (Some(error), _) => error.clone(),
            (None, Some(status)) => unsaid(format!("the {title} process ended with {status}")),
            (None, None) => unsaid(format!("the {title} process cannot be waited for")),
        }
    }
}

/// Wait before the next start.
#[derive(Debug, Default)]
struct Backoff {
    deaths: u32,
}

impl Backoff {
    fn after(&mut self, uptime: Duration) -> Duration {
        if uptime >= STABLE {
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

/// Runs the future that `make` returns until it ends, and again after each panic: otherwise, a missing task would be noticed only when it
/// is needed. Calls `report` for each panic.
pub(crate) async fn keep_running<F>(
    what: &str,
    mut make: impl FnMut() -> F,
    mut report: impl FnMut(String),
) where
    F: Future<Output = ()> + 'static + Send,
{
    loop {
        let mut running = AbortOnDrop(tokio::spawn(make()));
        match (&mut running.0).await {
            Ok(()) => return,
            Err(error) if error.is_panic() => {
                let panic = error.into_panic();
                let why = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a text");
                let message = format!("{what} of the daemon panicked and begins anew: {why}");
                tracing::error!("{message}");
                report(message);
            }
            // Only the runtime cancels it, when the daemon ends.
            Err(_cancelled) => return,
        }
        tokio::time::sleep(PANIC_WAIT).await;
    }
}

/// Repeats `attempt` until it succeeds, with a pause after each failure, which is logged as a failure of `what`.
pub(crate) async fn keep_trying<F>(what: &str, mut attempt: impl FnMut() -> F)
where
    F: Future<Output = io::Result<()>>,
{
    while let Err(error) = attempt().await {
        let seconds = RETRY_WAIT.as_secs();
        tracing::error!("{what} failed and is tried again in {seconds} s: {error}");
        tokio::time::sleep(RETRY_WAIT).await;
    }
}

/// A task that is aborted when its owner is dropped.
pub(crate) struct AbortOnDrop(pub(crate) JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Supervises `process` until `wish` ends it, also after a panic of the supervisor itself.
pub(crate) async fn supervise_always(
    process: Arc<Process>,
    wish: watch::Receiver<Wish>,
    events: mpsc::UnboundedSender<Event>,
) {
    let what = format!("the supervisor of the {} process", process.title());
    let make = || supervise(Arc::clone(&process), wish.clone(), events.clone());
    keep_running(&what, make, |why| {
        // The panic killed its child.
        process.set_run_state(RunState::NotRunning);
        process.set_last_end(Error::new(ErrorCode::Internal, why));
        process.count_restart();
    })
    .await;
}

/// Supervises `process` until `wish` ends it.
async fn supervise(
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
        process.set_run_state(RunState::NotRunning);
        if end.is_final() {
            process.set_last_end(end.error(process.title()));
            let _ended = events.send(Event::Died(Arc::clone(&process), end));
            // The daemon ends, and does not start another incarnation.
            while *wish.borrow() == Wish::Live && wish.changed().await.is_ok() {}
            break;
        }
        let wait = backoff.after(began.elapsed());
        let title = process.title();
        let error = end.error(title);
        match end.status {
            Some(status) if end.last_words.is_none() => {
                tracing::warn!("the {title} process died ({status}), started again in {wait:?}");
            }
            Some(status) => {
                tracing::warn!(
                    "the {title} process died ({status}: {error}), started again in {wait:?}"
                );
            }
            None => tracing::error!("{error}, next try in {wait:?}"),
        }
        process.set_last_end(error);
        // When the daemon ends, there is no receiver any more.
        let _ended = events.send(Event::Died(Arc::clone(&process), end));
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = wish.changed() => {}
        }
    }
    process.set_run_state(RunState::Ended);
}

/// Runs one incarnation of `process` until it ends.
async fn live(
    process: &Arc<Process>,
    wish: &mut watch::Receiver<Wish>,
    events: &mpsc::UnboundedSender<Event>,
) -> End {
    let mut child = match process.spawn() {
        Ok(child) => child,
        Err(error) => {
            let message = format!("the {} process cannot be started: {error}", process.title());
            return End {
                status: None,
                last_words: Some(Error::new(ErrorCode::Unavailable, message)),
            };
        }
    };
    let pid = child.id().unwrap_or(0);
    process.set_run_state(RunState::Running(pid));
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

/// Reads the final error of a process that has ended. No other process has its output open, so this does not block.
async fn end(status: Option<ExitStatus>, child: &mut Child) -> End {
    let mut text = Vec::new();
    if let Some(stdout) = child.stdout.take()
        && let Err(error) = stdout
            .take(last_words::LEN_MAX)
            .read_to_end(&mut text)
            .await
    {
        tracing::debug!("the last words are lost: {error}");
    }
    End {
        status,
        last_words: last_words::decode(&text),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

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

    #[test]
    fn a_task_that_panics_is_reported_and_runs_again() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let runs = Arc::new(AtomicU32::new(0));
        let mut reports = Vec::new();
        let make = || {
            let runs = Arc::clone(&runs);
            async move {
                let run = runs.fetch_add(1, Ordering::Relaxed);
                assert!(run == 2, "run {run} fails");
            }
        };
        runtime.block_on(keep_running("a task", make, |why| reports.push(why)));
        assert_eq!(runs.load(Ordering::Relaxed), 3);
        assert_eq!(
            reports,
            [0, 1].map(|run| format!(
                "a task of the daemon panicked and begins anew: run {run} fails"
            ))
        );
    }

    #[test]
    fn what_fails_is_tried_again_after_a_pause_until_it_succeeds() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let begin = Instant::now();
            let mut tried = Vec::new();
            keep_trying("a test", || {
                tried.push(begin.elapsed());
                std::future::ready(match tried.len() {
                    1 | 2 => Err(io::Error::other("too few descriptors")),
                    _ => Ok(()),
                })
            })
            .await;
            assert_eq!(tried, [0, 1, 2].map(|pauses| RETRY_WAIT * pauses));
        });
    }
}
