//! The envelope of every durable structure, and little-endian fields.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 8 | magic: what it is |
//! | 8 | 4 | format version |
//! | 12 | 4 | length in bytes, envelope and padding included |
//! | 16 | 4 | CRC32C of all other bytes of the length |
//! | 20 | 4 | incompatible features: a program that does not know one of these bits cannot read the structure |
//! | 24 | 4 | compatible features: may be ignored, see `docs/map-format.md` |
//! | 28 | 4 | 0 |
//! | 32 | 16 | lineage that wrote it (high word, low word) |
//! | 48 | | body |
//!
//! Rules
//! - The first 20 bytes keep their meaning in every version. So a structure of another version is known for what it is.
//! - Another version or an unknown incompatible feature is [`Unreadable::Unsupported`], never damage.
//! - Reserved fields and padding are 0. Whoever gives them a meaning raises the version or sets an incompatible feature, so
//!   other values are damage in what this program can read.

use std::fmt;

use archipelago_protocol::Lineage;

/// Version of all formats of the mapper. 3: feature bits, several sources of an entry, packs that roll over. 2: logs of
/// sectors with checksums of their own. 1: the first. 1 and 2 were never released.
pub(crate) const VERSION: u32 = 3;
/// Incompatible features that this program knows: none yet.
const INCOMPATIBLE_KNOWN: u32 = 0;
const VERSION_AT: usize = 8;
const LENGTH_AT: usize = VERSION_AT + 4;
/// Where the checksum stands.
pub(crate) const CRC_AT: usize = LENGTH_AT + 4;
const INCOMPATIBLE_AT: usize = CRC_AT + 4;
const COMPATIBLE_AT: usize = INCOMPATIBLE_AT + 4;
const RESERVED_AT: usize = COMPATIBLE_AT + 4;
const LINEAGE_AT: usize = RESERVED_AT + 4;
/// Bytes of the envelope.
pub(crate) const ENVELOPE_LEN: usize = LINEAGE_AT + 16;
const _: () = assert!(VERSION_AT == 8 && LENGTH_AT == 12 && CRC_AT == 16);
const _: () = assert!(INCOMPATIBLE_AT == 20 && COMPATIBLE_AT == 24 && RESERVED_AT == 28);
const _: () = assert!(LINEAGE_AT == 32 && ENVELOPE_LEN == 48);

/// What is wrong with bytes that should have been a structure of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Problem {
    /// Another magic, or too short for an envelope: never written, or something else.
    Foreign,
    /// A version that this program does not know.
    Version(u32),
    /// Incompatible features that this program does not know.
    Features(u32),
    /// A length that does not fit the bytes.
    Length(u32),
    /// The checksum does not match.
    Checksum,
    /// It belongs to another lineage.
    Lineage(Lineage),
    /// The envelope is right, a field inside is not.
    Field(&'static str),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Foreign => f.write_str("it does not begin as it must"),
            Problem::Version(found) if *found < VERSION => write!(
                f,
                "it has format version {found}, written by an older program before the first release; this program knows \
                 version {VERSION}"
            ),
            Problem::Version(found) => write!(
                f,
                "it has format version {found}, this program knows version {VERSION}"
            ),
            Problem::Features(found) => write!(
                f,
                "it uses features of format version {VERSION} that this program does not know (bits {found:#x})"
            ),
            Problem::Length(found) => write!(f, "its length {found} is impossible"),
            Problem::Checksum => f.write_str("its checksum does not match"),
            Problem::Lineage(found) => write!(f, "it belongs to lineage {found}"),
            Problem::Field(name) => write!(f, "its field `{name}` is impossible"),
        }
    }
}

/// Why something stored cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    /// It contradicts itself or its checksum.
    #[error("{0}")]
    Damaged(String),
    /// Another version of the program reads it.
    #[error("{0}")]
    Unsupported(String),
}

impl From<Problem> for Unreadable {
    fn from(problem: Problem) -> Self {
        let why = problem.to_string();
        match problem {
            Problem::Version(_) | Problem::Features(_) => Unreadable::Unsupported(why),
            Problem::Foreign
            | Problem::Length(_)
            | Problem::Checksum
            | Problem::Lineage(_)
            | Problem::Field(_) => Unreadable::Damaged(why),
        }
    }
}

impl From<String> for Unreadable {
    /// What is wrong in a structure whose envelope is right.
    fn from(why: String) -> Self {
        Unreadable::Damaged(why)
    }
}

