//! How the guest says that a step is over: a block behind its file system, which the recording shows like any other.

/// Bytes of a report: a block of the pool, so that it is one write and no merge.
pub const LEN: usize = 4096;
const MAGIC: [u8; 12] = *b"STEP IS OVER";

/// The report of a step.
#[must_use]
pub fn bytes(number: u32) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..12].copy_from_slice(&MAGIC);
    bytes[12..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The step that `bytes` report, if they do.
#[must_use]
pub fn number(bytes: &[u8]) -> Option<u32> {
    let number = bytes.strip_prefix(&MAGIC)?.first_chunk()?;
    Some(u32::from_le_bytes(*number))
}
