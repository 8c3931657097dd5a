//! The service of a pool: its processes are started, the pool is opened, what is attached is served; then watched until the end.
//!
//! | state | left when |
//! |---|---|
//! | [`PoolState::Opening`] | each process has answered and the catalogue can be read; or one has died, or storage hangs |
//! | [`PoolState::Failed`] | as above: tried again, at first after [`RETRY_MIN`], at last every [`RETRY_MAX`] |
//! | [`PoolState::Served`] | another host takes the pool over, or its processes end [`ENDS_MAX`] times and say why; one that is killed is started again |
//! | [`PoolState::Lost`] | never |
//!
//! Each pool has a task of its own for this, so what one pool waits for keeps no other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{Error, ErrorCode};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::pool::{Pool, PoolState};
use super::pool_requests::unexpected_reply;
use super::pool_user::PoolUser;
use super::process::AskError;
use super::supervisor::{AbortOnDrop, End, Event, Wish, keep_running};
use crate::socket::unlink;

/// How long all processes of a pool together may take to drain; less, once storage hangs.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long each of them has at least, whatever the others took.
const DRAIN_TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// How long a process has to drain beside a call that hangs already.
const DRAIN_BESIDE: Duration = Duration::from_secs(5);
/// How long the kernel may take to close what ended processes had open of the pool: milliseconds, more under load.
pub(crate) const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to exit after it has said that it drained.
pub(crate) const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often the daemon looks at a pool's file system by itself.
const WATCH_STEP: Duration = Duration::from_secs(5);
/// First wait before a pool that could not be opened is tried again.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A pool whose processes have ended so often, each time saying why, is not served any more.
const ENDS_MAX: u32 = 3;
/// One such end counts as another if it came so soon after it.
const ENDS_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait: whoever mounts the pool shall see its volumes come back.
const RETRY_MAX: Duration = Duration::from_secs(5);

type Events = Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Event>>>;

/// Starts the processes of `pool`, and serves it until it is stopped.
pub(crate) fn start(pool: &Arc<Pool>) {
    let (sender, events) = mpsc::unbounded_channel();
    pool.supervision.start(&pool.processes, &sender);
    let events: Events = Arc::new(tokio::sync::Mutex::new(events));
    let served = Arc::clone(pool);
    let service = tokio::spawn(async move {
        // Kept so that the events do not end, whatever becomes of the supervisors.
        let _sender = sender;
        let make = || serve(Arc::clone(&served), Arc::clone(&events));
        keep_running(
            &format!("the service of pool `{}`", served.name),
            make,
            |_logged| {},
        )
        .await;
    });
    pool.supervision.set_service(Some(service));
}

/// Opens the pool, however often that takes, and follows what becomes of its processes.
async fn serve(pool: Arc<Pool>, events: Events) {
    let events = &mut *events.lock().await;
    loop {
        let incarnations = pool.endpoint_incarnations.subscribe();
        if !matches!(pool.state(), PoolState::Served) && !open_until_served(&pool, events).await {
            return;
        }
        let served = Arc::clone(&pool);
        let _attachments = AbortOnDrop(tokio::spawn(async move {
            let make = || Arc::clone(&served).serve_incarnations(incarnations.clone());
            keep_running("serving what is attached", make, |_logged| {}).await;
        }));
        let _watch = AbortOnDrop(tokio::spawn(watch_pool(Arc::clone(&pool))));
        match follow(&pool, events).await {
            Outcome::Fails(error) => pool.set_state(PoolState::Failed(error)),
            Outcome::Lost => return,
        }
    }
}

/// Looks at the pool's file system from time to time, for the log.
async fn watch_pool(pool: Arc<Pool>) {
    let make = || {
        let pool = Arc::clone(&pool);
        async move {
            loop {
                if let Some(watch) = &pool.watch {
                    watch.look(&pool.name).await;
                }
                tokio::time::sleep(WATCH_STEP).await;
            }
        }
    };
    keep_running("the look at the pool", make, |_logged| {}).await;
}

/// What becomes of a pool that is served.
enum Outcome {
    /// Its processes end again and again, and say why.
    Fails(Error),
    /// Another host has taken it over.
    Lost,
}

