//! A pool of the node: its data processes, and the requests that the node sends to them. Pools share no process, no channel and
//! no lock, so a pool whose storage hangs delays only its own guests.
//!
//! Invariants
//! - Names, sizes and attachments of a pool are changed by one request at a time, which holds [`Pool::lock_changes`].
//! - If a process dies before it has answered a request, the request is sent again to the process's next incarnation. A request
//!   that creates an entry carries the lineage of that entry, so a repetition is recognised and not reported as a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use archipelago_api::config::{Placement, PoolConfig};
use archipelago_blocker_file::Claim;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind};
use archipelago_protocol::check::Report;
use archipelago_protocol::control::{ControlReply, ControlRequest, Role, Wait};
use archipelago_protocol::error::TOO_LARGE_HINT;
use archipelago_protocol::{Error, ErrorCode, Lineage, Name};
use tokio::sync::watch;

use super::attachments::Attachments;
use super::context::NodeContext;
use super::grants::Granted;
use super::pool_paths::PoolPaths;
use super::pool_watch::PoolWatch;
use super::process::{AskError, Process, RunState};
use super::reservations::Reservations;
use super::settings::peer_settings;
use super::supervision::Supervision;

type AsyncMutexGuard<'a, T> = tokio::sync::MutexGuard<'a, T>;

/// How long a request may take, with all restarts of its process.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a check of the pool may take: less than the client of the API waits, and enough for some 100,000 map pages.
const CHECK_TIMEOUT: Duration = Duration::from_secs(180);
/// A call on storage that has not returned for this long counts as hung, and requests that wait for this long fail with a
/// description of the call. A sync of a busy disk takes a few seconds; an NFS client retries for ever if its server is away.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// [`HUNG_AFTER`] of a pool that is not served yet: the sync and recovery of a whole pool take longer, and no guest waits.
const HUNG_AFTER_AT_START: Duration = Duration::from_secs(50);
/// Interval between two checks for a hung call, and how long the blocker may take to answer one.
const HUNG_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a request is sent again because its process died: at the next death, the request is taken for the cause.
const DEATHS_MAX: u32 = 3;

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

/// The reply to a request that is sent again if its process dies.
struct RetriedReply {
    reply: ControlReply,
    /// The request was sent more than once.
    repeated: bool,
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

    /// Sends `request` to the process that hosts `role`, for up to [`REQUEST_TIMEOUT`].
    async fn send(&self, role: Role, request: &ControlRequest) -> Result<RetriedReply, Error> {
        self.send_within(role, request, REQUEST_TIMEOUT).await
    }

