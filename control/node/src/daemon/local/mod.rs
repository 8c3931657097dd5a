//! Attachments that this host itself uses: a volume as a file, and as a block device.
//!
//! They are no endpoints of a data process: a file is served by a process of its own (`archipelago-fuse`), which opens the volume over a
//! segment channel as any program does, and the block device is the kernel's.
//!
//! Invariants
//! - Made from below: file, then device. Ended from above, so that what a device has to write still reaches its file.
//! - Made and ended outside [`Pool::lock_changes`]: the kernel opens the file meanwhile, and that open is a change of the pool.
//! - What is noted as attached and is not whole is ended, as far as it is there, and made anew: after a start of the node, after the death
//!   of a process, and by an attach that asks for the same again. A detach ends what is there, whole or not.

mod file;
mod loop_device;
mod means;
mod mounts;
mod tool;

use archipelago_api::types::{Attachment, AttachmentState};
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode};

use self::file::VolumeFile;
use self::loop_device::LoopDevice;
use super::pool::Pool;

/// Whether `endpoint` is one of this host itself.
pub(crate) fn is_local(endpoint: &EndpointSpec) -> bool {
    matches!(
        endpoint,
        EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. }
    )
}

/// How `attachment` is now.
pub(crate) async fn state(attachment: &Attachment) -> AttachmentState {
    match &attachment.endpoint {
        EndpointSpec::Fuse { file } if VolumeFile::new(file).is_served().await => {
            AttachmentState::Served
        }
        EndpointSpec::Loop { file, device } => {
            let Some(node) = LoopDevice::new(device, file).node() else {
                return AttachmentState::NotServed;
            };
            match VolumeFile::new(file).is_served().await {
                false => AttachmentState::NotServed,
                true if loop_device::is_claimed(&node) => AttachmentState::Connected,
                true => AttachmentState::Served,
            }
        }
        _ => AttachmentState::NotServed,
    }
}

/// What a local attachment has to do with before it is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Served {
    /// What is whole stays.
    IfNeeded,
    /// The process behind it has died: open files are dead, whatever they look like.
    Anew,
}

impl Pool {
    /// Makes what `attachment` says, or what is missing of it.
    pub(crate) async fn serve_local(
        &self,
        attachment: &Attachment,
        served: Served,
    ) -> Result<(), Error> {
        let _one_at_a_time = self.context.local.lock().await;
        let layout = &self.context.layout;
        match &attachment.endpoint {
            EndpointSpec::Fuse { file } => {
                VolumeFile::new(file)
                    .serve(layout, &attachment.name, attachment.read_only)
                    .await
            }
            EndpointSpec::Loop { file, device } => {
                let device = LoopDevice::new(device, file);
                let file_is_served = VolumeFile::new(file).is_served().await;
                if served == Served::IfNeeded && device.node().is_some() && file_is_served {
                    return Ok(());
                }
                device.end().await?;
                VolumeFile::new(file)
                    .serve(layout, &attachment.name, attachment.read_only)
                    .await?;
                device.make(attachment.read_only).await
            }
            _ => Ok(()),
        }
    }

    /// Whether anything of the pool is used by this host itself.
    pub(crate) fn has_local(&self) -> bool {
        let attachments = self.attachments();
        let mut of_pool = attachments.of_pool(&self.name);
        of_pool.any(|one| is_local(&one.endpoint))
    }

    /// Ends what there is of `attachment`.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if a program uses it.
    pub(crate) async fn end_local(&self, attachment: &Attachment) -> Result<(), Error> {
        let _one_at_a_time = self.context.local.lock().await;
        match &attachment.endpoint {
            EndpointSpec::Fuse { file } => VolumeFile::new(file).end().await,
            EndpointSpec::Loop { file, device } => {
                LoopDevice::new(device, file).end().await?;
                VolumeFile::new(file).end().await
            }
            _ => Ok(()),
        }
    }

    /// Ends what there is of an attachment of this host itself, and forgets it.
    pub(crate) async fn forget_local(&self, attachment: &Attachment) -> Result<(), Error> {
        self.end_local(attachment).await?;
        self.attachments().remove(attachment.id)
    }

    /// Makes what this host itself uses anew, or those of `only`, but for `failed`: with the endpoint that they used, their open files
    /// died. Returned is what may be served later.
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
            if let Err(error) = self.serve_local(&attachment, Served::Anew).await {
                let name = &attachment.name;
                // What is mounted stays so for as long as people like: said once.
                match only {
                    None => tracing::error!("`{name}` is attached but cannot be served: {error}"),
                    Some(_) => tracing::debug!("`{name}` still cannot be served: {error}"),
                }
                left.push(attachment.id);
            }
        }
        left
    }

    /// Ends what this host uses of the pool, before its processes stop. What is in use stays, and fails from then on.
    pub(crate) async fn end_all_local(&self) -> Vec<String> {
        let of_pool = self.attachments().of_pool(&self.name).cloned().collect();
        let local: Vec<Attachment> = of_pool;
        let mut left = Vec::new();
        for attachment in local.iter().filter(|one| is_local(&one.endpoint)) {
            match self.end_local(attachment).await {
                Ok(()) => {}
                Err(error) if error.code == ErrorCode::InUse => left.push(format!(
                    "`{}` was in use at {}, where I/O fails now",
                    attachment.name,
                    attachment.endpoint.path().display()
                )),
                Err(error) => tracing::warn!("ending `{}`: {error}", attachment.name),
            }
        }
        left
    }
}
