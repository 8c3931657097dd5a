//! How a volume is attached to a device.

use std::os::fd::OwnedFd;

use archipelago_protocol::ServedVolume;

/// How a volume is attached.
#[derive(Debug)]
pub struct AttachConfig {
    /// The settings of every kind of endpoint.
    pub volume: ServedVolume,
    /// Number of the device.
    pub device: u32,
    /// The device's queue, `/dev/ublkcN`, made with the numbers of [`layout`](crate::layout).
    pub queue: OwnedFd,
}