/// Follows what becomes of the processes of a pool that is served.
async fn follow(pool: &Pool, events: &mut mpsc::UnboundedReceiver<Event>) -> Outcome {
    let mut ends = 0;
    let mut last = Instant::now();
    loop {
        match events.recv().await {
            Some(Event::Died(_, end)) if end.is_final() => {
                lose(pool, end);
                return Outcome::Lost;
            }
            // A process that was killed says nothing: its next incarnation serves at once.
            Some(Event::Died(
                _,
                End {
                    last_words: Some(error),
                    ..
                },
            )) => {
                ends = if last.elapsed() < ENDS_WITHIN {
                    ends + 1
                } else {
                    1
                };
                last = Instant::now();
                if ends == ENDS_MAX {
                    return Outcome::Fails(error);
                }
            }
            Some(Event::Started(process)) if process.roles().contains(&Role::Endpoint) => {
                pool.endpoint_incarnations.send_modify(|count| *count += 1);
            }
            Some(Event::Started(_) | Event::Died(..)) => {}
            // Our own sender is kept.
            None => std::future::pending().await,
        }
    }
}

/// Opens the pool; whether it is served now, else it is lost.
async fn open_until_served(pool: &Arc<Pool>, events: &mut mpsc::UnboundedReceiver<Event>) -> bool {
    let mut wait = RETRY_MIN;
    let mut logged = String::new();
    loop {
        let opened = tokio::select! {
            opened = open(pool) => opened,
            (title, end) = first_death(events) => {
                if end.is_final() {
                    lose(pool, end);
                    return false;
                }
                Err(died_at_start(pool, &title, end))
            }
        };
        match opened {
            Ok(()) => break,
            Err(error) => {
                if error.message != logged {
                    tracing::error!(
                        "pool `{}` is not served and tried again: {error}",
                        pool.name
                    );
                    logged.clone_from(&error.message);
                }
                pool.set_state(PoolState::Failed(error));
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RETRY_MAX);
        // What died meanwhile was started again, or is about to be.
        while events.try_recv().is_ok() {}
    }
    tracing::info!("pool `{}` is served", pool.name);
    pool.set_state(PoolState::Served);
    true
}

/// Another host has taken the pool over: nothing may be written any more.
fn lose(pool: &Pool, end: End) {
    let unsaid = || Error::new(ErrorCode::Stale, "another host has taken it over");
    kill_at_once(pool);
    pool.set_state(PoolState::Lost(end.last_words.unwrap_or_else(unsaid)));
}

fn kill_at_once(pool: &Pool) {
    for index in 0..pool.processes.len() {
        pool.supervision.wish(index, Wish::Kill);
    }
}

/// Waits until each process answers, the catalogue can be read, and what was attached is served.
async fn open(pool: &Arc<Pool>) -> Result<(), Error> {
    for process in &pool.processes {
        let role = process.roles()[0];
        match pool.ask(role, &ControlRequest::Status).await {
            // The process answers once it has opened the pool.
            Ok(ControlReply::Status(_)) => process.note_opened(),
            Ok(other) => return Err(unexpected_reply(&other)),
            Err(error) if process.roles().contains(&Role::Blocker) => {
                let place = pool.config.place();
                let storage = match pool.config.directory() {
                    Some(_) => "that file system",
                    None => "the cluster",
                };
                let hint = format!(
                    "it opens `{}` first: does {storage} answer?",
                    place.display()
                );
                return Err(error.with_hint(hint));
            }
            Err(error) => return Err(error),
        }
    }
    pool.entries().await?;
    let failed = pool.serve_all(None).await;
    if !failed.is_empty() || pool.has_local() {
        // Guests of the others are served meanwhile. What this host itself uses opens its volumes through the API.
        pool.endpoint_incarnations.send_modify(|count| *count += 1);
    }
    Ok(())
}

async fn first_death(events: &mut mpsc::UnboundedReceiver<Event>) -> (String, End) {
    loop {
        match events.recv().await {
            Some(Event::Died(process, end)) => return (process.title().to_owned(), end),
            Some(Event::Started(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// A process that cannot even start says why; one that does not is known by its exit code.
fn died_at_start(pool: &Pool, title: &str, end: End) -> Error {
    if let Some(error) = end.last_words {
        return match PoolUser::of_pool(&pool.config) {
            // One of this daemon's own is another pool's, in the same directory.
            PoolUser::Node(other)
                if error.code == ErrorCode::InUse && other.daemon != std::process::id() =>
            {
                other.in_use(&pool.context.layout)
            }
            _ => error,
        };
    }
    let exit = end
        .status
        .and_then(|status| status.code())
        .and_then(|code| u8::try_from(code).ok());
    let code = exit
        .and_then(|exit| {
            ErrorCode::ALL
                .into_iter()
                .find(|code| exit != 1 && code.exit_code() == exit)
        })
        .unwrap_or(ErrorCode::Unavailable);
    let how = end.status.map_or_else(
        || "could not be started".to_owned(),
        |status| format!("ended with {status}"),
    );
    Error::new(code, format!("the {title} process {how}")).with_hint(format!(
        "its log says why: {}",
        pool.context.layout.log().display()
    ))
}

/// Stops endpoint, mapper and blocker in this order: each when nobody needs it any more. What could not be finished is
/// ended by force, as by a kill, and told.
pub(crate) async fn stop(pool: &Pool) -> Vec<String> {
    pool.supervision.set_service(None);
    let deadline = Instant::now() + DRAIN_TIMEOUT;
    let used_here = async { [pool.end_all_local().await, pool.end_nbd_devices().await].concat() };
    let used_here = tokio::time::timeout(DRAIN_TIMEOUT, used_here).await;
    let mut unfinished = used_here.unwrap_or_else(|_late| {
        vec!["what this host uses of the pool did not end in time: I/O waits there now".to_owned()]
    });
    let mut supervisors = pool.supervision.take_supervisors();
    let mut all_ended = true;
    for role in [Role::Endpoint, Role::Mapper, Role::Blocker] {
        let Some(index) = pool
            .processes
            .iter()
            .position(|process| process.roles()[0] == role)
        else {
            continue;
        };
        let process = &pool.processes[index];
        let Some(task) = supervisors.get_mut(index) else {
            continue;
        };
        pool.supervision.wish(index, Wish::Stop);
        let left = deadline.saturating_duration_since(Instant::now());
        let mut drained = Ok(());
        let pid = process.pid();
        if pid != 0 {
            let stop = ControlRequest::Stop;
            let timeout = left.max(DRAIN_TIMEOUT_MIN);
            let asked = pool.ask_watched(process, &stop, timeout, DRAIN_BESIDE);
            drained = match asked.await {
                Ok(ControlReply::Done) | Err(AskError::Lost) => Ok(()),
                Ok(_other) => Err("its answer is not understood".to_owned()),
                Err(AskError::Failed(error)) => Err(error.message),
            };
        }
        let title = process.title();
        if let Err(why) = &drained {
            unfinished.push(format!(
                "the {title} process was killed before it had finished: {why}"
            ));
        }
        let ends = drained.is_ok() && tokio::time::timeout(EXIT_TIMEOUT, &mut *task).await.is_ok();
        if !ends {
            pool.supervision.wish(index, Wish::Kill);
            if tokio::time::timeout(EXIT_TIMEOUT, task).await.is_err() {
                all_ended = false;
                unfinished.push(format!(
                    "the {title} process {pid} ends, and gives the pool back, only when its last call on the storage returns"
                ));
            }
        }
        unlink(process.socket());
    }
    if all_ended && let Err(left) = release(pool).await {
        unfinished.push(left);
    }
    for line in &unfinished {
        tracing::warn!("{line}");
    }
    unfinished
}

/// Waits until the pool can be unmounted: the kernel closes what a process had open some time after its end was seen.
async fn release(pool: &Pool) -> Result<(), String> {
    let Some(directory) = pool.config.directory().map(Path::to_owned) else {
        return Ok(());
    };
    let pool = directory.display().to_string();
    let (sender, released) = tokio::sync::oneshot::channel();
    // On a thread of its own: the file system may not answer, which must not keep the daemon.
    let thread = std::thread::Builder::new().name("release".to_owned());
    let started = thread.spawn(move || {
        let _late = sender.send(PoolUser::wait_free(&directory, RELEASE_TIMEOUT));
    });
    let unknown =
        |why: &dyn std::fmt::Display| format!("whether pool `{pool}` is closed is unknown: {why}");
    started.map_err(|error| unknown(&error))?;
    match tokio::time::timeout(RELEASE_TIMEOUT + EXIT_TIMEOUT, released).await {
        Ok(Ok(left)) => left,
        Ok(Err(_)) | Err(_) => Err(unknown(&"its file system does not answer")),
    }
}

/// Ends all processes of `pool` at once: nothing was served yet, or nothing may be written any more. A kill is what they are
/// made to survive.
pub(crate) async fn kill(pool: &Pool) {
    pool.supervision.set_service(None);
    kill_at_once(pool);
    let supervisors = pool.supervision.take_supervisors();
    for (process, task) in pool.processes.iter().zip(supervisors) {
        if tokio::time::timeout(EXIT_TIMEOUT, task).await.is_err() {
            tracing::warn!("the {} process cannot be killed", process.title());
        }
        unlink(process.socket());
    }
}
