//! Devices: numbers, which node and volume each is of, and what is asked of one.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::{EndpointSpec, Error, ErrorCode, Lineage};
use archipelago_ublk::control::DeviceState;
use archipelago_ublk::{Control, Device, DeviceMark};

use crate::daemon::block::calls::blocking;

/// How long a question to the kernel may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A number that no device and no attachment has.
pub(crate) fn free_number(attached: impl Iterator<Item = u32>) -> u32 {
    let mut taken = Control::numbers();
    taken.extend(attached);
    // One of so many is free.
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

/// Whether this node can have devices at all.
///
/// # Errors
/// Why not, with what to use in their place.
pub(crate) async fn check() -> Result<(), Error> {
    blocking(CALL_TIMEOUT, |_goes_on| Control::open().map(drop)).await
}

/// The control device; `None`: the kernel has no devices any more, so there is nothing to stop.
pub(super) fn opened() -> Result<Option<Control>, Error> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(error) if error.code == ErrorCode::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// A device that this node has made, or is about to make.
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

    /// Refuses to resize what it shows, where the kernel could not show it.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] with what to do.
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

    /// What tells it from the devices of others.
    pub(super) fn mark(self) -> DeviceMark {
        self.mark
    }

    /// How it is; `None`: there is none, or the number is another server's by now.
    pub(super) fn look(self, control: &Control) -> Result<Option<DeviceState>, Error> {
        let found = control.device(self.number).look()?;
        Ok(found.and_then(|(state, mark)| (mark == self.mark).then_some(state)))
    }

    /// Gives it, if it is there, the size of its volume.
    pub(crate) async fn resize(self, size: u64) -> Result<(), Error> {
        blocking(CALL_TIMEOUT, move |_goes_on| {
            let control = Control::open()?;
            match self.look(&control)? {
                Some(DeviceState::Served(_) | DeviceState::Waits) => {
                    control.device(self.number).resize(size)
                }
                // It is made anew, with the size that the volume has then.
                Some(DeviceState::Dead) | None => Ok(()),
            }
        })
        .await
    }
}

/// What tells the node at `layout` from others of this kernel: also one in another container, with the same path.
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
