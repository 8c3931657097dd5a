//! A pool of the node: its data processes, and how they are asked. Pools share no process, no channel and no lock, so one that
//! does not answer keeps nobody but its own guests.
//!
//! Invariants
//! - Changes of names, sizes and attachments of a pool are made one at a time, under [`Pool::changes`].
//! - A request whose process died over it is sent again to the next life. Requests that make something carry its fresh
//!   lineage, so a repetition is recognised and not reported as a failure.

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
use super::places::Places;
use super::pool_watch::PoolWatch;
use super::process::{AskError, Life, Process};
use super::settings::peer_settings;
use super::supervision::Supervision;

type MutexGuardOf<'a, T> = tokio::sync::MutexGuard<'a, T>;

/// How long a request may take, lives of the process in between included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long a check of the pool may take: less than the client of the API waits. Some 100,000 map pages.
const CHECK_PATIENCE: Duration = Duration::from_secs(180);
/// A call on storage that has not returned for so long hangs: whoever waits as long for an answer is told instead. A sync of
/// a busy disk takes a few seconds; an NFS client tries a server that does not answer for ever.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// The same while the node starts: what syncs and recovers a whole pool may take longer, and nobody is served meanwhile.
const HUNG_AFTER_AT_START: Duration = Duration::from_secs(50);
/// How often it is asked whether one does, and how long the answer may take.
const HUNG_STEP: Duration = Duration::from_secs(1);
/// How often a request may meet the death of its process before it is taken for the cause.
const DEATHS_MAX: u32 = 3;

/// Whether a pool is served.
#[derive(Debug, Clone)]
pub(crate) enum PoolState {
    /// Its processes start.
    Opening,
    /// Volumes are served.
    Served,
    /// Not served, and why; tried again.
    Failed(Error),
    /// Another host has taken it over, as the error says: this node never tries again.
    Lost(Error),
}

/// A pool of the node.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) context: Arc<NodeContext>,
    pub(crate) name: Name,
    pub(crate) config: PoolConfig,
    pub(crate) places: Places,
    pub(crate) processes: Vec<Arc<Process>>,
    pub(crate) supervision: Supervision,
    state: watch::Sender<PoolState>,
    /// Held while something is changed: [`Pool::change_alone`].
    changes: tokio::sync::Mutex<()>,
    granted: Mutex<Granted>,
    /// The looks at the pool's file system.
    pub(crate) watch: PoolWatch,
    /// Counts the incarnations of the endpoint that are to be told what is attached.
    pub(crate) endpoint_lives: watch::Sender<u64>,
}

/// An answer and whether the request had to be sent more than once.
struct Answer {
    reply: ControlReply,
    repeated: bool,
}

