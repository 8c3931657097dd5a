//! Attaching and detaching: a volume gets an endpoint, and loses it.
//!
//! Attaching takes no lock and is idempotent. Which attachments of one volume may be beside each other: `sharing`. What is attached
//! is served: `serving`.

use std::path::PathBuf;

use archipelago_api::types::{AttachVolume, Attachment, DetachVolume, EndpointKind};
use archipelago_host::{JOURNAL_LEN_BYTES, QUEUES_MAX};
use archipelago_protocol::catalogue::Entry;
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{Access, AttachmentId, EndpointSpec, Error, ErrorCode, Lineage, Name};

use super::host_device::HostDevice;
use super::local::is_local;
use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use super::pool_paths::PoolPaths;
use super::sharing::{Sharing, select_for_detach, share};
use super::ublk;

const _: () = assert!(archipelago_api::types::QUEUES_MAX == QUEUES_MAX);
/// The default number of request queues.
const QUEUES_DEFAULT: u16 = 1;

/// The result of an attach.
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
                // Sent again: harmless, and it repairs what a failed attempt may have left.
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
            // The grant and the journal are made when a process opens the volume.
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
        // Its endpoint would open the volume without the daemon, perhaps while a process that keeps it is away from its own.
        if self.reservations.exclude(entry.lineage, access, None)? {
            return Err(Hindrance::Passing(self.open_elsewhere(&entry)));
        }
        let served = match self.grant(entry.lineage, access).await {
            Ok(()) => self.serve(&entry, &attachment).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            let endpoint = &attachment.endpoint;
            if self.host_device(entry.lineage, endpoint).is_some() {
                self.abandon(attachment.id, entry.lineage, endpoint).await;
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
            let endpoint = &attachment.endpoint;
            self.abandon(attachment.id, entry.lineage, endpoint).await;
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
            EndpointKind::Ublk => {
                ublk::endpoint(ublk::free_number(self.attachments().ublk_devices()))
            }
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
        let device = self.host_device(entry.lineage, &attachment.endpoint);
        let is_orphan = self.attachments().is_orphan(attachment.id);
        if let Some(device) = &device
            && let Err(error) = device.clone().stop(is_orphan).await
        {
            return Err(match error.code {
                ErrorCode::InUse => in_use(error),
                _ => error.into(),
            });
        }
        let attachment = attachment.id;
        let detach = ControlRequest::Detach {
            attachment,
            // A device that is disconnected was a client, of which the endpoint has not heard yet that it has ended.
            force: device.as_ref().is_some_and(HostDevice::ends_with_stop),
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
}
