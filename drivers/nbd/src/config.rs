//! How a volume is attached, and the limits of its clients.

use std::path::PathBuf;
use std::time::Duration;

use archipelago_nbd_protocol::offer::NAME_MAX;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode, ServedVolume};

/// Connections of one export at a time: `nbdcopy` opens 4, the kernel's client as many as its user sets.
pub const CONNECTIONS_MAX: usize = 16;
/// Between the connection and the transmission: a slower client is disconnected.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Connections in quick succession that do not wait.
pub(crate) const CONNECTS: u32 = 64;
/// The wait of each further one: a transmission costs the pool the memory of its buffers, and the first one an open.
pub(crate) const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// How a volume is attached.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// The settings of every kind of endpoint.
    pub volume: ServedVolume,
    /// Path of the socket; a stale socket there is replaced.
    pub socket: PathBuf,
    /// Mode bits of the socket; [`AttachConfig::SOCKET_MODE`] unless a group shall have access.
    pub socket_mode: u32,
    /// Name of the export, which is also the default export.
    pub export: String,
    /// A client whose handshake takes longer is disconnected; [`HANDSHAKE_MAX`] outside of tests.
    pub handshake_max: Duration,
}

impl AttachConfig {
    /// Access for the owner alone.
    pub const SOCKET_MODE: u32 = 0o600;

    /// Checks the ranges.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] naming the value and its range.
    pub fn check(&self) -> Result<(), Error> {
        let refused = |text: String| Err(Error::new(ErrorCode::Invalid, text));
        if !self.volume.size.is_multiple_of(SECTOR_SIZE) {
            return refused(format!(
                "size {} is not a multiple of 512",
                self.volume.size
            ));
        }
        let len = self.export.len();
        if len > NAME_MAX {
            return refused(format!(
                "a name of {len} bytes is longer than {NAME_MAX}, the longest of an export"
            ));
        }
        if self.socket_mode & !0o777 != 0 {
            return refused(format!(
                "mode bits {:#o} are not in 0..=0o777",
                self.socket_mode
            ));
        }
        Ok(())
    }
}
