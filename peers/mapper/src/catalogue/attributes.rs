//! What a catalogue record says beside its fields: a list of attributes, each with a tag. Layout: `docs/map-format.md`,
//! "Attributes".
//!
//! Tag u16, length u16, value, zeros to 8; one behind the other up to the end of the record. Most records have none.
//!
//! Invariant: an attribute whose tag this program does not know is kept as it is and written back.

use archipelago_protocol::labels::{LABELS_LEN_MAX, LABELS_MAX};
use archipelago_protocol::{ErrorCode, Label, LabelKey, LabelValue, Labels, Lineage, OnFull};

use crate::failure::{Failure, Outcome};
use crate::format::{Reader, Writer};

/// Seconds that a write without room waits, u32; 0: it is reported at once. Without the attribute it waits for ever.
const ON_FULL: u16 = 1;
/// Labels, each: length of its key u8, of its value u8, key, value; in rising order of the keys. Without the attribute there are none.
const LABELS: u16 = 2;
/// Of an import: the incarnation that fills it, 16 bytes, high word first. Without the attribute nobody does.
const IMPORTER: u16 = 3;
/// Longest list of one record: what the longest page of a checkpoint has room for.
pub(super) const ATTRIBUTES_LEN_MAX: usize = 4096;
/// Bytes of tag and length in front of a value.
const HEADER_LEN: usize = 4;
/// The longest labels, and the other attributes.
const _: () = assert!(HEADER_LEN + LABELS_LEN_MAX + 2 * LABELS_MAX + 8 + 24 <= ATTRIBUTES_LEN_MAX);

/// The attributes of a record. Most have none, and there are records by the million: then it is a word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes(Option<Box<List>>);

/// What is there when it is not all as without attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct List {
    on_full: OnFull,
    labels: Labels,
    /// 0: none.
    importer: u128,
    /// Those of a newer program.
    unknown: Vec<Unknown>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Unknown {
    tag: u16,
    value: Vec<u8>,
}

impl Attributes {
    /// With a policy for a full pool and labels, and nothing else.
    pub(crate) fn new(on_full: OnFull, labels: Labels) -> Self {
        let list = List {
            on_full,
            labels,
            importer: 0,
            unknown: Vec::new(),
        };
        Attributes::of(list)
    }

    fn of(list: List) -> Self {
        Attributes(Some(Box::new(list)).filter(|list| **list != List::default()))
    }

    /// The policy for a full pool.
    pub(crate) fn on_full(&self) -> OnFull {
        self.0.as_ref().map(|list| list.on_full).unwrap_or_default()
    }

    /// The labels; `None`: there are none.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        self.0.as_ref().map(|list| &list.labels)
    }

    /// The same with another policy for a full pool.
    pub(crate) fn with_on_full(&self, on_full: OnFull) -> Self {
        let list = self.list();
        Attributes::of(List { on_full, ..list })
    }

    /// The same with other labels: of something that is made of what has these attributes, or has had them.
    pub(crate) fn with_labels(&self, labels: Labels) -> Self {
        let list = self.list();
        Attributes::of(List { labels, ..list })
    }

    /// The incarnation that fills the import; 0: none.
    pub(crate) fn importer(&self) -> u128 {
        self.0.as_ref().map_or(0, |list| list.importer)
    }

    /// The same of an import that this incarnation fills; 0: of none any more.
    pub(crate) fn with_importer(&self, importer: u128) -> Self {
        let list = self.list();
        Attributes::of(List { importer, ..list })
    }

    fn list(&self) -> List {
        self.0.as_deref().cloned().unwrap_or_default()
    }

    /// Checks that the attributes fit into a record: those of a newer program may leave too little room.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`].
    pub(crate) fn check_len(&self) -> Outcome<()> {
        let len = self.encode().len();
        if len <= ATTRIBUTES_LEN_MAX {
            return Ok(());
        }
        let why = format!(
            "the attributes would have {len} bytes of {ATTRIBUTES_LEN_MAX}: a newer program has noted more than leaves room for them"
        );
        Err(Failure::new(ErrorCode::Invalid, why))
    }

    /// The list as bytes, for the end of a record.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut to = Writer::bare();
        let Some(list) = &self.0 else {
            return to.into_bytes();
        };
        if let Some(seconds) = list.on_full.to_seconds() {
            put(&mut to, ON_FULL, &seconds.to_le_bytes());
        }
        if !list.labels.is_empty() {
            put(&mut to, LABELS, &labels_to_bytes(&list.labels));
        }
        if list.importer != 0 {
            let words = Lineage(list.importer).to_words().map(u64::to_le_bytes);
            put(&mut to, IMPORTER, words.as_flattened());
        }
        for unknown in &list.unknown {
            put(&mut to, unknown.tag, &unknown.value);
        }
        to.into_bytes()
    }

    /// Reads all that is left.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn decode(from: &mut Reader<'_>) -> Result<Self, String> {
        let len = from.rest().len();
        if len == 0 {
            return Ok(Attributes::default());
        }
        if len > ATTRIBUTES_LEN_MAX {
            return Err(format!(
                "a catalogue record has {len} bytes of attributes, more than {ATTRIBUTES_LEN_MAX}"
            ));
        }
        let mut list = Box::<List>::default();
        while !from.rest().is_empty() {
            let (tag, value) =
                take(from).ok_or("an attribute of a catalogue record is cut short")?;
            let impossible = || format!("attribute {tag} of a catalogue record is impossible");
            match tag {
                // Zeros are not a list of attributes.
                0 => return Err(impossible()),
                ON_FULL => {
                    let seconds = value.try_into().map_err(|_length| impossible())?;
                    list.on_full = OnFull::from_seconds(Some(u32::from_le_bytes(seconds)));
                }
                LABELS if list.labels.is_empty() => {
                    list.labels = labels_from_bytes(value).ok_or_else(impossible)?;
                }
                IMPORTER if list.importer == 0 => {
                    let importer = Reader::new(value).lineage();
                    let whole = importer.filter(|of| value.len() == 16 && of.0 != 0);
                    list.importer = whole.ok_or_else(impossible)?.0;
                }
                LABELS | IMPORTER => return Err(impossible()),
                tag => list.unknown.push(Unknown {
                    tag,
                    value: value.to_vec(),
                }),
            }
        }
        Ok(Attributes::of(*list))
    }
}

