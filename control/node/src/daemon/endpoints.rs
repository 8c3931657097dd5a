//! Attachments: a volume served at an endpoint.
//!
//! Attaching takes no lock and is idempotent. What the file of attachments says is what the endpoint is told: at an
//! attach, and again whenever its process has started.

use std::sync::Arc;
use std::time::Duration;

use archipelago_api::types::{AttachVolume, Attachment, EndpointKind};
use archipelago_host::{JOURNAL_LEN_BYTES, QUEUES_MAX};
use archipelago_protocol::catalogue::{Entry, Kind};
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{
    Access, AttachmentId, EndpointSpec, Error, ErrorCode, Name, ServedVolume,
};
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use super::pool_paths::PoolPaths;
use super::ublk;

const _: () = assert!(archipelago_api::types::QUEUES_MAX == QUEUES_MAX);
/// Request queues when nobody says how many.
const QUEUES_DEFAULT: u16 = 1;
/// Bytes of the serial number that a guest sees.
const SERIAL_LEN: usize = 20;
/// A fresh endpoint is told of as many attachments at once: a connection and a thread for each.
const SERVED_AT_ONCE: usize = 16;
/// First wait before the endpoint is told again of what it could not serve.
const SERVE_RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest wait: whoever frees a descriptor or some space shall see the volume come back.
const SERVE_RETRY_MAX: Duration = Duration::from_secs(10);

