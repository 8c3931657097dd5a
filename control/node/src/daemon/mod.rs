//! The node daemon: one per node, parent of the data processes, server of the API.
//!
//! Life: lock, configuration, children, catalogue and attachments, ready; then requests until a signal or a stop;
//! then endpoint, mapper and blocker are stopped in this order, each when it has drained.
//!
//! Runs on one thread, the main one: the kernel ties the children's death to the thread that started them.

mod attachments;
mod directories;
mod endpoints;
mod gauge;
mod grants;
mod images;
mod lock;
mod node;
mod passing;
mod pool_user;
mod pool_watch;
mod process;
mod settings;
mod status;
mod supervisor;
mod volumes;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use archipelago_blocker_file::Claim;
use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{Error, ErrorCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) use lock::NodeLock;
pub(crate) use node::Node;
pub(crate) use pool_user::{PoolUser, ServingNode};
pub(crate) use settings::peer_settings;
use supervisor::{End, Event, Wish, keep_running, supervise_always};

use crate::{accounts, logging};
use archipelago_api::config::{Config, Pool};
use archipelago_api::layout::Layout;

/// How long all processes together may take to drain; less, once storage hangs.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long each of them has at least, whatever the others took.
const DRAIN_PATIENCE_MIN: Duration = Duration::from_secs(2);
/// How long a process has to drain beside a call that hangs already.
const DRAIN_BESIDE: Duration = Duration::from_secs(5);
/// How long the kernel may take to close what ended processes had open of the pool: milliseconds, more under load.
pub(crate) const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a process may take to exit after it has said that it drained.
const EXIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a thread for calls that block is kept without work: as long as the daemon lives.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How often the length of the log is looked at, and what it owes is written.
const LOG_STEP: Duration = Duration::from_secs(1);

/// The supervised processes: how to tell a supervisor what is wished, and how to wait for its end.
struct Supervision {
    wishes: Vec<watch::Sender<Wish>>,
    tasks: Vec<JoinHandle<()>>,
    events: mpsc::UnboundedReceiver<Event>,
    /// Kept so that `events` does not end, whatever becomes of the tasks.
    _sender: mpsc::UnboundedSender<Event>,
}

/// Runs the daemon of the node at `layout` until it is told to stop. `ready` is called when requests are served; `claim` is the
/// right with which the pool is opened.
///
/// # Errors
/// Why it could not start, or who has taken its pool over. A clean stop is no error.
pub(crate) fn run(layout: Layout, claim: Claim, ready: impl FnOnce()) -> Result<(), Error> {
    let config = Config::read(layout.config())?;
    let endpoint = config.endpoint.as_ref().map(accounts::identity);
    let endpoint = endpoint.transpose()?;
    layout.make_directories()?;
    let _lock = NodeLock::take(&layout)?;
    // The lock is a new one if the run directory was removed under a node that serves.
    if let Some(other) = ServingNode::of_pool(config.pool().1) {
        return Err(other.in_use(&layout));
    }
    directories::give_sockets_to(&layout, endpoint)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOREVER)
        .build()
        .map_err(|error| Error::new(ErrorCode::Io, format!("starting the daemon: {error}")))?;
    start_blocking_thread(&runtime)?;
    let node = Arc::new(Node::new(layout, config, endpoint, claim)?);
    runtime.block_on(serve(node, ready))
}

/// Starts the first thread for calls that block. It stays: calls wait for it when the limit of threads is reached, and the
/// runtime would panic if there were none.
fn start_blocking_thread(runtime: &tokio::runtime::Runtime) -> Result<(), Error> {
    // The runtime panics if it cannot start its thread, so whether one can be started is found out first.
    std::thread::Builder::new()
        .spawn(|| ())
        // It does nothing, so it has not panicked.
        .map(|thread| drop(thread.join()))
        .map_err(|error| Error::of_thread("the daemon", &error))?;
    let _started = runtime.spawn_blocking(|| ());
    Ok(())
}

