//! Attachments that this host itself uses: a volume as a file, and as a block device.
//!
//! They are not endpoints of a data process: a file is served by a process of its own (`archipelago-fuse`), which opens the volume over a
//! segment channel like any other program, and the block device is the kernel's.
//!
//! Invariants
//! - Made from below: file, then device. Ended from above, so that the device's dirty pages still reach the file.
//! - Made and ended outside [`Pool::lock_changes`]: the kernel opens the file meanwhile, and that open is a change of the pool. A holder of
//!   [`Pool::local`] may take that lock, never the other way round.
//! - Each file and device has a record: an attachment is looked up under [`Pool::local`] before it is made, and its record is deleted under
//!   that lock after it has ended.
//! - Files and devices outlive the data processes and the daemon: the next daemon finds them and goes on serving them.
//! - An attachment of which a part is missing is ended and made anew: after a start of the node, after the death of a process, and by a
//!   repeated attach. A detach ends the parts that exist.

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

/// Whether `endpoint` is one of this host itself.
pub(crate) fn is_local(endpoint: &EndpointSpec) -> bool {
    matches!(
        endpoint,
        EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. }
    )
}

/// The volume `name` as the file of attachment `id` in `attached`, alone in a mount of its own.
fn file_of(attached: &Path, id: AttachmentId, name: &Name) -> PathBuf {
    attached.join(id.to_string()).join(name.as_str())
}

/// How `attachment` is now.
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
    /// The place of a volume as a file of this host, attachment `id`.
    ///
    /// # Errors
    /// If its directory cannot be made.
    pub(crate) fn local_file(&self, id: AttachmentId, name: &Name) -> Result<EndpointSpec, Error> {
        let file = file_of(&self.attached_directory()?, id, name);
        Ok(EndpointSpec::Fuse { file })
    }

    /// The place of a volume as a loop device, attachment `id`.
    fn local_device(&self, id: AttachmentId, name: &Name) -> Result<EndpointSpec, Error> {
        let attached = self.attached_directory()?;
        Ok(EndpointSpec::Loop {
            file: file_of(&attached, id, name),
            device: attached.join(format!("{id}.block")),
        })
    }

    /// The directory of what this host uses, as the kernel shows it: without links.
    fn attached_directory(&self) -> Result<PathBuf, Error> {
        let attached = self.context.layout.attached();
        make_directory(&attached)?;
        std::fs::canonicalize(&attached).map_err(|error| path_error(&attached, &error))
    }

    /// Makes what a request has noted, or what is missing of it; one that fails and `is_new` is forgotten.
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

    /// Makes the file and the device of `attachment`, or the missing part of them.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] if its record was deleted, or its name is another volume's.
    async fn serve_local(&self, attachment: &Attachment) -> Result<(), Error> {
        let name = &attachment.name;
        if !self.attachments().has(attachment.id) {
            let message = format!("`{name}` was detached by another request");
            return Err(Error::new(ErrorCode::NotFound, message));
        }
        // Its process opens what has the name.
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
                // Of whichever daemon: its file outlives the processes of the node, and so does the device.
                if device.node().is_some() {
                    match file.process_state().await {
                        ProcessState::Answers => return Ok(()),
                        // Nothing is taken from under programs whose calls wait.
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

    /// Has block devices of the volume `lineage` take the `size` that its files show by now, outside [`Pool::lock_changes`].
    ///
    /// # Errors
    /// What went wrong with the last that has not: the volume has grown.
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

    /// Whether anything of the pool is used by this host itself.
    pub(crate) fn has_local(&self) -> bool {
        let attachments = self.attachments();
        let mut of_pool = attachments.of_pool(&self.name);
        of_pool.any(|one| is_local(&one.endpoint))
    }

    /// Ends what there is of `attachment`, under [`Pool::local`].
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

    /// Ends what there is of an attachment of this host itself, and forgets it.
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

    /// Makes what is missing of what this host itself uses, or of those of `only`, but for `failed`. Returned is what may be served later.
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
            // The mount may stay for long: this is logged as an error once.
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

    /// Ends what this host uses of the pool, before its processes stop. What is in use stays, and waits for the next start of the node.
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