impl Pool {
    /// Serves `name` at a socket; the same again answers the same.
    pub(crate) async fn attach(
        &self,
        name: &Name,
        request: AttachVolume,
    ) -> Result<Attachment, Error> {
        if let Some(queues) = request
            .queues
            .filter(|queues| !(1..=QUEUES_MAX).contains(queues))
        {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("{queues} queues are not in 1..={QUEUES_MAX}"),
            ));
        }
        if request.kind == Some(EndpointKind::Nbd) && request.queues.is_some() {
            let message = "NBD has no queues: a client opens as many connections as it likes";
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        if request.kind == Some(EndpointKind::Ublk) {
            if request.queues.is_some() {
                let message = "a ublk device has one queue";
                return Err(Error::new(ErrorCode::Invalid, message));
            }
            ublk::check().await?;
        }
        wait_while_passing(|| self.attach_once(name, &request)).await
    }

    async fn attach_once(
        &self,
        name: &Name,
        request: &AttachVolume,
    ) -> Result<Attachment, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        let present = self.attachments().of_lineage(entry.lineage).cloned();
        if let Some(attachment) = &present
            && attachment.pool.as_ref() != Some(&self.name)
        {
            return Err(self.attached_elsewhere(attachment).into());
        }
        if let Some(attachment) = present {
            self.same(&attachment, request)?;
            // Told again: harmless, and it repairs what a failed attempt may have left.
            self.serve(&entry, &attachment).await?;
            return Ok(attachment);
        }
        let is_frozen = entry.kind != Kind::Volume;
        let read_only = request.read_only.unwrap_or(is_frozen);
        if is_frozen && !read_only {
            return Err(Error::new(
                ErrorCode::Invalid,
                format!("`{name}` is frozen: it is attached only read-only"),
            )
            .with_hint(format!(
                "or attach a clone of it: `{} volume clone {name} NAME`",
                self.context.layout.command()
            ))
            .into());
        }
        let endpoint = self.endpoint(&entry, request);
        let attachment = Attachment {
            id: self.attachments().next_id(),
            pool: Some(self.name.clone()),
            name: name.clone(),
            lineage: entry.lineage,
            read_only,
            endpoint,
        };
        if !read_only {
            self.check_journal_room(&attachment)?;
        }
        let access = if read_only {
            Access::Read
        } else {
            Access::Write
        };
        let served = match self.grant(entry.lineage, access).await {
            Ok(()) => self.serve(&entry, &attachment).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            if let EndpointSpec::Ublk { device, .. } = attachment.endpoint {
                let device = self.own_device(entry.lineage, device);
                self.abandon_device(attachment.id, device).await;
            }
            self.withdraw(entry.lineage).await;
            return Err(match error.code {
                // Another server was faster: the next number.
                ErrorCode::Exists => Hindrance::Passing(error),
                ErrorCode::InUse => Hindrance::Passing(Error {
                    message: format!("`{name}` is still being detached by another request"),
                    ..error
                }),
                _ => error.into(),
            });
        }
        let noted = self.attachments().insert(attachment.clone());
        if let Err(error) = noted {
            if let EndpointSpec::Ublk { device, .. } = attachment.endpoint {
                let device = self.own_device(entry.lineage, device);
                self.abandon_device(attachment.id, device).await;
            } else {
                let detach = ControlRequest::Detach {
                    attachment: attachment.id,
                    force: true,
                };
                if let Err(error) = self.tell(Role::Endpoint, &detach).await {
                    tracing::warn!("taking back the attachment of `{name}`: {error}");
                }
            }
            self.withdraw(entry.lineage).await;
            return Err(error.into());
        }
        Ok(attachment)
    }

    /// What is asked for.
    fn endpoint(&self, entry: &Entry, request: &AttachVolume) -> EndpointSpec {
        let layout = &self.context.layout;
        match request.kind.unwrap_or(EndpointKind::VhostUser) {
            EndpointKind::VhostUser => EndpointSpec::VhostUser {
                socket: layout.volume_socket(entry.lineage),
                queues: request.queues.unwrap_or(QUEUES_DEFAULT),
            },
            EndpointKind::Nbd => EndpointSpec::Nbd {
                socket: layout.nbd_socket(entry.lineage),
                export: entry.name.to_string(),
            },
            EndpointKind::Ublk => ublk::endpoint(ublk::free_number(self.attachments().devices())),
        }
    }

    /// Two pools hold the same volume: one is a copy of the other.
    fn attached_elsewhere(&self, attachment: &Attachment) -> Error {
        let pool = attachment.pool.as_ref().map_or("?", |pool| pool.as_str());
        if self.attachments().is_orphan(attachment.id) {
            let name = &attachment.name;
            let message = format!(
                "`{name}` was attached as one of pool `{pool}`, which the node does not have"
            );
            let command = self.context.layout.command();
            return Error::new(ErrorCode::InUse, message)
                .with_hint(format!("detach it first: `{command} volume detach {name}`"));
        }
        let message = format!(
            "`{}` of pool `{pool}` is attached, which is the same volume: one of the two pools is a copy",
            attachment.name
        );
        Error::new(ErrorCode::InUse, message).with_hint("detach it there first")
    }

    /// Refuses what the run directory has no room for: an open volume needs a presence journal there, and those that are
    /// attached and not open yet were promised one before.
    fn check_journal_room(&self, attachment: &Attachment) -> Result<(), Error> {
        let directory = self.paths.journals();
        let Ok(stat) = nix::sys::statvfs::statvfs(&directory) else {
            // Whatever it is, the open will name it.
            return Ok(());
        };
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        // The pools share the room, and each has its own directory.
        let layout = &self.context.layout;
        let without_journal = |one: &Attachment| {
            let file = one.lineage.to_string();
            let further = one
                .pool
                .as_ref()
                .map(|pool| PoolPaths::further(layout, pool));
            !layout.journals().join(&file).exists()
                && !further.is_some_and(|run| run.join("journal").join(&file).exists())
        };
        if !without_journal(attachment) {
            return Ok(());
        }
        let promised = self
            .attachments()
            .all()
            .filter(|one| !one.read_only && without_journal(one))
            .count();
        let promised =
            JOURNAL_LEN_BYTES.saturating_mul(u64::try_from(promised).unwrap_or(u64::MAX));
        if promised.saturating_add(JOURNAL_LEN_BYTES) <= free {
            return Ok(());
        }
        let message = format!(
            "`{}` needs {JOURNAL_LEN_BYTES} bytes in {} while it is open, for its presence journal: {free} are free there, and \
             attached volumes that are not open need {promised} of them",
            attachment.name,
            directory.display(),
        );
        Err(Error::new(ErrorCode::NoSpace, message).with_hint(
            "make room in that file system (a tmpfs: `mount -o remount,size=...`), or detach a volume",
        ))
    }

    /// Refuses an attach that asks for something else than what is there.
    fn same(&self, attachment: &Attachment, request: &AttachVolume) -> Result<(), Error> {
        let endpoint = &attachment.endpoint;
        let is_kind = request
            .kind
            .is_none_or(|kind| kind == EndpointKind::of(endpoint));
        let has_queues = match endpoint {
            EndpointSpec::VhostUser { queues, .. } => {
                request.queues.is_none_or(|asked| asked == *queues)
            }
            EndpointSpec::Nbd { .. } | EndpointSpec::Ublk { .. } => request.queues.is_none(),
        };
        let read_only = request.read_only.unwrap_or(attachment.read_only);
        if is_kind && has_queues && read_only == attachment.read_only {
            return Ok(());
        }
        let mode = if attachment.read_only {
            "read-only"
        } else {
            "read-write"
        };
        Err(Error::new(
            ErrorCode::InUse,
            format!(
                "`{}` is attached already, by {}, {mode}{}",
                attachment.name,
                endpoint.kind(),
                match endpoint {
                    EndpointSpec::VhostUser { queues, .. } => format!(", queues: {queues}"),
                    EndpointSpec::Nbd { .. } | EndpointSpec::Ublk { .. } => String::new(),
                }
            ),
        )
        .with_hint(format!(
            "detach it first: `{} volume detach {}`",
            self.context.layout.command(),
            attachment.name
        )))
    }

    async fn serve(&self, entry: &Entry, attachment: &Attachment) -> Result<(), Error> {
        let mut serial = entry.lineage.to_string();
        serial.truncate(SERIAL_LEN);
        let volume = ServedVolume {
            lineage: entry.lineage,
            size: entry.size,
            object_size: entry.object_size,
            read_only: attachment.read_only,
            serial,
            on_full: entry.on_full,
        };
        if let EndpointSpec::Ublk { device, .. } = attachment.endpoint {
            return self.serve_device(attachment.id, &volume, device).await;
        }
        let request = ControlRequest::Attach {
            attachment: attachment.id,
            volume,
            endpoint: attachment.endpoint.clone(),
        };
        self.tell(Role::Endpoint, &request).await
    }

    /// Serves `name` no longer. Refused while a guest runs on it; one that is just ending is waited for.
    pub(crate) async fn detach(&self, name: &Name) -> Result<(), Error> {
        wait_while_passing(|| self.detach_once(name)).await
    }

    async fn detach_once(&self, name: &Name) -> Result<(), Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup(name).await?;
        let attached = {
            let attachments = self.attachments();
            // Not that of a copy's volume; but that of a pool which was given another name by hand.
            let is_ours = |one: &&Attachment| {
                one.pool.as_ref() == Some(&self.name) || attachments.is_orphan(one.id)
            };
            let present = attachments.of_lineage(entry.lineage);
            present.filter(is_ours).cloned()
        };
        let Some(Attachment {
            id: attachment,
            endpoint,
            ..
        }) = attached
        else {
            let error = Error::new(ErrorCode::NotFound, format!("`{name}` is not attached"));
            let command = self.context.layout.command();
            return Err(error
                .with_hint(format!("`{command} node status` shows what is"))
                .into());
        };
        let in_use = |error: Error| {
            let message = format!("`{name}` is in use: {}", error.message);
            Hindrance::Passing(Error { message, ..error })
        };
        let device = match endpoint {
            EndpointSpec::Ublk { device, .. } => Some(self.own_device(entry.lineage, device)),
            EndpointSpec::VhostUser { .. } | EndpointSpec::Nbd { .. } => None,
        };
        let is_orphan = self.attachments().is_orphan(attachment);
        if let Some(device) = device
            && let Err(error) = self.stop_device(device, is_orphan).await
        {
            return Err(match error.code {
                ErrorCode::InUse => in_use(error),
                _ => error.into(),
            });
        }
        let detach = ControlRequest::Detach {
            attachment,
            force: false,
        };
        match self.tell(Role::Endpoint, &detach).await {
            Ok(()) => {}
            // The endpoint does not know it: what is left is to forget it.
            Err(error) if error.code == ErrorCode::NotFound => {}
            Err(error) if error.code == ErrorCode::InUse => return Err(in_use(error)),
            Err(error) => return Err(error.into()),
        }
        if let Some(device) = device {
            self.remove_device(device).await;
        }
        self.attachments().remove(attachment)?;
        self.withdraw(entry.lineage).await;
        Ok(())
    }

    /// Sends the attached volumes to each incarnation of the endpoint. A new incarnation ends the round for the one before, so
    /// there is one round at a time, however many incarnations there were.
    pub(crate) async fn serve_incarnations(
        self: Arc<Self>,
        mut incarnations: watch::Receiver<u64>,
    ) {
        let mut begun = incarnations.changed().await;
        while begun.is_ok() {
            begun = tokio::select! {
                // First: a round for a dead incarnation waits for answers that never come.
                biased;
                begun = incarnations.changed() => begun,
                () = self.serve_until_done() => incarnations.changed().await,
            };
        }
    }

    /// Tells the endpoint what is attached, and again what it could not serve.
    async fn serve_until_done(&self) {
        let mut wait = SERVE_RETRY_MIN;
        let mut failed = self.serve_all(None).await;
        while !failed.is_empty() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SERVE_RETRY_MAX);
            failed = self.serve_all(Some(failed)).await;
        }
    }

    /// Tells the endpoint what is attached, or those of `only`. What cannot be served is logged and stays noted; returned is
    /// what may be served later.
    pub(crate) async fn serve_all(&self, only: Option<Vec<AttachmentId>>) -> Vec<AttachmentId> {
        let wanted = |attachment: &&Attachment| {
            only.as_ref()
                .is_none_or(|only| only.contains(&attachment.id))
        };
        let turn = self.lock_changes().await;
        let attachments: Vec<Attachment> = self
            .attachments()
            .of_pool(&self.name)
            .filter(wanted)
            .cloned()
            .collect();
        let _one_at_a_time = match turn {
            Ok(turn) => turn,
            Err(error) => {
                tracing::error!("what is attached is not served: {error}");
                return attachments.iter().map(|one| one.id).collect();
            }
        };
        let all = attachments.len();
        // Guests wait meanwhile.
        let failed: Vec<(AttachmentId, ErrorCode)> = stream::iter(attachments)
            .map(|attachment| async move {
                let failed = self.serve_again(&attachment).await.err();
                failed.map(|error| (attachment.id, error.code))
            })
            .buffer_unordered(SERVED_AT_ONCE)
            .filter_map(|failed| async move { failed })
            .collect()
            .await;
        if all > 0 {
            let incarnation = *self.endpoint_incarnations.borrow();
            let served = all - failed.len();
            tracing::info!(
                "{served} of {all} attached volumes are served (process generation {incarnation} of the endpoint)"
            );
        }
        let may_pass = |code: ErrorCode| {
            !matches!(
                code,
                ErrorCode::NotFound | ErrorCode::Invalid | ErrorCode::Damaged
            )
        };
        failed
            .into_iter()
            .filter_map(|(id, code)| may_pass(code).then_some(id))
            .collect()
    }

    async fn serve_again(&self, attachment: &Attachment) -> Result<(), Error> {
        let name = &attachment.name;
        let served = match self.lookup(name).await {
            Ok(entry) if entry.lineage == attachment.lineage => {
                self.serve(&entry, attachment).await
            }
            Ok(_other) => Err(Error::new(
                ErrorCode::NotFound,
                "another volume has its name now",
            )),
            Err(error) => Err(error),
        };
        match &served {
            Ok(()) => tracing::debug!(
                "`{name}` is served at {}",
                attachment.endpoint.path().display()
            ),
            Err(error) => tracing::error!("`{name}` is attached but cannot be served: {error}"),
        }
        served
    }
}
