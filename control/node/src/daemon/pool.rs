//! A pool of the node and its data processes. Pools share no process, no channel and no lock, so a pool whose storage hangs
//! delays only its own guests.
//!
//! Names, sizes and attachments of a pool are changed by one request at a time, which holds [`Pool::lock_changes`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use archipelago_api::config::{Placement, PoolConfig};
use archipelago_blocker_file::Claim;
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode, Name};
use tokio::sync::watch;

use super::attachments::Attachments;
use super::context::NodeContext;
use super::grants::Granted;
use super::pool_paths::PoolPaths;
use super::pool_watch::PoolWatch;
use super::process::Process;
use super::reservations::Reservations;
use super::settings::peer_settings;
use super::supervision::Supervision;

type AsyncMutexGuard<'a, T> = tokio::sync::MutexGuard<'a, T>;

/// How long a request may take, with all restarts of its process.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Whether a pool is served.
#[derive(Debug, Clone)]
pub(crate) enum PoolState {
    /// Its processes are starting.
    Opening,
    /// Volumes are served.
    Served,
    /// Volumes are not served, and why. The node tries again.
    Failed(Error),
    /// Another host has taken the pool over, as the error says. This node never tries again.
    Lost(Error),
}

/// A pool of the node.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) name: Name,
    pub(crate) config: PoolConfig,
    pub(crate) paths: PoolPaths,
    pub(crate) processes: Vec<Arc<Process>>,
    pub(crate) supervision: Supervision,
    state: watch::Sender<PoolState>,
    /// Held during a change: [`Pool::lock_changes`].
    changes: tokio::sync::Mutex<()>,
    granted: Mutex<Granted>,
    /// What this host itself uses; held while something of it is made or ended.
    pub(crate) local: tokio::sync::Mutex<()>,
    /// What processes keep open while the data process is away.
    pub(crate) reservations: Reservations,
    /// Watches the pool's file system, if it is one of files: its free space, and who has the pool open.
    pub(crate) watch: Option<PoolWatch>,
    /// Number of the endpoint's incarnation: each new one gets the list of attached volumes.
    pub(crate) endpoint_incarnations: watch::Sender<u64>,
}

/// The roles that each process of a pool hosts, in the order in which the processes start.
fn process_groups(placement: Placement) -> Vec<Vec<Role>> {
    match placement {
        Placement::Fused => vec![vec![Role::Endpoint, Role::Mapper, Role::Blocker]],
        Placement::Split => vec![
            vec![Role::Blocker],
            vec![Role::Mapper],
            vec![Role::Endpoint],
        ],
    }
}

impl Pool {
    /// Prepares the pool `name`, which its blocker opens with `claim`; no process runs yet.
    pub(crate) fn new(
        context: &Arc<NodeContext>,
        name: &Name,
        config: &PoolConfig,
        paths: PoolPaths,
        claim: Claim,
    ) -> Result<Pool, Error> {
        paths.make(context.endpoint)?;
        let granted = Granted::new(paths.grants(), context.attachments().of_pool(name));
        if context.endpoint.is_some() {
            granted.write()?;
        }
        let settings = peer_settings(
            &context.layout,
            &context.config,
            config,
            &paths,
            context.endpoint,
            claim,
        );
        let processes = process_groups(context.config.placement)
            .into_iter()
            .map(|roles| {
                let title = paths.title(name, &roles);
                let socket = paths.control_socket(roles[0]);
                Process::new(title, socket, roles, settings.clone()).map(Arc::new)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Pool {
            context: Arc::clone(context),
            reservations: Reservations::new(paths.reservations()),
            name: name.clone(),
            watch: config.directory().map(PoolWatch::new).transpose()?,
            config: config.clone(),
            paths,
            supervision: Supervision::new(processes.len()),
            processes,
            state: watch::Sender::new(PoolState::Opening),
            changes: tokio::sync::Mutex::new(()),
            granted: Mutex::new(granted),
            local: tokio::sync::Mutex::default(),
            endpoint_incarnations: watch::Sender::new(0),
        })
    }

    /// Whether the pool is served.
    pub(crate) fn state(&self) -> PoolState {
        self.state.borrow().clone()
    }

    /// Sets whether the pool is served, and wakes the tasks that wait for a change of that.
    pub(crate) fn set_state(&self, state: PoolState) {
        self.state.send_replace(state);
        self.context.pools_changed.send_modify(|count| *count += 1);
    }

    /// Why the pool is not served, as a message for people; `None` if it is served.
    pub(crate) fn unserved_reason(&self) -> Option<Error> {
        let why = match self.state() {
            PoolState::Served => return None,
            PoolState::Opening => Error::new(ErrorCode::Unavailable, "it is still being opened"),
            PoolState::Failed(error) | PoolState::Lost(error) => error,
        };
        Some(why)
    }

    /// Fails if the pool is not served: a request to it would wait.
    pub(crate) fn check_served(&self) -> Result<(), Error> {
        let Some(why) = self.unserved_reason() else {
            return Ok(());
        };
        let message = format!("pool `{}` is not served: {}", self.name, why.message);
        Err(
            Error::new(ErrorCode::Unavailable, message).with_hint(match why.hint.as_str() {
                "" => format!(
                    "it is tried again; `{} node status` shows it",
                    self.context.layout.command()
                ),
                hint => hint.to_owned(),
            }),
        )
    }

    /// The attachments of the node. Callers hold the guard only while they read or change them.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Attachments> {
        self.context.attachments()
    }

    /// The volumes that the endpoint may open. Callers hold the guard only while they change them.
    pub(crate) fn granted(&self) -> MutexGuard<'_, Granted> {
        // A panic under this lock leaves the old or the new content, and both are complete.
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that hosts `role`.
    pub(crate) fn process(&self, role: Role) -> &Arc<Process> {
        self.processes
            .iter()
            .find(|process| process.roles().contains(&role))
            .expect("every placement hosts every role")
    }

    /// Acquires the lock under which the pool is changed. Changes are made one at a time, so a task holds the guard until its
    /// change is complete.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if other changes hold the lock for [`REQUEST_TIMEOUT`].
    pub(crate) async fn lock_changes(&self) -> Result<AsyncMutexGuard<'_, ()>, Error> {
        let turn = tokio::time::timeout(REQUEST_TIMEOUT, self.changes.lock()).await;
        turn.map_err(|_late| {
            let message = format!(
                "other changes have been under way for {} s",
                REQUEST_TIMEOUT.as_secs()
            );
            Error::new(ErrorCode::Unavailable, message).with_hint(format!(
                "nothing was changed; `{} node status` shows whether the storage hangs",
                self.context.layout.command()
            ))
        })
    }
}