/// Builds a structure.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// Begins a structure of kind `magic` that uses no features.
    pub(crate) fn sealed(magic: [u8; 8], lineage: Lineage) -> Self {
        Writer::sealed_with(magic, lineage, 0)
    }

    /// The same with these compatible features: those that the structure had before.
    pub(crate) fn sealed_with(magic: [u8; 8], lineage: Lineage, compatible: u32) -> Self {
        let mut writer = Writer::bare();
        writer.bytes.extend_from_slice(&magic);
        writer.at(VERSION_AT).u32(VERSION);
        writer.at(LENGTH_AT).u32(0);
        writer.at(CRC_AT).u32(0);
        writer.at(INCOMPATIBLE_AT).u32(0);
        writer.at(COMPATIBLE_AT).u32(compatible);
        writer.at(RESERVED_AT).u32(0);
        writer.at(LINEAGE_AT).lineage(lineage);
        writer
    }

    /// Begins fields without an envelope: a part of a structure.
    pub(crate) fn bare() -> Self {
        Writer { bytes: Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Itself, of which so many bytes are written: a layout has its next field at `offset`.
    pub(crate) fn at(&mut self, offset: usize) -> &mut Self {
        debug_assert_eq!(self.bytes.len(), offset, "the layout says otherwise");
        self
    }

    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn lineage(&mut self, lineage: Lineage) {
        let [high, low] = lineage.to_words();
        self.u64(high);
        self.u64(low);
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Fills up with zeros to a multiple of `unit` bytes.
    pub(crate) fn pad(&mut self, unit: usize) {
        self.bytes
            .resize(self.bytes.len().next_multiple_of(unit), 0);
    }

    /// Fills up with zeros to `len` bytes.
    pub(crate) fn pad_to(&mut self, len: usize) {
        debug_assert!(len >= self.bytes.len());
        self.bytes.resize(len, 0);
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Puts length and checksum into the envelope.
    pub(crate) fn seal(mut self) -> Vec<u8> {
        let len = u32::try_from(self.bytes.len()).expect("structures are far below 4 GiB");
        self.bytes[LENGTH_AT..CRC_AT].copy_from_slice(&len.to_le_bytes());
        let crc = checksum(&self.bytes);
        self.bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        self.bytes
    }
}

/// The checksum that a structure must carry.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_AT]), &bytes[CRC_AT + 4..])
}

/// The checksum that a sealed structure carries.
pub(crate) fn sealed_crc(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[CRC_AT..CRC_AT + 4].try_into().expect("four bytes"))
}

/// A structure whose envelope is right.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    /// What is behind the envelope.
    pub(crate) fields: Reader<'a>,
    /// Bytes of the structure.
    pub(crate) len: usize,
    /// Its compatible features.
    pub(crate) compatible: u32,
}

