//! Attachments that this host itself uses: a volume as a file, or as a block device.
//!
//! They are not endpoints of a data process. A file is served by its own process (`archipelago-fuse`), which opens the volume over a
//! segment channel as any other program does; the block device belongs to the kernel.
//!
//! Invariants
//! - Created from the bottom: first the file, then the device. Ended from the top, so that the device's dirty pages still reach the file.
//! - Created and ended without [`Pool::lock_changes`]: the kernel opens the file meanwhile, and that open is a change of the pool. A holder
//!   of [`Pool::local`] may take that lock, but not the other way round.
//! - Each file and device has a record. An attachment is looked up under [`Pool::local`] before it is created, and its record is deleted
//!   under that lock after it has ended.
//! - Files and devices outlive the data processes and the daemon: the next daemon finds them and continues to serve them.
//! - If a part of an attachment is missing, the attachment is ended and created again: at the start of the node, after the death of a
//!   process, and by a repeated attach. A detach ends the parts that exist.

mod file;
mod loop_device;
mod means;
mod mounts;
mod tool;

use std::path::{Path, PathBuf};

use archipelago_api::layout::{make_directory, path_error};
use archipelago_api::types::{Attachment, AttachmentState};
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, Lineage, Name};

use self::file::{ProcessState, VolumeFile};
use self::loop_device::LoopDevice;
use super::context::NodeContext;
use super::looks::Looks;
use super::pool::Pool;

/// Whether `endpoint` belongs to this host itself.
pub(crate) fn is_local(endpoint: &EndpointSpec) -> bool {
    matches!(
        endpoint,
        EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. }
    )
}

/// The file of the volume `name` for attachment `id` in `attached`, the only file of its mount.
fn file_of(attached: &Path, id: AttachmentId, name: &Name) -> PathBuf {
    attached.join(id.to_string()).join(name.as_str())
}

/// The present state of `attachment`.
pub(crate) async fn state(attachment: &Attachment, looks: &Looks) -> AttachmentState {
    let (file, device) = match &attachment.endpoint {
        EndpointSpec::Fuse { file } => (file, None),
        EndpointSpec::Loop { file, device } => {
            let device = LoopDevice::new(device, file, looks);
            match device.node() {
                None => return AttachmentState::NotServed,
                Some(node) => (file, Some((device, node))),
            }
        }
        _ => return AttachmentState::NotServed,
    };
    match (VolumeFile::new(file, looks).process_state().await, device) {
        (ProcessState::None | ProcessState::Dead, _) => AttachmentState::NotServed,
        (ProcessState::Silent, _) => AttachmentState::Unknown,
        (ProcessState::Answers, Some((device, node))) if device.is_claimed(&node).await => {
            AttachmentState::Connected
        }
        (ProcessState::Answers, _) => AttachmentState::Served,
    }
}

impl Pool {
    /// The path of a volume as a file of this host, for attachment `id`.
    ///
    /// # Errors
    /// If its directory cannot be created.
    pub(crate) fn local_file(&self, id: AttachmentId, name: &Name) -> Result<EndpointSpec, Error> {
        let file = file_of(&self.attached_directory()?, id, name);
        Ok(EndpointSpec::Fuse { file })
    }

    /// The path of a volume as a loop device, for attachment `id`.
    fn local_device(&self, id: AttachmentId, name: &Name) -> Result<EndpointSpec, Error> {
        let attached = self.attached_directory()?;
        Ok(EndpointSpec::Loop {
            file: file_of(&attached, id, name),
            device: attached.join(format!("{id}.block")),
        })
    }

    /// The directory of this host's attachments, as the kernel shows it: without links.
    fn attached_directory(&self) -> Result<PathBuf, Error> {
        let attached = self.context.layout.attached();
        make_directory(&attached)?;
        std::fs::canonicalize(&attached).map_err(|error| path_error(&attached, &error))
    }

    /// Creates the missing parts of a recorded attachment. If that fails and the attachment `is_new`, removes its record.
    pub(crate) async fn serve_noted(
        &self,
        attachment: &Attachment,
        is_new: bool,
    ) -> Result<(), Error> {
        let _one_at_a_time = self.local.lock().await;
        let made = self.serve_local(attachment).await;
        if made.is_err()
            && is_new
            && let Err(error) = self.forget_parts(attachment).await
        {
            let name = &attachment.name;
            tracing::warn!("taking back the attachment of `{name}`: {error}");
        }
        made
    }

