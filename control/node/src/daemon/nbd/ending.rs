//! The end of a device: it is disconnected once it is not in use. Also removes left-over devices.

use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::{Error, ErrorCode};

use super::device::{DeviceState, OwnDevice, is_of_node, numbers, path_of, prefix};
use super::kernel::Kernel;
use crate::daemon::block::calls::blocking;
use crate::daemon::block::claim::{claim, write_back};

/// Longest time in which a device may be written back and disconnected.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for left-over devices: opening a device without a connection blocks every process.
const LEFT_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Disconnects the devices of the node at `layout` that `attached` does not list, unless they are in use.
pub(crate) async fn remove_left_over(layout: &Layout, attached: Vec<u32>) {
    let prefix = prefix(layout);
    let is_left = |number: &u32| !attached.contains(number) && is_of_node(*number, &prefix);
    let left: Vec<u32> = numbers().into_iter().filter(is_left).collect();
    if left.is_empty() {
        return;
    }
    let removed = blocking(LEFT_OVER_TIMEOUT, move |_goes_on| {
        for number in left {
            if let Err(error) = remove_unused(number) {
                tracing::warn!("/dev/nbd{number}, which no attachment names, stays: {error}");
            }
        }
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!("left-over NBD devices: {error}");
    }
}

fn remove_unused(number: u32) -> Result<(), Error> {
    let _claimed = claim(&path_of(number))?;
    tracing::warn!("/dev/nbd{number} is a left-over of this node and is removed");
    let disconnected = Kernel::open()?.disconnect(number);
    disconnected.map_err(|errno| {
        let message = format!("disconnecting it: {errno}");
        Error::new(ErrorCode::Io, message)
    })
}

impl OwnDevice {
    /// Disconnects the device, so that its endpoint can be detached; refused while it is in use. Waits for requests that wait for a server,
    /// unless the node does not have the pool any more (`is_orphan`).
    pub(crate) async fn stop(self, is_orphan: bool) -> Result<(), Error> {
        blocking(STOP_TIMEOUT, move |goes_on| {
            if self.state() != DeviceState::Ours {
                return Ok(());
            }
            let path = self.path();
            let claimed = claim(&path)?;
            if !is_orphan {
                write_back(&claimed, &path)?;
            }
            if !goes_on() {
                return Ok(());
            }
            self.disconnect()
        })
        .await
    }

    /// Disconnects the device, even if it is in use.
    pub(crate) async fn abandon(self) -> Result<(), Error> {
        blocking(STOP_TIMEOUT, move |_goes_on| self.disconnect()).await
    }
}
