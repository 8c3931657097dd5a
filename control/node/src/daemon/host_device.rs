//! Block devices of this host whose requests a data process answers: one of the kernel's drivers, and what is done with it.

use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, Lineage};

use super::pool::Pool;
use super::{nbd, ublk};

/// Such a device of this node.
#[derive(Debug, Clone)]
pub(crate) enum HostDevice {
    Ublk(ublk::OwnDevice),
    Nbd(nbd::OwnDevice),
}

impl HostDevice {
    /// Refuses what the kernel could not show.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] with what to do.
    pub(crate) async fn check_resizes(&self) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => (*own).check_resizes().await,
            HostDevice::Nbd(_) => Ok(()),
        }
    }

    /// Sets the size of the device, if it exists, to that of its volume, which its endpoint has already.
    ///
    /// # Errors
    /// The kernel's error; the volume has its new size nevertheless.
    pub(crate) async fn resize(self, size: u64) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => own.resize(size).await,
            HostDevice::Nbd(own) => own.resize(size).await,
        }
    }

    /// Stops it, so that its endpoint can be detached. Unless the node has its pool no more (`is_orphan`), what waits for a server is
    /// waited for.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] while anybody uses it.
    pub(crate) async fn stop(self, is_orphan: bool) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => own.stop(is_orphan).await,
            HostDevice::Nbd(own) => own.stop(is_orphan).await,
        }
    }

    /// Whether its endpoint has no client any more that could be in use, once it is stopped.
    pub(crate) fn ends_with_stop(&self) -> bool {
        matches!(self, HostDevice::Nbd(_))
    }

    /// Removes what is left of it, which is stopped and which no process serves any more.
    pub(crate) async fn remove(self) {
        match self {
            HostDevice::Ublk(own) => own.remove().await,
            // It went when it was disconnected.
            HostDevice::Nbd(_) => {}
        }
    }
}

impl Pool {
    /// The device of the volume `lineage` that `endpoint` is, if it is one.
    pub(crate) fn host_device(
        &self,
        lineage: Lineage,
        endpoint: &EndpointSpec,
    ) -> Option<HostDevice> {
        match endpoint {
            EndpointSpec::Ublk { device, .. } => {
                Some(HostDevice::Ublk(self.own_device(lineage, *device)))
            }
            EndpointSpec::NbdDevice { device, .. } => {
                Some(HostDevice::Nbd(self.own_nbd_device(lineage, *device)))
            }
            _ => None,
        }
    }

    /// Takes back the attachment `id` of the volume `lineage` at `endpoint`, which was not noted.
    pub(crate) async fn abandon(
        &self,
        id: AttachmentId,
        lineage: Lineage,
        endpoint: &EndpointSpec,
    ) {
        match self.host_device(lineage, endpoint) {
            Some(HostDevice::Ublk(own)) => return self.abandon_device(id, own).await,
            Some(HostDevice::Nbd(own)) => {
                if let Err(error) = own.abandon().await {
                    tracing::warn!("taking back {}: {error}", endpoint.path().display());
                }
            }
            None => {}
        }
        let detach = ControlRequest::Detach {
            attachment: id,
            force: true,
        };
        if let Err(error) = self.tell(Role::Endpoint, &detach).await
            && error.code != ErrorCode::NotFound
        {
            tracing::warn!("taking back {}: {error}", endpoint.path().display());
        }
    }

    /// Disconnects those devices of the pool that the kernel's NBD client serves, before its processes stop. What is in use stays, and
    /// waits for the next start of the node.
    pub(crate) async fn end_nbd_devices(&self) -> Vec<String> {
        let devices: Vec<_> = {
            let attachments = self.attachments();
            let of_pool = attachments.of_pool(&self.name);
            let is_nbd =
                |endpoint: &EndpointSpec| matches!(endpoint, EndpointSpec::NbdDevice { .. });
            let devices = of_pool.filter(|one| is_nbd(&one.endpoint));
            devices.cloned().collect()
        };
        let ends = devices.iter().map(|one| async {
            match self.host_device(one.lineage, &one.endpoint) {
                Some(device) => device.stop(false).await,
                None => Ok(()),
            }
        });
        let ends = futures_util::future::join_all(ends).await;
        super::local::left_in_use(devices.iter().zip(ends))
    }
}
