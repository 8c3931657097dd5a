//! What an export offers, and how much a client may ask for.

use std::path::PathBuf;
use std::time::Duration;

use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode, ServedVolume};

use crate::wire::export_flag;

/// Connections of one export at a time: `nbdcopy` opens 4, the kernel's client as many as it is told to.
pub const CONNECTIONS_MAX: usize = 16;
/// Smallest request, and what offsets and lengths are multiples of: what the volume peer takes.
pub const BLOCK_MIN: u32 = 512;
/// The best smallest request: a block of the volume.
pub const BLOCK_PREFERRED: u32 = 4096;
/// Longest read or write: what the specification asks of servers.
pub const BLOCK_MAX: u32 = 32 << 20;
/// Longest name of an export, as the specification has it.
pub const NAME_MAX: usize = 4096;
/// Between the connection and the transmission: a client that takes longer is disconnected.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// Options of one handshake at most: QEMU sends 5.
pub const OPTIONS_MAX: u32 = 64;
/// Connections in quick succession that need not wait.
pub(crate) const CONNECTS: u32 = 64;
/// What each further one waits for: a transmission costs the pool the memory of its buffers, the first one an open.
pub(crate) const CONNECT_INTERVAL: Duration = Duration::from_millis(50);

/// How a volume is attached.
#[derive(Debug, Clone)]
pub struct AttachConfig {
    /// What every kind of endpoint has.
    pub volume: ServedVolume,
    /// Where the socket is made; a stale socket there is replaced.
    pub socket: PathBuf,
    /// Mode bits of the socket; [`AttachConfig::SOCKET_MODE`] unless a group shall get in.
    pub socket_mode: u32,
    /// Name of the export; the empty name means it as well.
    pub export: String,
    /// A client whose handshake takes longer is disconnected; [`HANDSHAKE_MAX`] outside of tests.
    pub handshake_max: Duration,
}

impl AttachConfig {
    /// The owner alone.
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

    /// The transmission flags of the export.
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        // All connections share one handle of the volume, whose flush covers what was completed before it, by whomever.
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::CAN_MULTI_CONN
            | export_flag::SEND_CACHE;
        flags |= match self.volume.read_only {
            true => export_flag::READ_ONLY,
            false => {
                export_flag::SEND_TRIM
                    | export_flag::SEND_WRITE_ZEROES
                    | export_flag::SEND_FAST_ZERO
            }
        };
        if structured {
            flags |= export_flag::SEND_DF;
        }
        flags
    }
}
