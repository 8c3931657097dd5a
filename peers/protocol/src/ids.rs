//! Identities and sizes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

/// Bytes of a block: the unit of copy-on-write and of the map.
pub const BLOCK_SIZE: u64 = 4096;
/// Bytes of a sector: the unit in which a guest addresses a volume.
pub const SECTOR_SIZE: u64 = 512;
/// Largest volume: 1 PiB.
pub const VOLUME_SIZE_MAX: u64 = 1 << 50;
/// Longest name of a volume, snapshot or image, in bytes.
pub const NAME_LEN_MAX: usize = 255;

/// 128-bit id of a volume, snapshot or image. Random, never reused. 0 is the catalogue's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lineage(pub u128);

impl Lineage {
    /// Owner of the objects that belong to no volume: the pool's catalogue.
    pub const CATALOGUE: Lineage = Lineage(0);

    /// High and low word, as they stand in ring entries.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the halves of a 128-bit number"
    )]
    pub fn to_words(self) -> [u64; 2] {
        [(self.0 >> 64) as u64, self.0 as u64]
    }

    /// The lineage whose words are `high` and `low`.
    #[must_use]
    pub fn from_words(high: u64, low: u64) -> Self {
        Lineage(u128::from(high) << 64 | u128::from(low))
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lineage({self})")
    }
}

impl FromStr for Lineage {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || {
            Error::new(
                ErrorCode::Invalid,
                format!("`{text}` is not a lineage: 32 hexadecimal digits"),
            )
        };
        // A sign must not pass as a digit.
        if text.len() != 32 || text.starts_with('+') {
            return Err(refused());
        }
        u128::from_str_radix(text, 16)
            .map(Lineage)
            .map_err(|_not_hex| refused())
    }
}

impl Serialize for Lineage {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lineage {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Epoch of a block within its lineage. Raised by every snapshot, takeover and open after an unclean end.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Epoch(pub u64);

/// Number of a session: raised each time a volume is opened for writing.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
pub struct Generation(pub u64);

/// Size of a volume's objects: a power of two from 64 KiB to 32 MiB, fixed per volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ObjectSize {
    log2: u8,
}

impl ObjectSize {
    /// 4 MiB.
    pub const DEFAULT: ObjectSize = ObjectSize { log2: 22 };
    /// 64 KiB.
    pub const MIN: ObjectSize = ObjectSize { log2: 16 };
    /// 32 MiB.
    pub const MAX: ObjectSize = ObjectSize { log2: 25 };

    /// The size of 2^`log2` bytes, if that is a legal one.
    #[must_use]
    pub fn from_log2(log2: u8) -> Option<Self> {
        (Self::MIN.log2..=Self::MAX.log2)
            .contains(&log2)
            .then_some(ObjectSize { log2 })
    }

    /// Exponent of the size.
    #[must_use]
    pub fn log2(self) -> u8 {
        self.log2
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        1 << self.log2
    }

    /// Blocks in an object: 16 to 8192.
    #[must_use]
    pub fn blocks(self) -> u64 {
        self.bytes() / BLOCK_SIZE
    }
}

impl TryFrom<u64> for ObjectSize {
    type Error = Error;

    fn try_from(bytes: u64) -> Result<Self, Error> {
        if bytes.is_power_of_two() && (Self::MIN.bytes()..=Self::MAX.bytes()).contains(&bytes) {
            let log2 = u8::try_from(bytes.trailing_zeros()).expect("at most 63");
            return Ok(ObjectSize { log2 });
        }
        Err(Error::new(
            ErrorCode::Invalid,
            format!(
                "object size {bytes} is not a power of two from {} to {}",
                Self::MIN.bytes(),
                Self::MAX.bytes()
            ),
        ))
    }
}

impl From<ObjectSize> for u64 {
    fn from(size: ObjectSize) -> u64 {
        size.bytes()
    }
}

/// Name of a volume, snapshot or image: 1 to 255 of `A-Z a-z 0-9 . _ @ : + -`, not starting with a dot or dash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl TryFrom<String> for Name {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._@:+-".contains(&byte);
        let refused = |why: &str| {
            Err(Error::new(
                ErrorCode::Invalid,
                format!("`{text}` cannot be a name: {why}"),
            ))
        };
        if text.is_empty() || text.len() > NAME_LEN_MAX {
            return refused("it takes 1 to 255 characters");
        }
        if !text.bytes().all(legal) {
            return refused("legal characters are A-Z a-z 0-9 . _ @ : + -");
        }
        if text.starts_with(['.', '-']) {
            return refused("it must not start with a dot or a dash");
        }
        Ok(Name(text))
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Name::try_from(text.to_owned())
    }
}