/// Reads fields; `None` when the bytes end before.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes in front of them.
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Reader { bytes, offset: 0 }
    }

    /// Itself, of which so many bytes are read: a layout has its next field at `offset`.
    pub(crate) fn at(&mut self, offset: usize) -> &mut Self {
        debug_assert_eq!(self.offset, offset, "the layout says otherwise");
        self
    }

    /// Checks the envelope at the beginning of `bytes`.
    pub(crate) fn open(
        magic: [u8; 8],
        lineage: Option<Lineage>,
        bytes: &'a [u8],
    ) -> Result<Opened<'a>, Problem> {
        let envelope = bytes.get(..ENVELOPE_LEN).ok_or(Problem::Foreign)?;
        let mut fields = Reader::new(envelope);
        if fields.take(8) != Some(&magic) {
            return Err(Problem::Foreign);
        }
        let mut word = || fields.u32().ok_or(Problem::Foreign);
        let (version, len, crc) = (word()?, word()?, word()?);
        let (incompatible, compatible, reserved) = (word()?, word()?, word()?);
        let whole = usize::try_from(len).map_err(|_too_large| Problem::Length(len))?;
        let structure = bytes
            .get(..whole)
            .filter(|found| found.len() >= ENVELOPE_LEN);
        let structure = structure.ok_or(Problem::Length(len))?;
        if checksum(structure) != crc {
            return Err(Problem::Checksum);
        }
        // After the checksum: a flipped bit is damage, not another version.
        if version != VERSION {
            return Err(Problem::Version(version));
        }
        let unknown = incompatible & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(Problem::Features(unknown));
        }
        if reserved != 0 {
            return Err(Problem::Field("reserved"));
        }
        let writer = fields.lineage().ok_or(Problem::Foreign)?;
        if lineage.is_some_and(|expected| expected != writer) {
            return Err(Problem::Lineage(writer));
        }
        let fields = Reader {
            bytes: &structure[ENVELOPE_LEN..],
            offset: ENVELOPE_LEN,
        };
        Ok(Opened {
            fields,
            len: whole,
            compatible,
        })
    }

    pub(crate) fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        self.offset += len;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn lineage(&mut self) -> Option<Lineage> {
        Some(Lineage::from_words(self.u64()?, self.u64()?))
    }

    /// Takes `len` reserved bytes; `None` also if one is not 0.
    pub(crate) fn zeros(&mut self, len: usize) -> Option<()> {
        let zeros = self.take(len)?.iter().all(|byte| *byte == 0);
        zeros.then_some(())
    }

    /// Takes all that is left, padding.
    ///
    /// # Errors
    /// A byte is not 0.
    pub(crate) fn padding(&mut self) -> Result<(), Problem> {
        let len = self.bytes.len();
        self.zeros(len).ok_or(Problem::Field("padding"))
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sealed() -> Vec<u8> {
        let mut writer = Writer::sealed(*b"ARCHTEST", Lineage(7));
        writer.u64(1234);
        writer.seal()
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let good = sealed();
        let mut opened = Reader::open(*b"ARCHTEST", Some(Lineage(7)), &good).unwrap();
        assert_eq!((opened.fields.u64(), opened.len), (Some(1234), good.len()));
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                Reader::open(*b"ARCHTEST", Some(Lineage(7)), &bad).is_err(),
                "bit {bit}"
            );
        }
        for len in 0..good.len() {
            assert!(
                Reader::open(*b"ARCHTEST", None, &good[..len]).is_err(),
                "cut at {len}"
            );
        }
    }

    #[test]
    fn an_envelope_stands_in_front() {
        let good = sealed();
        let (crc, rest) = (&good[16..20], [&good[..16], &good[20..]].concat());
        assert_eq!(
            rest,
            [
                b"ARCHTEST".as_slice(),
                &[3, 0, 0, 0, 56, 0, 0, 0],
                &[0; 20],
                &[7, 0, 0, 0, 0, 0, 0, 0],
                &[0xd2, 4, 0, 0, 0, 0, 0, 0],
            ]
            .concat()
        );
        assert_eq!(crc, crc32c::crc32c(&rest).to_le_bytes());
        assert_eq!(sealed_crc(&good).to_le_bytes(), crc);
    }

    #[test]
    fn padding_fills_up_and_no_more() {
        let mut writer = Writer::bare();
        writer.u8(1);
        writer.pad(8);
        writer.pad(4);
        assert_eq!(writer.len(), 8);
        assert_eq!(writer.into_bytes(), [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    /// What is found in an envelope with another byte at `at`, whose checksum is right.
    fn with_byte(at: usize, byte: u8) -> Result<u32, Problem> {
        let mut writer = Writer::sealed(*b"ARCHTEST", Lineage(7));
        writer.bytes[at] = byte;
        let bytes = writer.seal();
        Reader::open(*b"ARCHTEST", None, &bytes).map(|opened| opened.compatible)
    }

    #[test]
    fn another_version_and_an_unknown_feature_are_unsupported_and_no_damage() {
        for (at, byte, problem, why) in [
            (8, 9, Problem::Version(9), "format version 9, this program"),
            (8, 2, Problem::Version(2), "before the first release"),
            (20, 4, Problem::Features(4), "does not know (bits 0x4)"),
        ] {
            assert_eq!(with_byte(at, byte), Err(problem));
            let Unreadable::Unsupported(text) = problem.into() else {
                panic!("{problem} is not damage");
            };
            assert!(text.contains(why), "{text}");
        }
        assert_eq!(with_byte(28, 1), Err(Problem::Field("reserved")));
        let reserved = Unreadable::from(Problem::Field("reserved"));
        assert!(matches!(reserved, Unreadable::Damaged(_)));
        assert_eq!(with_byte(24, 5), Ok(5), "compatible features are handed on");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Reader::open(*b"ARCHTEST", None, &bytes).is_err());
        }
    }
}
