//! The node daemon: one per node, parent of the data processes, server of the API.
//!
//! Life: lock, configuration, children, catalogue and attachments, ready; then requests until a signal or a stop;
//! then endpoint, mapper and blocker are stopped in this order, each when it has drained.
//!
//! Runs on one thread, the main one: the kernel ties the children's death to the thread that started them.

mod attachments;
mod endpoints;
mod images;
mod lock;
mod node;
mod process;
mod status;
mod supervisor;
mod volumes;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{Error, ErrorCode};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub use lock::NodeLock;
pub(crate) use node::Node;
pub(crate) use process::LINE_LEN_MAX;
use supervisor::{End, Event, Wish, supervise};

use crate::config::Config;
use crate::layout::Layout;

/// How long a process may take to drain.
const DRAIN_PATIENCE: Duration = Duration::from_secs(60);
/// How long a process may take to exit after it has said that it drained.
const EXIT_PATIENCE: Duration = Duration::from_secs(5);

/// The supervised processes: how to tell a supervisor what is wished, and how to wait for its end.
struct Supervision {
    wishes: Vec<watch::Sender<Wish>>,
    tasks: Vec<JoinHandle<()>>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// Runs the daemon of the node at `layout` until it is told to stop. `ready` is called when requests are served.
///
/// # Errors
/// Why it could not start. A clean stop is no error.
pub fn run(layout: Layout, ready: impl FnOnce()) -> Result<(), Error> {
    let config = Config::read(layout.config())?;
    layout.make_directories()?;
    let _lock = NodeLock::take(&layout)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorCode::Io, format!("starting the daemon: {error}")))?;
    runtime.block_on(serve(layout, config, ready))
}

async fn serve(layout: Layout, config: Config, ready: impl FnOnce()) -> Result<(), Error> {
    let mut end =
        Signals::new().map_err(|error| Error::new(ErrorCode::Io, format!("signals: {error}")))?;
    let node = Arc::new(Node::new(layout, config)?);
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
        stop_processes(&node, &mut supervision).await;
        return Err(error);
    }
    let (api, hang_up) = serve_api(&node)?;
    tracing::info!(
        "serving {} ({})",
        node.layout.api_socket().display(),
        node.config.placement
    );
    ready();
    loop {
        tokio::select! {
            () = end.next() => break,
            () = node.stop.notified() => break,
            event = supervision.events.recv() => on_event(&node, event),
        }
    }
    tracing::info!("stopping");
    stop_processes(&node, &mut supervision).await;
    // The answer to the request that asked for the stop is still on its way.
    let _finished = hang_up.send(());
    let _in_time = tokio::time::timeout(EXIT_PATIENCE, api).await;
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
    };
    for process in &node.processes {
        let (wish, wished) = watch::channel(Wish::Live);
        supervision.wishes.push(wish);
        supervision.tasks.push(tokio::spawn(supervise(
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
        match node.ask(role, &ControlRequest::Status).await? {
            ControlReply::Status(_) => {}
            other => return Err(node::unexpected(&other)),
        }
    }
    node.pool_info(node.pool()).await?;
    node.serve_all().await;
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
        return error;
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

fn on_event(node: &Arc<Node>, event: Option<Event>) {
    match event {
        Some(Event::Started(process)) if process.roles().contains(&Role::Endpoint) => {
            let node = Arc::clone(node);
            tokio::spawn(async move { node.serve_all().await });
        }
        Some(Event::Started(_) | Event::Died(..)) | None => {}
    }
}

type Api = (JoinHandle<()>, tokio::sync::oneshot::Sender<()>);

fn serve_api(node: &Arc<Node>) -> Result<Api, Error> {
    let path = node.layout.api_socket();
    let failed =
        |error: std::io::Error| Error::new(ErrorCode::Io, format!("{}: {error}", path.display()));
    let listener = crate::socket::listen(&path)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
    let (hang_up, hung_up) = tokio::sync::oneshot::channel::<()>();
    let server = axum::serve(listener, crate::api::router(Arc::clone(node)))
        .with_graceful_shutdown(async move {
            // A dropped sender means the same.
            let _told = hung_up.await;
        });
    let task = tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!("serving the API: {error}");
        }
    });
    Ok((task, hang_up))
}

/// Stops endpoint, mapper and blocker in this order: each when nobody needs it any more.
async fn stop_processes(node: &Node, supervision: &mut Supervision) {
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
        if process.pid() != 0 {
            match process.ask(&ControlRequest::Stop, DRAIN_PATIENCE).await {
                Ok(ControlReply::Done) | Err(process::AskError::Lost) => {}
                Ok(other) => tracing::warn!("stopping the {} process: {other:?}", process.title()),
                Err(process::AskError::Failed(error)) => {
                    tracing::warn!("stopping the {} process: {error}", process.title());
                }
            }
        }
        if tokio::time::timeout(EXIT_PATIENCE, &mut *task)
            .await
            .is_err()
        {
            wish.send_replace(Wish::Kill);
            let _killed = tokio::time::timeout(EXIT_PATIENCE, task).await;
        }
        unlink(&node.layout.control_socket(role));
    }
}

/// Ends all processes at once: nothing was served yet, and a kill is what they are made to survive.
async fn kill_processes(node: &Node, supervision: &mut Supervision) {
    for wish in &supervision.wishes {
        wish.send_replace(Wish::Kill);
    }
    for (process, task) in node.processes.iter().zip(&mut supervision.tasks) {
        if tokio::time::timeout(EXIT_PATIENCE, task).await.is_err() {
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