    /// Creates the file and the device of `attachment`, as far as they are missing.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if the record was deleted, or if the name belongs to another volume by now.
    async fn serve_local(&self, attachment: &Attachment) -> Result<(), Error> {
        let name = &attachment.name;
        if !self.attachments().has(attachment.id) {
            let message = format!("`{name}` was detached by another request");
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        // The process opens the volume by its name.
        if self.lookup(name).await?.lineage != attachment.lineage {
            let message = "its name now belongs to another volume";
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        let NodeContext { layout, looks, .. } = &*self.context;
        let read_only = attachment.read_only;
        match &attachment.endpoint {
            EndpointSpec::Fuse { file } => {
                let file = VolumeFile::new(file, looks);
                file.serve(layout, name, read_only).await
            }
            EndpointSpec::Loop { file, device } => {
                let device = LoopDevice::new(device, file, looks);
                let file = VolumeFile::new(file, looks);
                // Of any daemon: the file outlives the processes of the node, and so does the device.
                if device.node().is_some() {
                    match file.process_state().await {
                        ProcessState::Answers => return Ok(()),
                        // Programs with waiting calls must not lose their file.
                        ProcessState::Silent => return Err(file.silence(layout)),
                        ProcessState::None | ProcessState::Dead => {}
                    }
                }
                device.end().await?;
                file.serve(layout, name, read_only).await?;
                device.make(read_only).await
            }
            _ => Ok(()),
        }
    }

    /// Makes block devices of the volume `lineage` use the `size` that its files have by now, without [`Pool::lock_changes`].
    ///
    /// # Errors
    /// The error of the last device for which it failed; the volume has grown nevertheless.
    pub(crate) async fn grow_local(
        &self,
        name: &Name,
        lineage: Lineage,
        size: u64,
    ) -> Result<(), Error> {
        let endpoints: Vec<EndpointSpec> = {
            let attachments = self.attachments();
            let of_volume = attachments.of_volume(&self.name, lineage);
            of_volume.map(|one| one.endpoint.clone()).collect()
        };
        let mut grown = Ok(());
        for endpoint in endpoints {
            let EndpointSpec::Loop { file, device } = endpoint else {
                continue;
            };
            let looks = &self.context.looks;
            if let Err(error) = LoopDevice::new(&device, &file, looks).grow(size).await {
                let at = device.display();
                let message = format!(
                    "`{name}` has {size} bytes now, but its device {at} does not show them: {}",
                    error.message
                );
                grown = Err(Error::new(error.code, message).with_hint(format!(
                    "`{} volume resize {name} {size}` tries it again; so does `losetup --set-capacity {at}`",
                    self.context.layout.command()
                )));
            }
        }
        grown
    }

    /// Whether this host itself uses a volume of the pool.
    pub(crate) fn has_local(&self) -> bool {
        let attachments = self.attachments();
        let mut of_pool = attachments.of_pool(&self.name);
        of_pool.any(|one| is_local(&one.endpoint))
    }

    /// Ends the existing parts of `attachment`, under [`Pool::local`].
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a program uses it.
    async fn end_parts(&self, attachment: &Attachment) -> Result<(), Error> {
        let looks = &self.context.looks;
        match &attachment.endpoint {
            EndpointSpec::Fuse { file } => VolumeFile::new(file, looks).end().await,
            EndpointSpec::Loop { file, device } => {
                LoopDevice::new(device, file, looks).end().await?;
                VolumeFile::new(file, looks).end().await
            }
            _ => Ok(()),
        }
    }

    /// Ends the existing parts of an attachment of this host, and removes its record.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a program uses it.
    pub(crate) async fn forget_local(&self, attachment: &Attachment) -> Result<(), Error> {
        let _one_at_a_time = self.local.lock().await;
        self.forget_parts(attachment).await
    }

    async fn forget_parts(&self, attachment: &Attachment) -> Result<(), Error> {
        self.end_parts(attachment).await?;
        let _one_at_a_time = self.lock_changes().await?;
        self.attachments().remove(attachment.id)?;
        self.withdraw_if_detached(attachment.lineage).await;
        Ok(())
    }

    /// Creates the missing parts of this host's attachments, or of those in `only`, except `failed`. Returns those that may succeed later.
    pub(crate) async fn serve_all_local(
        &self,
        only: Option<Vec<AttachmentId>>,
        failed: &[AttachmentId],
    ) -> Vec<AttachmentId> {
        let wanted = |one: &&Attachment| {
            is_local(&one.endpoint)
                && !failed.contains(&one.id)
                && only.as_ref().is_none_or(|only| only.contains(&one.id))
        };
        let local: Vec<Attachment> = {
            let attachments = self.attachments();
            attachments
                .of_pool(&self.name)
                .filter(wanted)
                .cloned()
                .collect()
        };
        let mut left = Vec::new();
        for attachment in local {
            let Err(error) = self.serve_noted(&attachment, false).await else {
                continue;
            };
            if !self.attachments().has(attachment.id) {
                continue;
            }
            let name = &attachment.name;
            // The mount may stay for long, so the error is logged only once as an error.
            match only {
                None => tracing::error!("`{name}` is attached but cannot be served: {error}"),
                Some(_) => tracing::debug!("`{name}` still cannot be served: {error}"),
            }
            if error.code != ErrorCode::NotFound {
                left.push(attachment.id);
            }
        }
        left
    }

    /// Ends this host's attachments to the pool, before its processes stop. Attachments in use stay, and wait for the next start of the
    /// node.
    pub(crate) async fn end_all_local(&self) -> Vec<String> {
        let local: Vec<Attachment> = {
            let attachments = self.attachments();
            let of_pool = attachments.of_pool(&self.name);
            let local = of_pool.filter(|one| is_local(&one.endpoint));
            local.cloned().collect()
        };
        let _one_at_a_time = self.local.lock().await;
        let ends = local.iter().map(|one| self.end_parts(one));
        let ends = futures_util::future::join_all(ends).await;
        left_in_use(local.iter().zip(ends))
    }
}

/// Reports the attachments that stay when the node stops, because programs use them; other failures are logged.
pub(super) fn left_in_use<'a>(
    ended: impl Iterator<Item = (&'a Attachment, Result<(), Error>)>,
) -> Vec<String> {
    let mut left = Vec::new();
    for (attachment, ended) in ended {
        match ended {
            Ok(()) => {}
            Err(error) if error.code == ErrorCode::InUse => left.push(format!(
                "`{}` is in use at {}: I/O waits there for the node's next start, and fails after 5 minutes",
                attachment.name,
                attachment.endpoint.path().display()
            )),
            Err(error) => tracing::warn!("ending `{}`: {error}", attachment.name),
        }
    }
    left
}
