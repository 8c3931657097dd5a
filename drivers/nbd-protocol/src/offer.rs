//! The features of an export, and its limits for clients.

use crate::wire::export_flag;

/// Smallest request, of which offsets and lengths are multiples: the limit of the volume peer.
pub const BLOCK_MIN: u32 = 512;
/// The best smallest request: a block of the volume.
pub const BLOCK_PREFERRED: u32 = 4096;
/// Longest read or write: the specification's minimum for servers.
pub const BLOCK_MAX: u32 = 32 << 20;
/// Longest piece of data of a request, which is one request to the volume.
pub const PIECE_MAX: u32 = 128 << 10;
/// Longest name of an export: the specification's limit.
pub const NAME_MAX: usize = 4096;
/// Options of one handshake at most: QEMU sends 5.
pub const OPTIONS_MAX: u32 = 64;

/// The export that is offered.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
}

impl Offer<'_> {
    /// Whether `name` selects the export where it is the only one: by its own name, or by the empty name, which is the default export.
    #[must_use]
    pub fn is_called(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// The transmission flags. All connections of an export share one handle of its volume, whose flush covers what was completed
    /// before it, by whichever connection: what `CAN_MULTI_CONN` promises.
    #[must_use]
    pub fn flags(&self, structured: bool) -> u16 {
        let mut flags = export_flag::HAS_FLAGS
            | export_flag::SEND_FLUSH
            | export_flag::SEND_FUA
            | export_flag::CAN_MULTI_CONN
            | export_flag::SEND_CACHE;
        flags |= match self.read_only {
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
