//! Sizes as people write and read them: bytes, or a number with a unit.
//!
//! `K`, `M`, `G`, `T`, `P` and `KiB` to `PiB` are powers of 1024, `KB` to `PB` powers of 1000; upper or lower case.

use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Error, ErrorCode, ObjectSize};

/// Suffixes and their exponents, smallest first.
const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

fn bytes(text: &str) -> Result<u64, Error> {
    let refused = || {
        Error::new(
            ErrorCode::Invalid,
            format!(
                "`{text}` is not a size: bytes, or a number with K M G T P or KiB..PiB (powers of 1024) or KB..PB (of 1000)"
            ),
        )
    };
    let unit_at = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(unit_at);
    let number: u64 = digits.parse().map_err(|_not_in_range| refused())?;
    let factor = if unit.is_empty() {
        1
    } else {
        factor(&unit.to_ascii_uppercase()).ok_or_else(refused)?
    };
    number.checked_mul(factor).ok_or_else(refused)
}

/// The number of bytes that a unit, in upper case, stands for.
fn factor(unit: &str) -> Option<u64> {
    let mut characters = unit.chars();
    let first = characters.next()?;
    let (_, shift) = UNITS.iter().find(|(letter, _)| *letter == first)?;
    match characters.as_str() {
        "" | "IB" => Some(1 << shift),
        // 10 bits in a binary unit correspond to three digits in a decimal one.
        "B" => Some(1000_u64.pow(shift / 10)),
        _ => None,
    }
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
    fn sizes_are_bytes_or_numbers_with_a_unit() {
        let cases = [
            ("512", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("1G", 1 << 30),
            ("10T", 10 << 40),
            ("1024T", 1 << 50),
            ("1P", 1 << 50),
            ("1PiB", 1 << 50),
            ("10GiB", 10 << 30),
            ("10gib", 10 << 30),
            ("4KiB", 4096),
            ("10GB", 10_000_000_000),
            ("512KB", 512_000),
            ("1TB", 1_000_000_000_000),
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
            "1B",
            "1iB",
            "1GI",
            "1GBB",
            "1E",
            "2P",
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
            (1 << 50, "1P"),
            (u64::MAX, "16383.9P"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(human(bytes), expected);
        }
    }
}
