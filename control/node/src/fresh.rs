//! Randomness and wall time: the two things of the control plane that no request carries.

use std::fs::File;
use std::io::Read;

use archipelago_protocol::{Error, ErrorCode, Lineage};
use nix::time::{ClockId, clock_gettime};

/// A lineage that nobody has: 128 random bits of the kernel's.
///
/// # Errors
/// [`ErrorCode::Io`] if the kernel gives none.
pub(crate) fn fresh_lineage() -> Result<Lineage, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::new(ErrorCode::Io, format!("/dev/urandom: {error}")))?;
    match u128::from_le_bytes(bytes) {
        // 0 is the catalogue's. Never seen, but never wrong either.
        0 => fresh_lineage(),
        number => Ok(Lineage(number)),
    }
}

/// Wall time for people: when something was made.
pub(crate) fn seconds_since_1970() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}