async fn serve(node: Arc<Node>, ready: impl FnOnce()) -> Result<(), Error> {
    let mut end =
        Signals::new().map_err(|error| Error::new(ErrorCode::Io, format!("signals: {error}")))?;
    let lives = node.endpoint_lives.subscribe();
    let keeper = tokio::spawn(keep_log(Arc::clone(&node)));
    let mut supervision = start_processes(&node);
    let started = tokio::select! {
        started = start_up(&node) => started,
        (title, end) = first_death(&mut supervision.events) => {
            // The others may wait for the dead one: there is nothing to drain yet.
            kill_processes(&node, &mut supervision).await;
            return Err(died_at_start(&node, &title, end));
        }
        () = end.next() => Err(Error::new(ErrorCode::Unavailable, "stopped before it served")),
    };
    if let Err(error) = started {
        // Nothing was served yet: there is nothing to drain.
        kill_processes(&node, &mut supervision).await;
        return Err(error);
    }
    node.started.store(true, Ordering::Relaxed);
    let server = tokio::spawn(serve_lives(Arc::clone(&node), lives));
    let watcher = tokio::spawn(pool_watch::watch_pool(Arc::clone(&node)));
    let (api, hang_up) = serve_api(&node)?;
    tracing::info!(
        "serving {} ({})",
        node.layout.api_socket().display(),
        node.config.placement
    );
    ready();
    let lost = loop {
        tokio::select! {
            () = end.next() => break None,
            () = node.stop.notified() => break None,
            event = supervision.events.recv() => {
                if let Some(error) = on_event(&node, event) {
                    break Some(error);
                }
            }
        }
    };
    tracing::info!("stopping");
    server.abort();
    watcher.abort();
    if let Some(error) = lost {
        // Nothing may be written any more.
        kill_processes(&node, &mut supervision).await;
        unlink(&node.layout.api_socket());
        return Err(error);
    }
    let unfinished = stop_processes(&node, &mut supervision).await;
    node.stopped.send_replace(Some(unfinished));
    // The answer to the request that asked for the stop is still on its way.
    hang_up.send_replace(true);
    let _in_time = tokio::time::timeout(EXIT_TIMEOUT, api).await;
    keeper.abort();
    unlink(&node.layout.api_socket());
    tracing::info!("stopped");
    Ok(())
}

/// The signals that mean a clean stop.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

fn start_processes(node: &Arc<Node>) -> Supervision {
    let (sender, events) = mpsc::unbounded_channel();
    let mut supervision = Supervision {
        wishes: Vec::new(),
        tasks: Vec::new(),
        events,
        _sender: sender.clone(),
    };
    for process in &node.processes {
        let (wish, wished) = watch::channel(Wish::Live);
        supervision.wishes.push(wish);
        supervision.tasks.push(tokio::spawn(supervise_always(
            Arc::clone(process),
            wished,
            sender.clone(),
        )));
    }
    supervision
}

/// Waits until each process answers, the catalogue can be read, and what was attached is served.
async fn start_up(node: &Arc<Node>) -> Result<(), Error> {
    for process in &node.processes {
        let role = process.roles()[0];
        match node.ask(role, &ControlRequest::Status).await {
            Ok(ControlReply::Status(_)) => {}
            Ok(other) => return Err(node::unexpected(&other)),
            Err(error) if process.roles().contains(&Role::Blocker) => {
                let Pool::File { directory, .. } = node.config.pool().1;
                let hint = format!(
                    "it opens `{}` first: does that file system answer?",
                    directory.display()
                );
                return Err(error.with_hint(hint));
            }
            Err(error) => return Err(error),
        }
    }
    node.pool_info(node.pool()).await?;
    if !node.serve_all(None).await.is_empty() {
        // Guests of the others are served meanwhile.
        node.endpoint_lives.send_modify(|count| *count += 1);
    }
    Ok(())
}

async fn first_death(events: &mut mpsc::UnboundedReceiver<Event>) -> (String, End) {
    loop {
        match events.recv().await {
            Some(Event::Died(process, end)) => return (process.title(), end),
            Some(Event::Started(_)) => {}
            None => std::future::pending().await,
        }
    }
}

