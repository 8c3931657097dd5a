//! Sizes as people write and read them: bytes, or K M G T (binary).

use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Error, ErrorCode, ObjectSize};

/// Suffixes and their exponents, smallest first.
const UNITS: [(char, u32); 4] = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];

fn bytes(text: &str) -> Result<u64, Error> {
    let refused = || {
        Error::new(
            ErrorCode::Invalid,
            format!("`{text}` is not a size: bytes, or a number with K M G T (binary)"),
        )
    };
    let (digits, shift) = match text.char_indices().last() {
        Some((end, last)) if last.is_ascii_alphabetic() => {
            let unit = UNITS
                .iter()
                .find(|(unit, _)| *unit == last.to_ascii_uppercase())
                .ok_or_else(refused)?;
            (&text[..end], unit.1)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(refused());
    }
    let number: u64 = digits.parse().map_err(|_too_large| refused())?;
    number.checked_mul(1 << shift).ok_or_else(refused)
}

/// Size of a volume: a multiple of 512, up to 1 PiB.
pub(crate) fn volume_size(text: &str) -> Result<u64, Error> {
    check_volume_size(bytes(text)?)
}

/// Size of objects: a power of two from 64K to 32M.
pub(crate) fn object_size(text: &str) -> Result<ObjectSize, Error> {
    ObjectSize::try_from(bytes(text)?)
}

/// A number of bytes for people: exact if it is whole in a unit, else with one decimal.
pub(crate) fn human(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift);
    match unit {
        None => format!("{bytes}B"),
        Some((unit, shift)) if bytes.is_multiple_of(1 << shift) => {
            format!("{}{unit}", bytes >> shift)
        }
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{}{unit}", tenths / 10, tenths % 10)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_bytes_or_binary_units() {
        let cases = [
            ("512", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("1G", 1 << 30),
            ("10T", 10 << 40),
            ("1024T", 1 << 50),
        ];
        for (text, expected) in cases {
            assert_eq!(volume_size(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "K",
            "1.5G",
            "-1",
            "+1",
            "1KB",
            "1 G",
            "513",
            "0",
            "1025T",
            "99999999999999999999",
            "16777216T",
            "ä",
        ] {
            assert_eq!(
                volume_size(text).unwrap_err().code,
                ErrorCode::Invalid,
                "{text}"
            );
        }
        assert_eq!(object_size("64K").unwrap().bytes(), 65536);
        assert!(object_size("3M").is_err());
    }

    #[test]
    fn people_read_short_numbers() {
        let cases = [
            (0, "0B"),
            (512, "512B"),
            (4096, "4K"),
            (1536, "1.5K"),
            (10 << 40, "10T"),
            (u64::MAX, "16777215.9T"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human(bytes), expected);
        }
    }
}