    /// Sends `request` to the process that hosts `role`, and again to its next incarnation if the process dies meanwhile.
    async fn send_within(
        &self,
        role: Role,
        request: &ControlRequest,
        timeout: Duration,
    ) -> Result<RetriedReply, Error> {
        let process = self.process(role);
        let deadline = tokio::time::Instant::now() + timeout;
        let mut deaths = 0;
        // A state that changes right after this line only makes the first check earlier or later.
        let first_check = if matches!(*self.state.borrow(), PoolState::Served) {
            HUNG_AFTER
        } else {
            HUNG_AFTER_AT_START
        };
        loop {
            if *process.run_state().borrow() == RunState::Ended {
                return Err(Error::new(ErrorCode::Unavailable, "the node is stopping"));
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.ask_watched(process, request, left, first_check).await {
                Ok(reply) => {
                    return Ok(RetriedReply {
                        reply,
                        repeated: deaths > 0,
                    });
                }
                Err(AskError::Failed(error)) => return Err(error),
                Err(AskError::Lost) if deaths < DEATHS_MAX => deaths += 1,
                Err(AskError::Lost) => {
                    return Err(Error::new(
                        ErrorCode::Unavailable,
                        format!(
                            "the {} process died {} times over this request",
                            process.title(),
                            deaths + 1
                        ),
                    )
                    .with_hint(format!("look at {}", self.context.layout.log().display())));
                }
            }
        }
    }

    /// Sends `request` to `process`. After `first_check` without a reply, and then in intervals, this fails early if a call on
    /// storage hangs or if the process does not start.
    pub(crate) async fn ask_watched(
        &self,
        process: &Process,
        request: &ControlRequest,
        timeout: Duration,
        mut first_check: Duration,
    ) -> Result<ControlReply, AskError> {
        let asked = process.ask(request, timeout);
        tokio::pin!(asked);
        loop {
            match tokio::time::timeout(first_check, &mut asked).await {
                Ok(answer) => return answer,
                Err(_not_yet) => first_check = HUNG_CHECK_INTERVAL,
            }
            if let Some(why) = process.absence() {
                return Err(AskError::Failed(why));
            }
            if let Some(wait) = self.hung_call().await {
                return Err(AskError::Failed(self.hung_call_error(&wait)));
            }
        }
    }

    /// The call on storage that hangs longest, if the blocker reports one that hangs.
    async fn hung_call(&self) -> Option<Wait> {
        let blocker = self.process(Role::Blocker);
        let reply = blocker
            .ask(&ControlRequest::Status, HUNG_CHECK_INTERVAL)
            .await;
        let Ok(ControlReply::Status(status)) = reply else {
            return None;
        };
        let hangs = |wait: &Wait| wait.seconds >= HUNG_AFTER.as_secs();
        status.waits.into_iter().find(hangs)
    }

    /// Describes the hung call `wait` for people.
    pub(crate) fn describe_hung_call(&self, wait: &Wait) -> String {
        let name = self
            .attachments()
            .of_volume(&self.name, wait.lineage)
            .next()
            .map(|it| it.name.clone());
        let volume = name.map_or_else(String::new, |name| format!("volume `{name}`: "));
        format!(
            "{volume}{} has not returned for {} s",
            wait.what, wait.seconds
        )
    }

    fn hung_call_error(&self, wait: &Wait) -> Error {
        let message = format!(
            "the storage of pool `{}` does not answer: {}",
            self.name,
            self.describe_hung_call(wait)
        );
        Error::new(ErrorCode::Unavailable, message).with_hint(format!(
            "the request may still be carried out when the storage answers; `{} node status` shows the call that hangs",
            self.context.layout.command()
        ))
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

    /// Has the mapper check the pool while it serves other requests.
    pub(crate) async fn check(&self) -> Result<Report, Error> {
        let request = ControlRequest::Catalogue(CatalogueRequest::Check { repair: false });
        let answer = self.send_within(Role::Mapper, &request, CHECK_TIMEOUT);
        match answer.await?.reply {
            ControlReply::Catalogue(CatalogueReply::Report(report)) => Ok(report),
            ControlReply::Catalogue(CatalogueReply::Failed(error))
            | ControlReply::Failed(error) => Err(error),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// Sends `request` to the process that hosts `role`. A reply that reports a failure is returned as an error.
    pub(crate) async fn ask(
        &self,
        role: Role,
        request: &ControlRequest,
    ) -> Result<ControlReply, Error> {
        match self.send(role, request).await?.reply {
            ControlReply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    /// Sends a request whose reply carries no content.
    pub(crate) async fn tell(&self, role: Role, request: &ControlRequest) -> Result<(), Error> {
        match self.ask(role, request).await? {
            ControlReply::Done => Ok(()),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// Sends a request of the catalogue to the mapper.
    pub(crate) async fn catalogue(
        &self,
        request: CatalogueRequest,
    ) -> Result<CatalogueReply, Error> {
        let answer = self
            .send(Role::Mapper, &ControlRequest::Catalogue(request.clone()))
            .await?;
        let error = match answer.reply {
            ControlReply::Catalogue(CatalogueReply::Failed(error))
            | ControlReply::Failed(error) => error,
            ControlReply::Catalogue(reply) => return Ok(reply),
            other => return Err(unexpected_reply(&other)),
        };
        if answer.repeated && self.was_done(&request, error.code).await {
            return Ok(CatalogueReply::Done);
        }
        Err(error)
    }

    /// Whether `code`, the failure of a repeated request, means that its first copy was carried out before the process died.
    async fn was_done(&self, request: &CatalogueRequest, code: ErrorCode) -> bool {
        use CatalogueRequest::{Clone, Create, Remove, Rename, Snapshot};
        let look = |name: &Name| CatalogueRequest::Lookup { name: name.clone() };
        let (name, expected) = match (request, code) {
            (
                Create { name, lineage, .. }
                | Clone { name, lineage, .. }
                | Snapshot { name, lineage, .. },
                ErrorCode::Exists,
            ) => (name, Some(*lineage)),
            (Rename { to, .. }, ErrorCode::NotFound) => (to, None),
            (Remove { .. }, ErrorCode::NotFound) => return true,
            _ => return false,
        };
        match self
            .send(Role::Mapper, &ControlRequest::Catalogue(look(name)))
            .await
        {
            Ok(RetriedReply {
                reply: ControlReply::Catalogue(CatalogueReply::Entry(entry)),
                ..
            }) => expected.is_none_or(|lineage| entry.lineage == lineage),
            _ => false,
        }
    }

    /// Replaces an error of something stored that names no object by the mapper's error, which names it.
    pub(crate) async fn explain_damage(&self, lineage: Lineage, error: Error) -> Error {
        if !error.code.is_of_stored() {
            return error;
        }
        self.damage(lineage).await.unwrap_or(error)
    }

    /// The damage that the mapper has found in a volume, or a format that it does not know.
    pub(crate) async fn damage(&self, lineage: Lineage) -> Option<Error> {
        let damage = self
            .ask(Role::Mapper, &ControlRequest::Damage { lineage })
            .await;
        damage.err().filter(|error| error.code.is_of_stored())
    }

    /// Looks up the entry `name`.
    pub(crate) async fn lookup(&self, name: &Name) -> Result<Entry, Error> {
        match self
            .catalogue(CatalogueRequest::Lookup { name: name.clone() })
            .await
        {
            Ok(CatalogueReply::Entry(entry)) => Ok(entry),
            Ok(other) => Err(unexpected_reply(&other)),
            Err(error) if error.code == ErrorCode::NotFound && error.hint.is_empty() => Err(error
                .with_hint(format!(
                    "`{} volume list` shows what there is",
                    self.context.layout.command()
                ))),
            Err(error) => Err(error),
        }
    }

    /// Looks up the entry `name`; fails with [`ErrorCode::InUse`] while it is being imported.
    pub(crate) async fn lookup_whole(&self, name: &Name) -> Result<Entry, Error> {
        let entry = self.lookup(name).await?;
        if entry.kind == Kind::Importing {
            return Err(
                Error::new(ErrorCode::InUse, format!("`{name}` is being imported")).with_hint(
                    format!(
                        "wait until it is whole; if nobody imports it any more: `{} volume remove {name}`",
                        self.context.layout.command()
                    ),
                ),
            );
        }
        Ok(entry)
    }

    /// Adds to an [`ErrorCode::Exists`] of `name` a hint at what has this name: listings do not show an import.
    pub(crate) async fn explain_taken_name(&self, name: &Name, error: Error) -> Error {
        if error.code != ErrorCode::Exists || !error.hint.is_empty() {
            return error;
        }
        match self.lookup_whole(name).await {
            Err(importing) if importing.code == ErrorCode::InUse => Error {
                hint: format!("{}; {}", importing.message, importing.hint),
                ..error
            },
            _ => {
                let command = self.context.layout.command();
                error.with_hint(format!(
                    "choose another name; `{command} volume info {name}` shows what has it"
                ))
            }
        }
    }

    /// Explains the failure of a change because a resource (space, descriptors, memory) has run out: `what` was not done, which
    /// resource is missing and where, and what to do. Other errors are returned as they are.
    pub(crate) fn explain_full(&self, what: &str, error: Error) -> Error {
        let (pool, place) = (&self.name, self.config.place());
        let directory = place.display();
        let command = self.context.layout.command();
        let (why, hint) = match error.code {
            ErrorCode::NoSpace if self.config.directory().is_none() => (
                format!("pool `{pool}` is full ({directory})"),
                format!(
                    "remove volumes, add storage to the cluster, or raise the quota of its pool; `{command} pool info {pool}` shows what is free"
                ),
            ),
            ErrorCode::NoSpace => (
                format!("the file system of pool `{pool}` is full ({directory})"),
                format!(
                    "free space there, or grow the file system, and try again; `{command} pool info {pool}` shows what is free"
                ),
            ),
            ErrorCode::NoDescriptors => (
                format!("the processes of pool `{pool}` have no file descriptor left"),
                format!(
                    "raise LimitNOFILE of the service, or detach volumes; `{command} node status` shows how many are allowed"
                ),
            ),
            ErrorCode::NoMemory => (
                "the host has no memory for it".to_owned(),
                "free memory, or raise the limit of the service, and try again".to_owned(),
            ),
            ErrorCode::NoRunSpace => (
                format!(
                    "the run directory is full ({})",
                    self.context.layout.run().display()
                ),
                "free space there, and try again".to_owned(),
            ),
            ErrorCode::TooLarge => (
                format!("a file of pool `{pool}` ({directory}) may not get so large"),
                TOO_LARGE_HINT.to_owned(),
            ),
            _ => return error,
        };
        tracing::warn!("{what}: {error}");
        Error::new(error.code, format!("{what}: {why}")).with_hint(hint)
    }

    /// Sends a change of the catalogue, and returns the entry `name` as it is afterwards.
    pub(crate) async fn change(
        &self,
        request: CatalogueRequest,
        name: &Name,
    ) -> Result<Entry, Error> {
        match self.catalogue(request).await {
            Ok(CatalogueReply::Entry(entry)) => Ok(entry),
            Ok(_) => self.lookup(name).await,
            Err(error) => Err(self.explain_taken_name(name, error).await),
        }
    }
}

/// Logs a reply of another kind than its request, and makes an error of it.
pub(crate) fn unexpected_reply(what: &dyn std::fmt::Debug) -> Error {
    tracing::error!("the reply of a data process does not match its request: {what:?}");
    Error::new(
        ErrorCode::Internal,
        "the reply of a data process does not match its request",
    )
    .with_hint(
        "restart the node: its processes may run different versions; the log shows the reply",
    )
}
