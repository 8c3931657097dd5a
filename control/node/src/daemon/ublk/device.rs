//! ublk devices: their numbers, the node and volume of each, and the operations on them.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode, Lineage};
use archipelago_ublk::control::DeviceState;
use archipelago_ublk::{Control, Device, DeviceMark};

use crate::daemon::block::calls::blocking;

/// Timeout of a call to the kernel.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A number that no device and no attachment has.
pub(crate) fn free_number(attached: impl Iterator<Item = u32>) -> u32 {
    let mut taken = Control::numbers();
    taken.extend(attached);
    // There are more numbers than devices and attachments, so one is free.
    let count = u32::try_from(taken.len()).unwrap_or(u32::MAX - 1);
    (0..=count)
        .find(|number| !taken.contains(number))
        .unwrap_or(u32::MAX)
}

/// The endpoint of the device `number`.
pub(crate) fn endpoint(number: u32) -> EndpointSpec {
    EndpointSpec::Ublk {
        device: number,
        path: Device::path(number),
    }
}

/// Whether this node can have ublk devices.
///
/// # Errors
/// The reason, and what to use instead.
pub(crate) async fn check() -> Result<(), Error> {
    blocking(CALL_TIMEOUT, |_goes_on| Control::open().map(drop)).await
}

/// The control device; `None`: the kernel does not support such devices any more, so there is nothing to stop.
pub(super) fn opened() -> Result<Option<Control>, Error> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(error) if error.code == ErrorCode::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// A device that this node has created, or will create.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnDevice {
    number: u32,
    mark: DeviceMark,
}

impl OwnDevice {
    /// The device `number` of the volume `lineage` of the node at `layout`.
    pub(crate) fn new(layout: &Layout, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice {
            number,
            mark: DeviceMark::new(&identity(layout), lineage.0),
        }
    }

    /// Refuses a resize that the kernel could not show.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] with the remedy.
    pub(crate) async fn check_resizes(self) -> Result<(), Error> {
        blocking(CALL_TIMEOUT, move |_goes_on| {
            if Control::open()?.resizes() {
                return Ok(());
            }
            let number = self.number;
            let message = format!(
                "this kernel cannot change the size of /dev/ublkb{number} while it is attached: that takes Linux 6.16"
            );
            Err(Error::new(ErrorCode::Unsupported, message)
                .with_hint("detach the volume, resize it, and attach it again"))
        })
        .await
    }

    /// Its number: that of `/dev/ublkbN`.
    pub(super) fn number(self) -> u32 {
        self.number
    }

    /// The mark by which the node recognizes the device.
    pub(super) fn mark(self) -> DeviceMark {
        self.mark
    }

    /// Its state; `None` if it does not exist, or if another server uses the number by now.
    pub(super) fn look(self, control: &Control) -> Result<Option<DeviceState>, Error> {
        let found = control.device(self.number).look()?;
        Ok(found.and_then(|(state, mark)| (mark == self.mark).then_some(state)))
    }

    /// Sets the size of the device, if it exists, to that of its volume.
    pub(crate) async fn resize(self, size: u64) -> Result<(), Error> {
        blocking(CALL_TIMEOUT, move |_goes_on| {
            let control = Control::open()?;
            match self.look(&control)? {
                Some(DeviceState::Served(_) | DeviceState::Waits) => {
                    control.device(self.number).resize(size)
                }
                // It will be created with the size that the volume has then.
                Some(DeviceState::Dead) | None => Ok(()),
            }
        })
        .await
    }
}

/// Identifies the node at `layout` among all nodes on this kernel, also those in other containers with the same path.
pub(super) fn identity(layout: &Layout) -> Vec<u8> {
    let mut identity = layout.run().as_os_str().as_encoded_bytes().to_vec();
    if let Ok(found) = std::fs::metadata(layout.state()) {
        identity.extend(found.dev().to_le_bytes());
        identity.extend(found.ino().to_le_bytes());
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_nobody_has_is_given() {
        assert_eq!(free_number([0, 1, 3].into_iter()), 2);
        assert_eq!(free_number([1, 2].into_iter()), 0);
        assert_eq!(free_number(std::iter::empty()), 0);
    }
}