fn labels_to_bytes(labels: &Labels) -> Vec<u8> {
    let mut bytes = Vec::new();
    let len = |text: &str| u8::try_from(text.len()).expect("at most 255");
    for (key, value) in labels.iter() {
        let (key, value) = (key.as_str(), value.as_str());
        bytes.extend([len(key), len(value)]);
        bytes.extend(key.bytes().chain(value.bytes()));
    }
    bytes
}

/// The labels whose bytes these are: one at least, each legal, in rising order of their keys, not too many or too long.
fn labels_from_bytes(bytes: &[u8]) -> Option<Labels> {
    let mut from = Reader::new(bytes);
    let mut list: Vec<Label> = Vec::new();
    while !from.rest().is_empty() {
        let (key_len, value_len) = (from.u8()?, from.u8()?);
        let mut text = |len: u8| std::str::from_utf8(from.take(usize::from(len))?).ok();
        let key: LabelKey = text(key_len)?.parse().ok()?;
        let value: LabelValue = text(value_len)?.parse().ok()?;
        if list.last().is_some_and(|last| last.key >= key) {
            return None;
        }
        list.push(Label { key, value });
    }
    let labels = Labels::from_list(list).ok();
    labels.filter(|labels| !labels.is_empty())
}

fn put(to: &mut Writer, tag: u16, value: &[u8]) {
    to.u16(tag);
    to.u16(u16::try_from(value.len()).expect("at most the list's length"));
    to.bytes(value);
    to.pad(8);
}