/// A process that cannot even start says why; one that does not is known by its exit code.
fn died_at_start(node: &Node, title: &str, end: End) -> Error {
    if let Some(error) = end.last_words {
        let Pool::File { directory, .. } = node.config.pool().1;
        return match PoolUser::of(directory) {
            PoolUser::Node(other) if error.code == ErrorCode::InUse => other.in_use(&node.layout),
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
    Error::new(code, format!("the {title} process {how}"))
        .with_hint(format!("its log says why: {}", node.layout.log().display()))
}

/// Takes note of `event`. The error with which the node has to end, if it has.
fn on_event(node: &Arc<Node>, event: Option<Event>) -> Option<Error> {
    match event {
        Some(Event::Died(_, end)) if end.is_final() => return end.last_words,
        Some(Event::Started(process)) if process.roles().contains(&Role::Endpoint) => {
            node.endpoint_lives.send_modify(|count| *count += 1);
        }
        Some(Event::Started(_) | Event::Died(..)) | None => {}
    }
    None
}

/// Has each life of the endpoint serve what is attached, from those on that `lives` has not seen.
async fn serve_lives(node: Arc<Node>, lives: watch::Receiver<u64>) {
    let make = || Arc::clone(&node).serve_lives(lives.clone());
    keep_running("serving what is attached", make, |_logged| {}).await;
}

/// Keeps the log within its bounds.
async fn keep_log(node: Arc<Node>) {
    let make = || {
        let path = node.layout.log();
        async move {
            loop {
                tokio::time::sleep(LOG_STEP).await;
                let path = path.clone();
                let looked = tokio::task::spawn_blocking(move || {
                    logging::catch_up();
                    logging::rotation::rotate(&path)
                });
                match looked.await {
                    Ok(Ok(false)) | Err(_) => {}
                    Ok(Ok(true)) => tracing::info!(
                        "the log was longer than it may be: what came before is in its predecessor, `.1`"
                    ),
                    Ok(Err(error)) => tracing::warn!(
                        "the log was longer than it may be and is cut; what came before is lost: {error}"
                    ),
                }
            }
        }
    };
    keep_running("keeping the log", make, |_logged| {}).await;
}

type Api = (JoinHandle<()>, watch::Sender<bool>);

fn serve_api(node: &Arc<Node>) -> Result<Api, Error> {
    let path = node.layout.api_socket();
    let failed =
        |error: std::io::Error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display()));
    let listener = crate::socket::listen(&path)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let (hang_up, hung_up) = watch::channel(false);
    let node = Arc::clone(node);
    let task = tokio::spawn(async move {
        let make = || {
            let listener = listener.try_clone();
            let (node, mut hung_up) = (Arc::clone(&node), hung_up.clone());
            async move {
                let listener = listener.and_then(tokio::net::UnixListener::from_std);
                let served = match listener {
                    Ok(listener) => {
                        axum::serve(listener, crate::api::router(node))
                            .with_graceful_shutdown(async move {
                                // A dropped sender means the same.
                                let _told = hung_up.wait_for(|hung_up| *hung_up).await;
                            })
                            .await
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    tracing::error!("serving the API: {error}");
                }
            }
        };
        keep_running("serving the API", make, |_logged| {}).await;
    });
    Ok((task, hang_up))
}

/// Stops endpoint, mapper and blocker in this order: each when nobody needs it any more. What could not be finished is
/// ended by force, as by a kill, and told.
async fn stop_processes(node: &Node, supervision: &mut Supervision) -> Vec<String> {
    let deadline = tokio::time::Instant::now() + DRAIN_PATIENCE;
    let mut unfinished = Vec::new();
    let mut all_ended = true;
    for role in [Role::Endpoint, Role::Mapper, Role::Blocker] {
        let Some(index) = node
            .processes
            .iter()
            .position(|process| process.roles()[0] == role)
        else {
            continue;
        };
        let (process, wish, task) = (
            &node.processes[index],
            &supervision.wishes[index],
            &mut supervision.tasks[index],
        );
        wish.send_replace(Wish::Stop);
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let mut drained = Ok(());
        let pid = process.pid();
        if pid != 0 {
            let stop = ControlRequest::Stop;
            let patience = left.max(DRAIN_PATIENCE_MIN);
            let asked = node.ask_watched(process, &stop, patience, DRAIN_BESIDE);
            drained = match asked.await {
                Ok(ControlReply::Done) | Err(process::AskError::Lost) => Ok(()),
                Ok(_other) => Err("its answer is not understood".to_owned()),
                Err(process::AskError::Failed(error)) => Err(error.message),
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
            wish.send_replace(Wish::Kill);
            if tokio::time::timeout(EXIT_TIMEOUT, task).await.is_err() {
                all_ended = false;
                unfinished.push(format!(
                    "the {title} process {pid} ends, and gives the pool back, only when its last call on the storage returns"
                ));
            }
        }
        unlink(&node.layout.control_socket(role));
    }
    if all_ended && let Err(left) = release_of_pool(node).await {
        unfinished.push(left);
    }
    for line in &unfinished {
        tracing::warn!("{line}");
    }
    unfinished
}

/// Waits until the pool can be unmounted: the kernel closes what a process had open some time after its end was seen.
async fn release_of_pool(node: &Node) -> Result<(), String> {
    let Pool::File { directory, .. } = node.config.pool().1.clone();
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

/// Ends all processes at once: nothing was served yet, and a kill is what they are made to survive.
async fn kill_processes(node: &Node, supervision: &mut Supervision) {
    for wish in &supervision.wishes {
        wish.send_replace(Wish::Kill);
    }
    for (process, task) in node.processes.iter().zip(&mut supervision.tasks) {
        if tokio::time::timeout(EXIT_TIMEOUT, task).await.is_err() {
            tracing::warn!("the {} process cannot be killed", process.title());
        }
        unlink(&node.layout.control_socket(process.roles()[0]));
    }
}

/// Removes a socket that nobody listens to any more; one that is gone is fine.
fn unlink(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!("{}: {error}", path.display());
        }
        Ok(()) | Err(_) => {}
    }
}
