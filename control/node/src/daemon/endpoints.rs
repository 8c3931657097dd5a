//! Attachments: a volume served at an endpoint.
//!
//! Attaching takes no lock and is idempotent. Which attachments of one volume may be beside each other: `sharing`. What the file of attachments says is what the endpoint is told: at an
//! attach, and again whenever its process has started.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::types::{AttachVolume, Attachment, DetachVolume, EndpointKind};
use archipelago_host::{JOURNAL_LEN_BYTES, QUEUES_MAX};
use archipelago_protocol::catalogue::Entry;
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{
    Access, AttachmentId, EndpointSpec, Error, ErrorCode, Lineage, Name, ServedVolume,
};
use futures_util::stream::{self, StreamExt};
use tokio::sync::watch;

use super::local::is_local;
use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use super::pool_paths::PoolPaths;
use super::sharing::{Sharing, select_for_detach, share};
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

/// What an attach has found or made.
enum Attached {
    /// It was there.
    Present(Attachment),
    /// It was made.
    New(Attachment),
}

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
        let of_vhost_user = request
            .kind
            .is_none_or(|kind| kind == EndpointKind::VhostUser);
        if !of_vhost_user && request.queues.is_some() {
            let message = "only a vhost-user device has queues";
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        if request.kind == Some(EndpointKind::Ublk) {
            ublk::check().await?;
        }
        let attached = wait_while_passing(|| self.attach_once(name, &request)).await?;
        let (attachment, is_new) = match attached {
            Attached::Present(attachment) => (attachment, false),
            Attached::New(attachment) => (attachment, true),
        };
        if !is_local(&attachment.endpoint) {
            return Ok(attachment);
        }
        // Not before others may change something: the kernel opens the volume meanwhile.
        self.serve_noted(&attachment, is_new).await?;
        Ok(attachment)
    }

    async fn attach_once(
        &self,
        name: &Name,
        request: &AttachVolume,
    ) -> Result<Attached, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        let present: Vec<Attachment> = self
            .attachments()
            .of_lineage(entry.lineage)
            .cloned()
            .collect();
        let mut elsewhere = present.iter();
        if let Some(other) = elsewhere.find(|one| one.pool.as_ref() != Some(&self.name)) {
            return Err(self.attached_elsewhere(other).into());
        }
        let read_only = match share(&entry, &present, request, &self.context.layout.command())? {
            Sharing::Present(attachment) => {
                // Told again: harmless, and it repairs what a failed attempt may have left.
                self.serve(&entry, &attachment).await?;
                return Ok(Attached::Present(attachment));
            }
            Sharing::Further { read_only } => read_only,
        };
        let id = self.attachments().next_id();
        let endpoint = self.endpoint(&entry, request, id, &present).await?;
        let attachment = Attachment {
            id,
            pool: Some(self.name.clone()),
            name: name.clone(),
            lineage: entry.lineage,
            read_only,
            endpoint,
        };
        if is_local(&attachment.endpoint) {
            // Whoever opens it is granted that then, and needs a journal then.
            self.attachments().insert(attachment.clone())?;
            return Ok(Attached::New(attachment));
        }
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
            self.withdraw_if_detached(entry.lineage).await;
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
            self.withdraw_if_detached(entry.lineage).await;
            return Err(error.into());
        }
        Ok(Attached::New(attachment))
    }

    /// Takes back what the endpoint may do with `lineage`, unless it serves that to others.
    pub(crate) async fn withdraw_if_detached(&self, lineage: Lineage) {
        let attached = self.attachments().has_volume(&self.name, lineage);
        if !attached {
            self.withdraw(lineage).await;
        }
    }

    /// What is asked for. The first of its kind is where it always was, however often the volume was attached before.
    async fn endpoint(
        &self,
        entry: &Entry,
        request: &AttachVolume,
        id: AttachmentId,
        present: &[Attachment],
    ) -> Result<EndpointSpec, Error> {
        let layout = &self.context.layout;
        let free = |first: PathBuf, further: PathBuf| {
            let is_free = present.iter().all(|one| one.endpoint.path() != first);
            if is_free { first } else { further }
        };
        Ok(match request.kind.unwrap_or(EndpointKind::VhostUser) {
            EndpointKind::VhostUser => EndpointSpec::VhostUser {
                socket: free(
                    layout.volume_socket(entry.lineage),
                    layout.further_volume_socket(id),
                ),
                queues: request.queues.unwrap_or(QUEUES_DEFAULT),
            },
            EndpointKind::Nbd => EndpointSpec::Nbd {
                socket: free(
                    layout.nbd_socket(entry.lineage),
                    layout.further_nbd_socket(id),
                ),
                export: entry.name.to_string(),
            },
            EndpointKind::Ublk => ublk::endpoint(ublk::free_number(self.attachments().devices())),
            EndpointKind::Fuse => self.local_file(id, &entry.name)?,
            EndpointKind::Block => self.block_device(id, &entry.name).await?,
        })
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

    /// Has the endpoint serve it. What this host itself uses is served by [`Pool::serve_noted`].
    async fn serve(&self, entry: &Entry, attachment: &Attachment) -> Result<(), Error> {
        if is_local(&attachment.endpoint) {
            return Ok(());
        }
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

    /// Serves `name` no longer: the attachment that `request` means. Refused while a guest runs on it; one that is just ending is
    /// waited for.
    pub(crate) async fn detach(&self, name: &Name, request: DetachVolume) -> Result<(), Error> {
        let local = wait_while_passing(|| self.detach_once(name, &request)).await?;
        let Some(attachment) = local else {
            return Ok(());
        };
        let ended = self.forget_local(&attachment).await;
        ended.map_err(|error| match error.code {
            ErrorCode::InUse => {
                let message = format!("`{name}` is in use: {}", error.message);
                Error { message, ..error }
            }
            _ => error,
        })
    }

    /// What is left to be done: an attachment of this host itself, which is ended while others may change something.
    async fn detach_once(
        &self,
        name: &Name,
        request: &DetachVolume,
    ) -> Result<Option<Attachment>, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup(name).await?;
        let attached: Vec<Attachment> = {
            let attachments = self.attachments();
            // Not those of a copy's volume; but those of a pool which was given another name by hand.
            let is_ours = |one: &&Attachment| {
                one.pool.as_ref() == Some(&self.name) || attachments.is_orphan(one.id)
            };
            let present = attachments.of_lineage(entry.lineage);
            present.filter(is_ours).cloned().collect()
        };
        let command = self.context.layout.command();
        let attachment = select_for_detach(name, &attached, request, &command)?;
        if is_local(&attachment.endpoint) {
            return Ok(Some(attachment));
        }
        let in_use = |error: Error| {
            let message = format!("`{name}` is in use: {}", error.message);
            Hindrance::Passing(Error { message, ..error })
        };
        let device = match attachment.endpoint {
            EndpointSpec::Ublk { device, .. } => Some(self.own_device(entry.lineage, device)),
            _ => None,
        };
        let is_orphan = self.attachments().is_orphan(attachment.id);
        if let Some(device) = device
            && let Err(error) = device.stop(is_orphan).await
        {
            return Err(match error.code {
                ErrorCode::InUse => in_use(error),
                _ => error.into(),
            });
        }
        let attachment = attachment.id;
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
            device.remove().await;
        }
        self.attachments().remove(attachment)?;
        self.withdraw_if_detached(entry.lineage).await;
        Ok(None)
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
        failed.extend(self.serve_all_local(None, &failed).await);
        while !failed.is_empty() {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(SERVE_RETRY_MAX);
            let again = self.serve_all(Some(failed.clone())).await;
            let local = self.serve_all_local(Some(failed), &again).await;
            failed = [again, local].concat();
        }
    }

    /// Tells the endpoint what is attached, or those of `only`. What cannot be served is logged and stays noted; returned is
    /// what may be served later.
    pub(crate) async fn serve_all(&self, only: Option<Vec<AttachmentId>>) -> Vec<AttachmentId> {
        let wanted = |attachment: &&Attachment| {
            !is_local(&attachment.endpoint)
                && only
                    .as_ref()
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
                "its name now belongs to another volume",
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
