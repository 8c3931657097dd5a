//! Block devices of this host whose requests a data process answers, through one of several drivers of the kernel.

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
    /// Refuses a resize that the kernel could not show.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] with the remedy.
    pub(crate) async fn check_resizes(&self) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => (*own).check_resizes().await,
            HostDevice::Nbd(_) => Ok(()),
        }
    }

    /// Sets the size of the device, if it exists, to that of its volume. The endpoint has the new size already.
    ///
    /// # Errors
    /// The kernel's error; the volume has its new size nevertheless.
    pub(crate) async fn resize(self, size: u64) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => own.resize(size).await,
            HostDevice::Nbd(own) => own.resize(size).await,
        }
    }

    /// Stops the device, so that its endpoint can be detached. Waits for requests that wait for a server, unless the node does not have the
    /// pool any more (`is_orphan`).
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] while the device is in use.
    pub(crate) async fn stop(self, is_orphan: bool) -> Result<(), Error> {
        match self {
            HostDevice::Ublk(own) => own.stop(is_orphan).await,
            HostDevice::Nbd(own) => own.stop(is_orphan).await,
        }
    }

    /// Whether stopping the device disconnects the last client of its endpoint.
    pub(crate) fn ends_with_stop(&self) -> bool {
        matches!(self, HostDevice::Nbd(_))
    }

    /// Removes the rest of a device that has been stopped and is not served any more.
    pub(crate) async fn remove(self) {
        match self {
            HostDevice::Ublk(own) => own.remove().await,
            // It was removed when it was disconnected.
            HostDevice::Nbd(_) => {}
        }
    }
}

impl Pool {
    /// The device of the volume `lineage`, if `endpoint` is one.
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

    /// Undoes the attachment `id` of the volume `lineage` at `endpoint`, which could not be recorded.
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

    /// Disconnects the devices of the pool that the kernel's NBD client serves, before the pool's processes stop. Devices in use stay, and
    /// wait for the next start of the node.
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
