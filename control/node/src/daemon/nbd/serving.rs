//! Serving a device: creates its endpoint, then gives the kernel a connection to it, the first or the next one.

use std::path::Path;
use std::time::Duration;

use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{AttachmentId, Error, ErrorCode, Lineage, ServedVolume};

use super::device::{DeviceState, OwnDevice, endpoint};
use crate::daemon::block::calls::{blocking, late};
use crate::daemon::pool::Pool;
use crate::daemon::pool_requests::unexpected_reply;

/// Longest wait until the connection of a dead server has ended: only then does the kernel take another connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval of these checks. Within it, the endpoint notices that the kernel did not take a connection.
const LOOK: Duration = Duration::from_millis(50);
/// The device must be seen connected so many times in a row.
const LOOKS: u32 = 2;

impl Pool {
    /// The device `number` of the volume `lineage`, of the kernel's NBD client.
    pub(crate) fn own_nbd_device(&self, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice::new(&self.context.layout, lineage, number)
    }

    /// Makes the endpoint serve `volume` at `socket`, and connects the device `number` to it.
    pub(crate) async fn serve_nbd_device(
        &self,
        attachment: AttachmentId,
        volume: &ServedVolume,
        number: u32,
        socket: &Path,
    ) -> Result<(), Error> {
        let own = self.own_nbd_device(volume.lineage, number);
        let request = ControlRequest::Attach {
            attachment,
            volume: volume.clone(),
            endpoint: endpoint(number, socket.to_owned()),
        };
        self.tell(Role::Endpoint, &request).await?;
        let connected = self.connect_device(attachment, own, socket);
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connected).await;
        connected.map_err(|_elapsed| late(CONNECT_TIMEOUT))?
    }

    async fn connect_device(
        &self,
        attachment: AttachmentId,
        own: OwnDevice,
        socket: &Path,
    ) -> Result<(), Error> {
        let connect = |how: fn(&OwnDevice, &Path) -> Result<(), Error>| {
            let (own, socket) = (own.clone(), socket.to_owned());
            blocking(CONNECT_TIMEOUT, move |_goes_on| how(&own, &socket))
        };
        match own.state() {
            DeviceState::Foreign => return Err(own.foreign()),
            DeviceState::Free => return connect(OwnDevice::connect).await,
            DeviceState::Ours => {}
        }
        // The kernel does not report whether it has taken a connection, but the endpoint does: it has a client if the kernel took it, and
        // none otherwise, since no other process has the socket.
        let mut seen = 0;
        while seen < LOOKS {
            match self.is_connected(attachment).await? {
                Some(true) => seen += 1,
                Some(false) => {
                    seen = 0;
                    connect(OwnDevice::reconnect).await?;
                }
                None => {}
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Whether the endpoint has a client at `attachment`; `None` if it does not report the attachment at the moment.
    async fn is_connected(&self, attachment: AttachmentId) -> Result<Option<bool>, Error> {
        match self.ask(Role::Endpoint, &ControlRequest::Status).await? {
            ControlReply::Status(status) => {
                let Some(served) = status.served else {
                    return Ok(None);
                };
                let mut served = served.into_iter();
                let found = served.find(|one| one.attachment == attachment);
                let found = found.ok_or_else(|| {
                    let message = "its endpoint was ended meanwhile";
                    Error::new(ErrorCode::Unavailable, message)
                })?;
                Ok(found.clients.map(|clients| clients > 0))
            }
            other => Err(unexpected_reply(&other)),
        }
    }
}
