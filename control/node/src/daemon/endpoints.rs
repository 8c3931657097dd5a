//! Attaching and detaching: creates and removes the endpoint of a volume.
//!
//! Attaching takes no lock and is idempotent. The module `sharing` decides which attachments of one volume may exist together; the module
//! `serving` serves attached volumes.

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
    /// The attachment existed already.
    Present(Attachment),
    /// The attachment was created.
    New(Attachment),
}

impl Pool {
    /// Serves `name` at a socket; repeating the call returns the same attachment.
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
        // Only now that the lock of changes is released: the kernel opens the volume meanwhile, which is a change.
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
                // Requested again: this does no harm, and repairs what a failed attempt may have left.
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
        // Otherwise its endpoint would open the volume without the daemon, perhaps while a process that keeps it is not connected.
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
                // Another server has taken this number: try the next one.
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

    /// Withdraws the endpoint's right to `lineage`, unless it serves the volume to other clients.
    pub(crate) async fn withdraw_if_detached(&self, lineage: Lineage) {
        let attached = self.attachments().has_volume(&self.name, lineage);
        if !attached {
            self.withdraw(lineage).await;
        }
    }

    /// The requested endpoint. The first one of a kind is always at the same place, however often the volume was attached before.
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

    /// The error that two pools contain the same volume: one is a copy of the other.
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

    /// Refuses an attachment for which the run directory has no room: an open volume needs a presence journal there, and room for volumes
    /// that are attached and not open yet is reserved.
    fn check_journal_room(&self, attachment: &Attachment) -> Result<(), Error> {
        let directory = self.paths.journals();
        let Ok(stat) = nix::sys::statvfs::statvfs(&directory) else {
            // If there is an error, the open will report it.
            return Ok(());
        };
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        // The pools share the room, but each has its own directory.
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

    /// Ends the attachment of `name` that `request` identifies. Refused while a guest runs on it; if the guest is just ending, waits for
    /// it.
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

    /// Detaches. An attachment of this host itself is only returned: the caller ends it without the lock of changes.
    async fn detach_once(
        &self,
        name: &Name,
        request: &DetachVolume,
    ) -> Result<Option<Attachment>, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup(name).await?;
        let attached: Vec<Attachment> = {
            let attachments = self.attachments();
            // Not those of a copy's volume, but those of a pool that an administrator has renamed.
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
            // A device that has been disconnected was a client, but the endpoint may not have noticed its end yet.
            force: device.as_ref().is_some_and(HostDevice::ends_with_stop),
        };
        match self.tell(Role::Endpoint, &detach).await {
            Ok(()) => {}
            // The endpoint does not have it, so it only remains to remove the record.
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
