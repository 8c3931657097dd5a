//! The node daemon. There is one per node; it is the parent of the data processes, and serves the API.
//!
//! Life cycle: lock, configuration, children, catalogue and attachments, ready; then requests until a signal or a stop; then endpoint,
//! mapper and blocker stop in this order, each when it has drained.
//!
//! Runs on one thread, the main thread: the kernel ties the children's death to the thread that started them.

mod abandoned;
mod attachments;
mod block;
mod context;
mod directories;
mod endpoints;
mod gauge;
mod grants;
mod host_device;
mod images;
mod local;
mod lock;
mod looks;
mod nbd;
mod node;
mod opens;
mod passing;
mod pool;
mod pool_errors;
mod pool_grants;
mod pool_paths;
mod pool_requests;
mod pool_reservations;
mod pool_user;
mod pool_watch;
mod pools;
mod process;
mod reservations;
mod rollback;
mod service;
mod serving;
mod settings;
mod sharing;
mod space;
mod status;
mod supervision;
mod supervisor;
mod ublk;
mod volumes;

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::config::Config;
use archipelago_api::layout::Layout;
use archipelago_blocker_file::Claim;
use archipelago_protocol::{Error, ErrorCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::{accounts, logging, socket};
pub(crate) use lock::NodeLock;
pub(crate) use node::Node;
use pool::PoolState;
pub(crate) use pool_paths::PoolPaths;
pub(crate) use pool_user::{PoolUser, ServingNode};
pub(crate) use pools::RemovablePool;
pub(crate) use service::RELEASE_TIMEOUT;
pub(crate) use settings::peer_settings;
use supervisor::{keep_running, keep_trying};

/// At the start, how long the daemon waits for other pools once one is served; a pool that opens later is reported as not served yet.
const START_GRACE: Duration = Duration::from_secs(10);
/// How long an idle thread for blocking calls is kept: as long as the daemon runs.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Interval at which the length of the log is checked and its pending counts are written.
const LOG_STEP: Duration = Duration::from_secs(1);

/// Runs the daemon of the node at `layout` until a signal or a request stops it. Calls `ready` when requests are served; `claim` is the
/// right with which the pools are opened.
///
/// # Errors
/// The reason why it could not start, or the node that has taken its pools over. A clean stop is not an error.
pub(crate) fn run(layout: Layout, claim: Claim, ready: impl FnOnce()) -> Result<(), Error> {
    // This host may write back dirty pages to a volume that the node serves. So allocations of a data process, or of the daemon that
    // restarts data processes, must not wait for write-back. Threads and processes inherit the setting. Without the privilege for it, such
    // devices do not exist.
    if let Err(error) = archipelago_runtime::set_io_flusher() {
        tracing::debug!(%error, "PR_SET_IO_FLUSHER");
    }
    let config = Config::read(layout.config())?;
    let endpoint = config.endpoint.as_ref().map(accounts::identity);
    let endpoint = endpoint.transpose()?;
    layout.make_directories()?;
    let lock = NodeLock::take(&layout)?;
    // If the run directory of a running node was removed, this is a new lock file.
    for pool in config.pools.values() {
        match ServingNode::of_pool(pool) {
            // The run directory is shared, so this node could serve no pool while the other node runs.
            Some(other) if other.run == layout.run() || config.pools.len() == 1 => {
                return Err(other.in_use(&layout));
            }
            Some(_) | None => {}
        }
    }
    directories::give_sockets_to(&layout, endpoint)?;
    directories::remove_stale_sockets(&layout);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(FOREVER)
        .build()
        .map_err(|error| Error::new(ErrorCode::Io, format!("starting the daemon: {error}")))?;
    start_blocking_thread(&runtime)?;
    let node = Arc::new(Node::new(layout, config, endpoint, claim)?);
    runtime.block_on(serve(node, &lock, ready))
}

/// Starts the first thread for blocking calls, which is kept: when the limit of threads is reached, calls wait for this thread; without any
/// thread, the runtime would panic.
fn start_blocking_thread(runtime: &tokio::runtime::Runtime) -> Result<(), Error> {
    // The runtime panics if it cannot start its thread, so this first checks that a thread can be started.
    std::thread::Builder::new()
        .spawn(|| ())
        // The thread does nothing, so it has not panicked.
        .map(|thread| drop(thread.join()))
        .map_err(|error| Error::of_thread("the daemon", &error))?;
    let _started = runtime.spawn_blocking(|| ());
    Ok(())
}

async fn serve(node: Arc<Node>, lock: &NodeLock, ready: impl FnOnce()) -> Result<(), Error> {
    let mut end =
        Signals::new().map_err(|error| Error::new(ErrorCode::Io, format!("signals: {error}")))?;
    let keeper = tokio::spawn(keep_log(Arc::clone(&node)));
    let layout = &node.context.layout;
    let attached = node.context.attachments().ublk_devices().collect();
    ublk::remove_left_over(layout, attached).await;
    let attached = node.context.attachments().nbd_devices().collect();
    nbd::remove_left_over(layout, attached).await;
    for pool in node.pools() {
        service::start(&pool);
    }
    let started = tokio::select! {
        started = start_up(&node) => started,
        () = end.next() => Err(Error::new(ErrorCode::Unavailable, "stopped before it served")),
    };
    if let Err(error) = started {
        // Nothing was served, so nothing has to drain.
        lock.note_ending(&node.context.layout);
        kill_all(&node).await;
        return Err(error);
    }
    let (api, hang_up) = serve_api(&node)?;
    let layout = &node.context.layout;
    tracing::info!(
        "serving {} ({})",
        layout.api_socket().display(),
        node.context.config.placement
    );
    ready();
    let lost = tokio::select! {
        () = end.next() => None,
        () = node.stop.notified() => None,
        error = all_lost(&node) => Some(error),
    };
    tracing::info!("stopping");
    lock.note_ending(layout);
    if let Some(error) = lost {
        kill_all(&node).await;
        socket::unlink(&layout.api_socket());
        return Err(error);
    }
    node.stopping.send_replace(true);
    let pools = node.pools();
    let unfinished = futures_util::future::join_all(pools.iter().map(|pool| service::stop(pool)));
    // A pool that is being added is given up, and one that is being removed is drained: wait for these too.
    let changes = tokio::time::timeout(service::DRAIN_TIMEOUT, node.pool_changes.lock());
    let (unfinished, changes) = futures_util::future::join(unfinished, changes).await;
    drop(changes);
    node.stopped.send_replace(Some(unfinished.concat()));
    // The answer to the stop request may not have been sent yet.
    hang_up.send_replace(true);
    let _in_time = tokio::time::timeout(service::EXIT_TIMEOUT, api).await;
    keeper.abort();
    socket::unlink(&layout.api_socket());
    tracing::info!("stopped");
    Ok(())
}

/// Waits until a pool is served, and for a limited time for the others.
///
/// # Errors
/// The reason why none is served.
async fn start_up(node: &Node) -> Result<(), Error> {
    let mut changes = node.context.pools_changed.subscribe();
    let mut deadline = None;
    loop {
        let states: Vec<PoolState> = node.pools().iter().map(|pool| pool.state()).collect();
        let served = states
            .iter()
            .any(|state| matches!(state, PoolState::Served));
        if !states
            .iter()
            .any(|state| matches!(state, PoolState::Opening))
        {
            let failure = states.into_iter().find_map(|state| match state {
                PoolState::Failed(error) | PoolState::Lost(error) => Some(error),
                PoolState::Opening | PoolState::Served => None,
            });
            return match failure {
                Some(error) if !served => Err(error),
                Some(_) | None => Ok(()),
            };
        }
        let changed = changes.changed();
        if !served {
            let _counted = changed.await;
            continue;
        }
        let until = *deadline.get_or_insert_with(|| tokio::time::Instant::now() + START_GRACE);
        if tokio::time::timeout_at(until, changed).await.is_err() {
            return Ok(());
        }
    }
}

/// Waits until other hosts have taken over all pools; returns the error of one of them.
async fn all_lost(node: &Node) -> Error {
    let mut changes = node.context.pools_changed.subscribe();
    loop {
        let lost: Option<Vec<Error>> = node
            .pools()
            .iter()
            .map(|pool| match pool.state() {
                PoolState::Lost(error) => Some(error),
                PoolState::Opening | PoolState::Served | PoolState::Failed(_) => None,
            })
            .collect();
        if let Some(error) = lost.and_then(|errors| errors.into_iter().next()) {
            return error;
        }
        // The sender lives as long as the node.
        let _counted = changes.changed().await;
    }
}

async fn kill_all(node: &Node) {
    let pools = node.pools();
    futures_util::future::join_all(pools.iter().map(|pool| service::kill(pool))).await;
}

/// The signals that request a clean stop.
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

/// Keeps the log below its length limit.
async fn keep_log(node: Arc<Node>) {
    let make = || {
        let path = node.context.layout.log();
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
    let path = node.context.layout.api_socket();
    let failed =
        |error: std::io::Error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display()));
    let listener = crate::socket::listen(&path)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let (hang_up, hung_up) = watch::channel(false);
    let (listener, node) = (Arc::new(listener), Arc::clone(node));
    let task = tokio::spawn(async move {
        let make = || serve_connections(Arc::clone(&listener), Arc::clone(&node), hung_up.clone());
        keep_running("serving the API", make, |_logged| {}).await;
    });
    Ok((task, hang_up))
}

/// Serves until `hung_up` is set. If serving fails before that, for example because descriptors are short, it is started again.
async fn serve_connections(
    listener: Arc<UnixListener>,
    node: Arc<Node>,
    hung_up: watch::Receiver<bool>,
) {
    let serve = || {
        let (listener, node) = (Arc::clone(&listener), Arc::clone(&node));
        let mut hung_up = hung_up.clone();
        async move {
            let listener = tokio::net::UnixListener::from_std(listener.try_clone()?)?;
            axum::serve(listener, crate::api::router(node))
                .with_graceful_shutdown(async move {
                    // A dropped sender has the same meaning.
                    let _told = hung_up.wait_for(|hung_up| *hung_up).await;
                })
                .await
        }
    };
    keep_trying("serving the API", serve).await;
}
