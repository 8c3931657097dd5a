//! What a catalogue record says beside its fields: a list of attributes, each with a tag. Layout: `docs/map-format.md`,
//! "Attributes".
//!
//! Tag u16, length u16, value, zeros to 8; one behind the other up to the end of the record. Most records have none.
//!
//! Invariant: an attribute whose tag this program does not know is kept as it is and written back.

use archipelago_protocol::OnFull;

use crate::format::{Reader, Writer};

/// Seconds that a write without room waits, u32; 0: it is reported at once. Without the attribute it waits for ever.
const ON_FULL: u16 = 1;
/// Longest list of one record: what the longest page of a checkpoint has room for.
pub(super) const ATTRIBUTES_LEN_MAX: usize = 4096;

/// The attributes of a record. Most have none, and there are records by the million: then it is a word.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attributes(Option<Box<List>>);

/// What is there when it is not all as without attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct List {
    on_full: OnFull,
    /// Those of a newer program.
    unknown: Vec<Unknown>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Unknown {
    tag: u16,
    value: Vec<u8>,
}

impl Attributes {
    /// With a policy for a full pool, and nothing else.
    pub(crate) fn with_on_full(on_full: OnFull) -> Self {
        let mut attributes = Attributes::default();
        attributes.set_on_full(on_full);
        attributes
    }

    /// The policy for a full pool.
    pub(crate) fn on_full(&self) -> OnFull {
        self.0.as_ref().map(|list| list.on_full).unwrap_or_default()
    }

    pub(crate) fn set_on_full(&mut self, on_full: OnFull) {
        let mut list = self.0.take().unwrap_or_default();
        list.on_full = on_full;
        self.0 = Some(list).filter(|list| **list != List::default());
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
                tag => list.unknown.push(Unknown {
                    tag,
                    value: value.to_vec(),
                }),
            }
        }
        Ok(Attributes(Some(list)))
    }
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
    from.take((4 + len).next_multiple_of(8) - 4 - len)?;
    Some((tag, value))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            let attributes = Attributes::with_on_full(policy);
            let bytes = attributes.encode();
            check(&bytes, golden);
            assert_eq!(decoded(&bytes), Ok(attributes));
        }
    }

    #[test]
    fn what_is_not_known_is_written_back() {
        // Tags 2 and 3, each twice: whether that is right is not for us to say.
        let bytes = [
            2, 0, 5, 0, b'a', b'=', b'b', b'c', b'd', 0, 0, 0, 0, 0, 0, 0, //
            1, 0, 4, 0, 0, 0, 0, 0, //
            3, 0, 0, 0, 0, 0, 0, 0, //
            2, 0, 1, 0, 9, 0, 0, 0, //
            3, 0, 0, 0, 0, 0, 0, 0,
        ];
        let attributes = decoded(&bytes).unwrap();
        assert_eq!(attributes.on_full(), OnFull::Report);
        let again = attributes.encode();
        assert_eq!(again, [&bytes[16..24], &bytes[..16], &bytes[24..]].concat());
        assert_eq!(decoded(&again), Ok(attributes));
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