/// The processes of a pool, in the order in which they start: the roles that each hosts.
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
    /// The pool `name`, opened with the right of `claim`; nothing runs yet.
    pub(crate) fn new(
        context: &Arc<NodeContext>,
        name: &Name,
        config: &PoolConfig,
        places: Places,
        claim: Claim,
    ) -> Result<Pool, Error> {
        places.make(context.endpoint)?;
        let granted = Granted::new(places.grants(), context.attachments().of_pool(name));
        if context.endpoint.is_some() {
            granted.write()?;
        }
        let settings = peer_settings(
            &context.layout,
            &context.config,
            config,
            &places,
            context.endpoint,
            claim,
        );
        let processes = process_groups(context.config.placement)
            .into_iter()
            .map(|roles| {
                let title = places.title(name, &roles);
                let socket = places.control_socket(roles[0]);
                Process::new(title, socket, roles, settings.clone()).map(Arc::new)
            })
            .collect::<Result<Vec<_>, Error>>()?;
        Ok(Pool {
            context: Arc::clone(context),
            name: name.clone(),
            watch: PoolWatch::new(config.directory())?,
            config: config.clone(),
            places,
            supervision: Supervision::new(processes.len()),
            processes,
            state: watch::Sender::new(PoolState::Opening),
            changes: tokio::sync::Mutex::new(()),
            granted: Mutex::new(granted),
            endpoint_lives: watch::Sender::new(0),
        })
    }

    /// Whether it is served.
    pub(crate) fn state(&self) -> PoolState {
        self.state.borrow().clone()
    }

    /// Notes whether the pool is served; whoever waits for that is woken.
    pub(crate) fn set_state(&self, state: PoolState) {
        self.state.send_replace(state);
        self.context.pools_changed.send_modify(|count| *count += 1);
    }

    /// Why the pool is not served, for people; `None`: it is.
    pub(crate) fn unserved(&self) -> Option<Error> {
        let why = match self.state() {
            PoolState::Served => return None,
            PoolState::Opening => Error::new(ErrorCode::Unavailable, "it is still being opened"),
            PoolState::Failed(error) | PoolState::Lost(error) => error,
        };
        Some(why)
    }

    /// Refuses a request to a pool that is not served: it would wait.
    pub(crate) fn check_served(&self) -> Result<(), Error> {
        let Some(why) = self.unserved() else {
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

    /// What is attached on the node. Held for no longer than a look or a change.
    pub(crate) fn attachments(&self) -> MutexGuard<'_, Attachments> {
        self.context.attachments()
    }

    /// What the endpoint may open. Held for no longer than a change.
    pub(crate) fn granted(&self) -> MutexGuard<'_, Granted> {
        // A panic while it was held has left the old or the new content: both are whole.
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process that hosts `role`.
    pub(crate) fn process(&self, role: Role) -> &Arc<Process> {
        self.processes
            .iter()
            .find(|process| process.roles().contains(&role))
            .expect("every placement hosts every role")
    }

    async fn answer(&self, role: Role, request: &ControlRequest) -> Result<Answer, Error> {
        self.answer_within(role, request, PATIENCE).await
    }

    async fn answer_within(
        &self,
        role: Role,
        request: &ControlRequest,
        patience: Duration,
    ) -> Result<Answer, Error> {
        let process = self.process(role);
        let deadline = tokio::time::Instant::now() + patience;
        let mut deaths = 0;
        // Only a hint: nothing is ordered by it.
        let beside = if matches!(*self.state.borrow(), PoolState::Served) {
            HUNG_AFTER
        } else {
            HUNG_AFTER_AT_START
        };
        loop {
            if *process.life().borrow() == Life::Ended {
                return Err(Error::new(ErrorCode::Unavailable, "the node is stopping"));
            }
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match self.ask_watched(process, request, left, beside).await {
                Ok(reply) => {
                    return Ok(Answer {
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

    /// Asks `process`; from `beside` on waits no longer once storage hangs, nor for a process that does not start.
    pub(crate) async fn ask_watched(
        &self,
        process: &Process,
        request: &ControlRequest,
        patience: Duration,
        mut beside: Duration,
    ) -> Result<ControlReply, AskError> {
        let asked = process.ask(request, patience);
        tokio::pin!(asked);
        loop {
            match tokio::time::timeout(beside, &mut asked).await {
                Ok(answer) => return answer,
                Err(_not_yet) => beside = HUNG_STEP,
            }
            if let Some(why) = process.absence() {
                return Err(AskError::Failed(why));
            }
            if let Some(wait) = self.hung().await {
                return Err(AskError::Failed(self.hanging(&wait)));
            }
        }
    }

    /// The call on storage that hangs longest, if one does.
    async fn hung(&self) -> Option<Wait> {
        let blocker = self.process(Role::Blocker);
        let reply = blocker.ask(&ControlRequest::Status, HUNG_STEP).await;
        let Ok(ControlReply::Status(status)) = reply else {
            return None;
        };
        let hangs = |wait: &Wait| wait.seconds >= HUNG_AFTER.as_secs();
        status.waits.into_iter().find(hangs)
    }

    /// What `wait` is, for people.
    pub(crate) fn described(&self, wait: &Wait) -> String {
        let name = self
            .attachments()
            .of_volume(&self.name, wait.lineage)
            .map(|it| it.name.clone());
        let volume = name.map_or_else(String::new, |name| format!("volume `{name}`: "));
        format!(
            "{volume}{} has not returned for {} s",
            wait.what, wait.seconds
        )
    }

    fn hanging(&self, wait: &Wait) -> Error {
        let message = format!(
            "the storage of pool `{}` does not answer: {}",
            self.name,
            self.described(wait)
        );
        Error::new(ErrorCode::Unavailable, message).with_hint(format!(
            "what was asked may still be done once it answers; `{} node status` shows what hangs",
            self.context.layout.command()
        ))
    }

    /// Lets one change be made at a time: waits for its turn, and while what is returned is held nobody else has it.
    ///
    /// # Errors
    /// [`ErrorCode::Unavailable`] if others take too long.
    pub(crate) async fn change_alone(&self) -> Result<MutexGuardOf<'_, ()>, Error> {
        let turn = tokio::time::timeout(PATIENCE, self.changes.lock()).await;
        turn.map_err(|_late| {
            let message = format!(
                "other changes have been under way for {} s",
                PATIENCE.as_secs()
            );
            Error::new(ErrorCode::Unavailable, message).with_hint(format!(
                "nothing was changed; `{} node status` shows whether the storage hangs",
                self.context.layout.command()
            ))
        })
    }

    /// Has the mapper check the pool beside its other work.
    pub(crate) async fn check(&self) -> Result<Report, Error> {
        let request = ControlRequest::Catalogue(CatalogueRequest::Check { repair: false });
        let answer = self.answer_within(Role::Mapper, &request, CHECK_PATIENCE);
        match answer.await?.reply {
            ControlReply::Catalogue(CatalogueReply::Report(report)) => Ok(report),
            ControlReply::Catalogue(CatalogueReply::Failed(error))
            | ControlReply::Failed(error) => Err(error),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the process that hosts `role`.
    pub(crate) async fn ask(
        &self,
        role: Role,
        request: &ControlRequest,
    ) -> Result<ControlReply, Error> {
        match self.answer(role, request).await?.reply {
            ControlReply::Failed(error) => Err(error),
            reply => Ok(reply),
        }
    }

    /// Asks for something that answers nothing.
    pub(crate) async fn tell(&self, role: Role, request: &ControlRequest) -> Result<(), Error> {
        match self.ask(role, request).await? {
            ControlReply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the mapper about names.
    pub(crate) async fn catalogue(
        &self,
        request: CatalogueRequest,
    ) -> Result<CatalogueReply, Error> {
        let answer = self
            .answer(Role::Mapper, &ControlRequest::Catalogue(request.clone()))
            .await?;
        let error = match answer.reply {
            ControlReply::Catalogue(CatalogueReply::Failed(error))
            | ControlReply::Failed(error) => error,
            ControlReply::Catalogue(reply) => return Ok(reply),
            other => return Err(unexpected(&other)),
        };
        if answer.repeated && self.was_done(&request, error.code).await {
            return Ok(CatalogueReply::Done);
        }
        Err(error)
    }

    /// Whether the failure of a repeated request says that the first one was carried out.
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
            .answer(Role::Mapper, &ControlRequest::Catalogue(look(name)))
            .await
        {
            Ok(Answer {
                reply: ControlReply::Catalogue(CatalogueReply::Entry(entry)),
                ..
            }) => expected.is_none_or(|lineage| entry.lineage == lineage),
            _ => false,
        }
    }

    /// Names what is damaged, where a peer knows only that something of the volume is.
    pub(crate) async fn explained(&self, lineage: Lineage, error: Error) -> Error {
        if error.code != ErrorCode::Damaged {
            return error;
        }
        self.damage(lineage).await.unwrap_or(error)
    }

    /// What was found damaged of a volume.
    pub(crate) async fn damage(&self, lineage: Lineage) -> Option<Error> {
        let damage = self
            .ask(Role::Mapper, &ControlRequest::Damage { lineage })
            .await;
        damage
            .err()
            .filter(|error| error.code == ErrorCode::Damaged)
    }

    /// The entry `name`.
    pub(crate) async fn lookup(&self, name: &Name) -> Result<Entry, Error> {
        match self
            .catalogue(CatalogueRequest::Lookup { name: name.clone() })
            .await
        {
            Ok(CatalogueReply::Entry(entry)) => Ok(entry),
            Ok(other) => Err(unexpected(&other)),
            Err(error) if error.code == ErrorCode::NotFound && error.hint.is_empty() => Err(error
                .with_hint(format!(
                    "`{} volume list` shows what there is",
                    self.context.layout.command()
                ))),
            Err(error) => Err(error),
        }
    }

    /// The entry `name`, which must be whole.
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

    /// Says of a name that is taken what has it: listings do not show an import.
    pub(crate) async fn taken(&self, name: &Name, error: Error) -> Error {
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

    /// Says of a change for which something had run out what was not done, what is missing and where, and what helps.
    pub(crate) fn explain_full(&self, what: &str, error: Error) -> Error {
        let (pool, directory) = (&self.name, self.config.directory().display());
        let command = self.context.layout.command();
        let (why, hint) = match error.code {
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

    /// Carries out a change that answers the entry `name`.
    pub(crate) async fn change(
        &self,
        request: CatalogueRequest,
        name: &Name,
    ) -> Result<Entry, Error> {
        match self.catalogue(request).await {
            Ok(CatalogueReply::Entry(entry)) => Ok(entry),
            Ok(_) => self.lookup(name).await,
            Err(error) => Err(self.taken(name, error).await),
        }
    }
}

/// An answer of another kind than the request's.
pub(crate) fn unexpected(what: &dyn std::fmt::Debug) -> Error {
    tracing::error!("a data process answered something else than was asked: {what:?}");
    Error::new(
        ErrorCode::Internal,
        "a data process answered something else than was asked",
    )
    .with_hint(
        "its log has the answer; restart the node: its programs may be of different versions",
    )
}
