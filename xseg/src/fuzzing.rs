//! The private decoders, for fuzzing only: feature `fuzzing`, whose API may change at any time.

/// The message in `bytes`, encoded again.
#[must_use]
pub fn message(bytes: &[u8]) -> Option<[u8; 64]> {
    let message = crate::shared::Message::decode(bytes).ok()?;
    Some(message.encode())
}
