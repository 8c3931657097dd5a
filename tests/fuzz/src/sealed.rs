//! Repairs what guards a structure, so that mutated fields reach the code behind its checksum.
//!
//! Written from `docs/map-format.md`, not with the code under test.

/// Bytes of the envelope.
pub(crate) const ENVELOPE_LEN: usize = 48;

/// `bytes` as a structure of kind `magic`: version, length, features and checksum are right, everything else is as it was.
pub(crate) fn sealed(magic: [u8; 8], bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if sealed.len() < ENVELOPE_LEN {
        sealed.resize(ENVELOPE_LEN, 0);
    }
    let len = u32::try_from(sealed.len()).expect("inputs are small");
    sealed[..8].copy_from_slice(&magic);
    sealed[8..12].copy_from_slice(&3_u32.to_le_bytes());
    sealed[12..16].copy_from_slice(&len.to_le_bytes());
    // No incompatible features; the reserved field.
    sealed[20..24].fill(0);
    sealed[28..32].fill(0);
    reseal(&mut sealed);
    sealed
}

/// Puts the right checksum into the structure that fills `bytes`.
pub(crate) fn reseal(bytes: &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(16);
    let crc = crc32c::crc32c_append(crc32c::crc32c(head), &rest[4..]);
    rest[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The structure at `at` of `bytes`, by the length that it states; `None`: there is none.
pub(crate) fn structure_at(bytes: &mut [u8], at: usize) -> Option<&mut [u8]> {
    let found = bytes.get_mut(at..)?;
    let envelope = found.get(..ENVELOPE_LEN)?;
    let len = u32::from_le_bytes(envelope[12..16].try_into().ok()?) as usize;
    (envelope.starts_with(b"ARCH") && len >= ENVELOPE_LEN)
        .then(|| found.get_mut(..len))
        .flatten()
}

/// The lineage in an envelope.
pub(crate) fn lineage_of(bytes: &[u8]) -> archipelago_protocol::Lineage {
    let mut input = crate::input::Input::new(bytes.get(32..).unwrap_or_default());
    archipelago_protocol::Lineage::from_words(input.u64(), input.u64())
}
