//! The end of a device: it is stopped once it is not in use, and removed once it is not served. Also removes left-over devices.

use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::control::{ControlRequest, Role};
use archipelago_protocol::{AttachmentId, Error, ErrorCode};
use archipelago_ublk::control::DeviceState;
use archipelago_ublk::{Control, Device, DeviceMark};

use super::device::{OwnDevice, identity, opened};
use crate::daemon::block::calls::blocking;
use crate::daemon::block::claim::{claim, write_back};
use crate::daemon::pool::Pool;

/// Longest time in which a device may be written back and stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest time in which its server may close a device that is removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Removes the devices of the node at `layout` that are not in `attached`. Without ublk there are none.
pub(crate) async fn remove_left_over(layout: &Layout, attached: Vec<u32>) {
    let numbers: Vec<u32> = Control::numbers()
        .into_iter()
        .filter(|number| !attached.contains(number))
        .collect();
    if numbers.is_empty() {
        return;
    }
    let ours = DeviceMark::new(&identity(layout), 0);
    let removed = blocking(STOP_TIMEOUT, move |goes_on| {
        let control = Control::open()?;
        for number in numbers {
            if let Err(error) = remove_unused(&control, number, ours, goes_on) {
                tracing::warn!("/dev/ublkb{number}, which no attachment names, stays: {error}");
            }
        }
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!("left-over ublk devices: {error}");
    }
}

/// Removes the device `number`, if it belongs to the same node as `ours` and is not in use.
fn remove_unused(
    control: &Control,
    number: u32,
    ours: DeviceMark,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let device = control.device(number);
    let state = match device.look()? {
        Some((state, mark)) if mark.is_of_node(ours) => state,
        _ => return Ok(()),
    };
    let claimed = match state {
        DeviceState::Dead => None,
        DeviceState::Served(_) | DeviceState::Waits => Some(claim(&Device::path(number))?),
    };
    tracing::warn!("/dev/ublkb{number} is a left-over of this node and is removed");
    device.stop()?;
    // The kernel does not remove a device that is open.
    drop(claimed);
    device.remove(goes_on)
}

impl OwnDevice {
    /// Stops the device, so that its endpoint can be detached; refused while it is in use. Waits for requests that wait for a server,
    /// unless the node does not have the pool any more (`is_orphan`).
    pub(crate) async fn stop(self, is_orphan: bool) -> Result<(), Error> {
        blocking(STOP_TIMEOUT, move |goes_on| {
            let Some(control) = opened()? else {
                return Ok(());
            };
            let number = self.number();
            let device = control.device(number);
            let is_served = match self.look(&control)? {
                Some(DeviceState::Served(_)) => true,
                Some(DeviceState::Waits) if is_orphan => false,
                Some(DeviceState::Waits) => {
                    let message = format!(
                        "/dev/ublkb{number} is not served at the moment, and may hold unwritten data"
                    );
                    return Err(Error::new(ErrorCode::Unavailable, message));
                }
                Some(DeviceState::Dead) | None => return Ok(()),
            };
            let path = Device::path(number);
            let claimed = claim(&path)?;
            // A stopped device cannot be written back.
            if is_served {
                write_back(&claimed, &path)?;
            }
            if !goes_on() {
                return Ok(());
            }
            device.stop()
        })
        .await
    }

    /// Removes the device, which has been stopped and is not served any more.
    pub(crate) async fn remove(self) {
        let removed = blocking(REMOVE_TIMEOUT, move |goes_on| match opened()? {
            Some(control) if self.look(&control)?.is_some() => {
                control.device(self.number()).remove(goes_on)
            }
            Some(_) | None => Ok(()),
        });
        if let Err(error) = removed.await {
            tracing::warn!("removing /dev/ublkb{}: {error}", self.number());
        }
    }
}

impl Pool {
    /// Removes `own`, which could not be served.
    pub(crate) async fn abandon_device(&self, attachment: AttachmentId, own: OwnDevice) {
        let stopped = blocking(STOP_TIMEOUT, move |_goes_on| match opened()? {
            Some(control) if own.look(&control)?.is_some() => control.device(own.number()).stop(),
            Some(_) | None => Ok(()),
        });
        if let Err(error) = stopped.await {
            tracing::debug!("stopping /dev/ublkb{}: {error}", own.number());
        }
        let detach = ControlRequest::Detach {
            attachment,
            force: true,
        };
        if let Err(error) = self.tell(Role::Endpoint, &detach).await
            && error.code != ErrorCode::NotFound
        {
            tracing::warn!("taking back /dev/ublkb{}: {error}", own.number());
        }
        own.remove().await;
    }
}
