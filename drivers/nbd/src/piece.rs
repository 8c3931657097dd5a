//! Pieces of requests: the requests to the volume, and the receiver of each completion.

use archipelago_endpoint::NotServed;
use archipelago_nbd_protocol::wire::Errno;

use archipelago_nbd_protocol::pieces::Range;

/// A part of a request, for the volume.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) request: u16,
    /// [`NONE`] for a piece without data.
    pub(crate) cell: u16,
    pub(crate) range: Range,
}

/// The receiver of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cookie {
    /// The connection's place.
    pub(crate) place: u8,
    pub(crate) request: u16,
    pub(crate) cell: u16,
}

impl Cookie {
    pub(crate) fn encode(self) -> u64 {
        u64::from(self.place) << 32 | u64::from(self.request) << 16 | u64::from(self.cell)
    }

    pub(crate) fn decode(cookie: u64) -> Cookie {
        let [_, _, _, place, r1, r0, c1, c0] = cookie.to_be_bytes();
        Cookie {
            place,
            request: u16::from_be_bytes([r1, r0]),
            cell: u16::from_be_bytes([c1, c0]),
        }
    }
}

/// The error for a client while the volume is not served.
pub(crate) fn not_served(why: NotServed) -> Errno {
    match why {
        NotServed::NoSpace => Errno::NoSpc,
        NotServed::NotOpen => Errno::Io,
    }
}