fn take<'a>(from: &mut Reader<'a>) -> Option<(u16, &'a [u8])> {
    let (tag, len) = (from.u16()?, usize::from(from.u16()?));
    let value = from.take(len)?;
    from.zeros((HEADER_LEN + len).next_multiple_of(8) - HEADER_LEN - len)?;
    Some((tag, value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::tests::check;

    fn decoded(bytes: &[u8]) -> Result<Attributes, String> {
        Attributes::decode(&mut Reader::new(bytes))
    }

    #[test]
    fn a_policy_is_its_seconds_and_the_default_is_nothing() {
        let limit = Some(Duration::from_secs(258));
        for (policy, golden) in [
            (OnFull::default(), ""),
            (OnFull::Report, "0100 0400 00000000"),
            (OnFull::Wait { limit }, "0100 0400 02010000"),
        ] {
            let attributes = Attributes::new(policy, Labels::default());
            let bytes = attributes.encode();
            check(&bytes, golden);
            assert_eq!(decoded(&bytes), Ok(attributes));
        }
    }

    #[test]
    fn what_is_not_known_is_written_back() {
        // Tags 7 and 4, each twice: whether that is right is not for us to say.
        let bytes = [
            4, 0, 5, 0, b'a', b'=', b'b', b'c', b'd', 0, 0, 0, 0, 0, 0, 0, //
            1, 0, 4, 0, 0, 0, 0, 0, //
            7, 0, 0, 0, 0, 0, 0, 0, //
            4, 0, 1, 0, 9, 0, 0, 0, //
            7, 0, 0, 0, 0, 0, 0, 0,
        ];
        let attributes = decoded(&bytes).unwrap();
        assert_eq!(attributes.on_full(), OnFull::Report);
        let again = attributes.encode();
        assert_eq!(again, [&bytes[16..24], &bytes[..16], &bytes[24..]].concat());
        assert_eq!(decoded(&again), Ok(attributes));
    }

    fn labels(list: &[&str]) -> Labels {
        Labels::from_list(list.iter().map(|text| text.parse().unwrap()).collect()).unwrap()
    }

    #[test]
    fn labels_are_their_lengths_and_texts_in_order_of_their_keys() {
        let all = labels(&["b.c=\u{fc}", "a="]);
        let attributes = Attributes::new(OnFull::Report, all.clone());
        let bytes = attributes.encode();
        check(
            &bytes,
            "0100 0400 00000000 0200 0a00 01 00 61 03 02 622e63 c3bc 0000",
        );
        assert_eq!(decoded(&bytes), Ok(attributes.clone()));
        assert_eq!(attributes.labels(), Some(&all));
        let without = attributes.with_labels(Labels::default());
        check(&without.encode(), "0100 0400 00000000");
        assert_eq!(
            without.with_on_full(OnFull::default()),
            Attributes::default()
        );
    }

    #[test]
    fn the_longest_labels_fit_and_what_a_newer_program_noted_may_leave_no_room() {
        let long: Vec<String> = (0..32)
            .map(|number| format!("k{number:02}={}", "v".repeat(93)))
            .collect();
        let long = labels(&long.iter().map(String::as_str).collect::<Vec<_>>());
        let longest = Attributes::new(OnFull::Report, long.clone());
        assert_eq!(longest.encode().len(), 8 + 3144);
        assert_eq!(decoded(&longest.encode()), Ok(longest.clone()));
        for (unknown_len, fits) in [(940, true), (941, false)] {
            let mut bytes = vec![0; (4 + unknown_len as usize).next_multiple_of(8)];
            bytes[0] = 9;
            bytes[2..4].copy_from_slice(&u16::to_le_bytes(unknown_len));
            let newer = decoded(&bytes).unwrap();
            let both = newer.with_labels(long.clone()).with_on_full(OnFull::Report);
            assert_eq!(both.check_len().is_ok(), fits);
            assert_eq!(decoded(&both.encode()).is_ok(), fits, "as it is read back");
        }
    }

    #[test]
    fn labels_that_no_program_wrote_are_damage() {
        let attribute = |labels: &[u8]| {
            let mut bytes = vec![2, 0];
            bytes.extend(u16::try_from(labels.len()).unwrap().to_le_bytes());
            bytes.extend(labels);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            bytes
        };
        let one_label = attribute(b"\x01\x01ax");
        assert_eq!(
            decoded(&one_label).unwrap().labels(),
            Some(&labels(&["a=x"]))
        );
        let [mut many, mut long] = [Vec::new(), Vec::new()];
        for number in 0..33 {
            many.extend([2, 0, b'a' + number / 26, b'a' + number % 26]);
        }
        for number in 0..13 {
            long.extend([1, 255, b'a' + number]);
            long.extend([b'v'; 255]);
        }
        let cases: [&[u8]; 15] = [
            b"",
            b"\x01",
            b"\x01\x01a",
            b"\x01\x02ax",
            b"\xff\xffax",
            b"\x00\x01x",
            b"\x01\x01Ax",
            b"\x01\x01-x",
            b"\x01\x01\xffx",
            b"\x01\x01a\n",
            b"\x01\x01a\xff",
            b"\x01\x01ax\x01\x01ay",
            b"\x01\x01bx\x01\x01ay",
            &many,
            &long,
        ];
        let damage = Err("attribute 2 of a catalogue record is impossible".to_owned());
        for labels in cases {
            assert_eq!(decoded(&attribute(labels)), damage, "{labels:x?}");
        }
        // Twice.
        assert_eq!(decoded(&[one_label.clone(), one_label].concat()), damage);
    }

    proptest! {
        #[test]
        fn labels_of_any_bytes_are_refused_or_come_back_as_they_were(
            bytes in prop::collection::vec(prop_oneof![0..4_u8, b'a'..b'e', any::<u8>()], 0..40),
        ) {
            if let Some(labels) = labels_from_bytes(&bytes) {
                prop_assert_eq!(labels_to_bytes(&labels), bytes);
            }
        }
    }

    #[test]
    fn what_cannot_be_an_attribute_is_refused() {
        let cases: [(&[u8], &str); 6] = [
            (&[0; 8], "attribute 0 of a catalogue record is impossible"),
            (
                &[1, 0, 3, 0, 1, 1, 1, 0],
                "attribute 1 of a catalogue record is impossible",
            ),
            (
                &[1, 0, 0, 0, 0, 0, 0, 0],
                "attribute 1 of a catalogue record is impossible",
            ),
            (
                &[7, 0, 5, 0, 1, 1, 1, 1],
                "an attribute of a catalogue record is cut short",
            ),
            (
                &[7, 0, 2, 0, 1, 1],
                "an attribute of a catalogue record is cut short",
            ),
            (&[7; 3], "an attribute of a catalogue record is cut short"),
        ];
        for (bytes, why) in cases {
            assert_eq!(decoded(bytes), Err(why.to_owned()));
        }
        let mut longest = vec![9; ATTRIBUTES_LEN_MAX];
        longest[..4].copy_from_slice(&[9, 0, 0xfc, 0x0f]);
        assert!(decoded(&longest).is_ok());
        longest.extend([1, 0, 4, 0, 0, 0, 0, 0]);
        assert!(decoded(&longest).unwrap_err().contains("4104 bytes"));
    }
}
