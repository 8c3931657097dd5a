//! Randomness and wall time: the only two inputs of the control plane that are not in a request.

use std::fs::File;
use std::io::Read;

use archipelago_protocol::{Error, ErrorCode, Lineage};
use nix::time::{ClockId, clock_gettime};

/// A new lineage: 128 random bits from the kernel.
///
/// # Errors
/// [`ErrorCode::Io`] if the kernel does not return any.
pub(crate) fn fresh_lineage() -> Result<Lineage, Error> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::new(ErrorCode::Io, format!("/dev/urandom: {error}")))?;
    match u128::from_le_bytes(bytes) {
        // 0 is the lineage of the catalogue. This practically never happens.
        0 => fresh_lineage(),
        number => Ok(Lineage(number)),
    }
}

/// Wall time for people: the time at which something was created.
pub(crate) fn seconds_since_1970() -> u64 {
    clock_gettime(ClockId::CLOCK_REALTIME)
        .ok()
        .and_then(|time| u64::try_from(time.tv_sec()).ok())
        .unwrap_or(0)
}
