//! The bytes of a small object that is changed by compare-and-swap: version (8 bytes, little-endian), then the content, written as a whole.

use librados_sys::{Code, WriteOp};

/// Bytes of the version in front of the content.
pub(crate) const VERSION_LEN: usize = 8;

/// The bytes of a head.
pub(crate) fn encode(version: u64, content: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes()[..], content].concat()
}

/// Version and content in the bytes of a head; `None` if they are not valid.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (version, content) = bytes.split_first_chunk::<VERSION_LEN>()?;
    Some((u64::from_le_bytes(*version), content))
}

/// The operation that replaces version `expected` by `content`.
pub(crate) fn swap_op(expected: u64, content: &[u8]) -> WriteOp {
    let record = encode(expected.saturating_add(1), content);
    match expected {
        0 => WriteOp::new().create_exclusive().write_full(record),
        _ => WriteOp::new()
            .assert_exists()
            .compare(0, &expected.to_le_bytes())
            .write_full(record),
    }
}

/// Whether a swap failed because another version is stored.
pub(crate) fn is_lost(code: Code) -> bool {
    code.is_mismatch() || code == Code::EXISTS || code == Code::NOT_FOUND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_its_version_and_its_content() {
        let bytes = encode(258, b"content");
        assert_eq!(bytes[..10], [2, 1, 0, 0, 0, 0, 0, 0, b'c', b'o']);
        assert_eq!(decode(&bytes), Some((258, &b"content"[..])));
        assert_eq!(decode(&bytes[..7]), None);
    }
}