/// Checks a volume's size: a multiple of 512 from 512 bytes to 1 PiB.
///
/// # Errors
/// [`ErrorCode::Invalid`] naming the value and the legal range.
pub fn check_volume_size(bytes: u64) -> Result<u64, Error> {
    if bytes == 0 || bytes > VOLUME_SIZE_MAX || !bytes.is_multiple_of(SECTOR_SIZE) {
        return Err(Error::new(
            ErrorCode::Invalid,
            format!(
                "volume size {bytes} is not a multiple of {SECTOR_SIZE} from {SECTOR_SIZE} to {VOLUME_SIZE_MAX}"
            ),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error as Refused, StrDeserializer};

    use super::*;

    #[test]
    fn names_are_judged_by_their_characters() {
        let long = "x".repeat(NAME_LEN_MAX);
        for good in ["a", "vm-1.disk_0@a:b+c", long.as_str()] {
            let name = good.parse::<Name>().unwrap();
            assert_eq!((name.as_str(), name.to_string().as_str()), (good, good));
            assert_eq!(String::from(name), good);
        }
        let too_long = "x".repeat(NAME_LEN_MAX + 1);
        for bad in ["", ".a", "-a", "a/b", "a b", "ä", too_long.as_str()] {
            assert_eq!(
                bad.parse::<Name>().unwrap_err().code,
                ErrorCode::Invalid,
                "{bad}"
            );
        }
    }

    #[test]
    fn object_sizes_are_powers_of_two_in_range() {
        for (bytes, legal) in [
            (65536, true),
            (1 << 22, true),
            (1 << 25, true),
            (0, false),
            (3 << 20, false),
            (1 << 26, false),
        ] {
            let size = ObjectSize::try_from(bytes);
            assert_eq!(size.is_ok(), legal, "{bytes}");
            if let Ok(size) = size {
                assert_eq!((size.bytes(), u64::from(size)), (bytes, bytes));
                assert_eq!(size.blocks() * 4096, bytes);
                assert_eq!(ObjectSize::from_log2(size.log2()), Some(size));
            }
        }
        for log2 in 0..=u8::MAX {
            let legal = (16..=25).contains(&log2);
            let size = ObjectSize::from_log2(log2);
            assert_eq!(size.map(ObjectSize::log2), legal.then_some(log2));
        }
    }

    #[test]
    fn a_lineage_survives_text_and_words() {
        let lineage = Lineage(0x0123_4567_89ab_cdef_0011_2233_4455_6677);
        assert_eq!(lineage.to_string().parse::<Lineage>().unwrap(), lineage);
        let [high, low] = lineage.to_words();
        assert_eq!((high, low), (0x0123_4567_89ab_cdef, 0x0011_2233_4455_6677));
        assert_eq!(Lineage::from_words(high, low), lineage);
    }

    #[test]
    fn a_lineage_is_32_digits_as_text() {
        let read = |text: &'static str| {
            let text: StrDeserializer<'_, Refused> = text.into_deserializer();
            Lineage::deserialize(text).ok()
        };
        assert_eq!(
            read("00000000000000000000000000000a0b"),
            Some(Lineage(0xa0b))
        );
        for bad in [
            "a0b",
            "0000000000000000000000000000000a0b",
            "0000000000000000000000000000000g",
            "+0000000000000000000000000000a0b",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_volume_has_whole_sectors_up_to_a_pebibyte() {
        const PEBIBYTE: u64 = 1_125_899_906_842_624;
        for (bytes, legal) in [
            (0, false),
            (511, false),
            (512, true),
            (513, false),
            (PEBIBYTE - 512, true),
            (PEBIBYTE, true),
            (PEBIBYTE + 512, false),
        ] {
            let size = check_volume_size(bytes).ok();
            assert_eq!(size, legal.then_some(bytes), "{bytes}");
        }
    }
}
