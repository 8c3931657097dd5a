//! The requests that the node sends to the data processes of a pool.
//!
//! If a process dies before it has answered a request, the request is sent again to the process's next incarnation. A request
//! that creates an entry carries the lineage of that entry, so a repetition is recognised and not reported as a failure.

use std::time::Duration;

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Entry, Kind};
use archipelago_protocol::check::Report;
use archipelago_protocol::control::{ControlReply, ControlRequest, Role, Wait};
use archipelago_protocol::{Error, ErrorCode, Lineage, Name};

use super::pool::{Pool, PoolState, REQUEST_TIMEOUT};
use super::process::{AskError, Process, RunState};

/// How long a walk over maps may take: less than the client of the API waits, and enough for some 100,000 map pages.
const WALK_TIMEOUT: Duration = Duration::from_secs(180);
/// A call on storage that has not returned for this long counts as hung, and requests that wait for this long fail with a
/// description of the call. A sync of a busy disk takes a few seconds; an NFS client retries for ever if its server is away.
const HUNG_AFTER: Duration = Duration::from_secs(10);
/// [`HUNG_AFTER`] of a pool that is not served yet: the sync and recovery of a whole pool take longer, and no guest waits.
const HUNG_AFTER_AT_START: Duration = Duration::from_secs(50);
/// Interval between two checks for a hung call, and how long the blocker may take to answer one.
const HUNG_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How often a request is sent again because its process died: at the next death, the request is taken for the cause.
const DEATHS_MAX: u32 = 3;

/// The reply to a request that is sent again if its process dies.
struct RetriedReply {
    reply: ControlReply,
    /// The request was sent more than once.
    repeated: bool,
}

impl Pool {
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
        let first_check = if matches!(self.state(), PoolState::Served) {
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

    /// Has the mapper check the pool while it serves other requests.
    pub(crate) async fn check(&self) -> Result<Report, Error> {
        match self.walk(CatalogueRequest::Check { repair: false }).await? {
            CatalogueReply::Report(report) => Ok(report),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// Sends a request for which the mapper walks over maps while it serves other requests.
    pub(crate) async fn walk(&self, request: CatalogueRequest) -> Result<CatalogueReply, Error> {
        let request = ControlRequest::Catalogue(request);
        let answer = self.send_within(Role::Mapper, &request, WALK_TIMEOUT);
        match answer.await?.reply {
            ControlReply::Catalogue(CatalogueReply::Failed(error))
            | ControlReply::Failed(error) => Err(error),
            ControlReply::Catalogue(reply) => Ok(reply),
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

    /// The damage that the mapper has found in a volume, or a format that it does not know.
    pub(crate) async fn damage(&self, lineage: Lineage) -> Option<Error> {
        let damage = self
            .ask(Role::Mapper, &ControlRequest::Damage { lineage })
            .await;
        damage.err().filter(|error| error.code.is_of_stored())
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
