//! Catalogue records. Layout: `docs/map-format.md`, "Catalogue records".
//!
//! Kind u8, 0 u8, length u16 of the record, then
//! * 1 put: map kind u8, object size log2 u8, name length u16 (0: hidden), lineage, parent (0: none), size u64,
//!   created u64, root (52 bytes), name, zeros to 8, [`attributes`](super::attributes);
//! * 2 delete, 3 forget: 0 u32, lineage.
//!
//! The records of one batch take effect together.

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{Labels, Lineage, Name, ObjectSize};

use super::attributes::Attributes;
use crate::format::{Reader, Writer};
use crate::head::{read_root, write_root};
use crate::tree::Root;

/// Bytes of kind and length, in front of each record's body.
const HEADER_LEN: usize = 4;
/// Bytes of the body of a put before its name: kind, object size, length of the name, two lineages, size, time, root.
const FIELDS_LEN: usize = 1 + 1 + 2 + 2 * 16 + 8 + 8 + 52;

/// Where the attributes of a put begin in its body: at a multiple of 8 in the record.
fn attributes_at(name_len: usize) -> usize {
    (HEADER_LEN + FIELDS_LEN + name_len).next_multiple_of(8) - HEADER_LEN
}

/// A named map, or one whose name is gone while others still need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: Option<Name>,
    pub(crate) kind: Kind,
    pub(crate) lineage: Lineage,
    pub(crate) parent: Option<Lineage>,
    pub(crate) size: u64,
    pub(crate) object_size: ObjectSize,
    pub(crate) created: u64,
    /// Of frozen things, and of volumes until their first open.
    pub(crate) root: Root,
    pub(crate) attributes: Attributes,
}

impl Item {
    /// The snapshot of this volume that was asked for, whose map has `root`.
    pub(crate) fn snapshot(&self, asked: SnapshotFields, root: Root) -> Item {
        let SnapshotFields {
            name,
            lineage,
            created,
            labels,
        } = asked;
        Item {
            name: Some(name),
            kind: Kind::Snapshot,
            lineage,
            parent: Some(self.lineage),
            created,
            root,
            attributes: self.attributes.with_labels(labels),
            ..self.clone()
        }
    }
}

/// What is asked of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SnapshotFields {
    pub(crate) name: Name,
    pub(crate) lineage: Lineage,
    pub(crate) created: u64,
    pub(crate) labels: Labels,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// The item is so from now on.
    Put(Item),
    /// The item is gone, its objects are to be deleted.
    Delete(Lineage),
    /// They are deleted.
    Forget(Lineage),
}

impl Change {
    pub(crate) fn encode(&self, to: &mut Writer) {
        let start = to.len();
        let mut body = Writer::bare();
        let kind = match self {
            Change::Put(item) => {
                item.encode(&mut body);
                1
            }
            Change::Delete(lineage) | Change::Forget(lineage) => {
                body.u32(0);
                body.lineage(*lineage);
                if matches!(self, Change::Delete(_)) {
                    2
                } else {
                    3
                }
            }
        };
        to.u8(kind);
        to.u8(0);
        let len = (HEADER_LEN + body.len()).next_multiple_of(8);
        to.u16(u16::try_from(len).expect("some fields, a name and bounded attributes"));
        to.bytes(&body.into_bytes());
        to.pad_to(start + len);
    }

    /// All changes of a batch or page.
    ///
    /// # Errors
    /// What is wrong.
    pub(crate) fn decode_all(payload: &[u8]) -> Result<Vec<Change>, String> {
        let mut fields = Reader::new(payload);
        let mut changes = Vec::new();
        while !fields.rest().is_empty() {
            changes.push(Self::decode(&mut fields)?);
        }
        Ok(changes)
    }

    fn decode(fields: &mut Reader<'_>) -> Result<Change, String> {
        let short = || "a catalogue record is cut short".to_owned();
        let kind = fields.u8().ok_or_else(short)?;
        fields.u8().ok_or_else(short)?;
        let len = usize::from(fields.u16().ok_or_else(short)?);
        let body = len
            .checked_sub(HEADER_LEN)
            .and_then(|len| fields.take(len))
            .ok_or_else(short)?;
        let mut body = Reader::new(body);
        match kind {
            1 => Item::decode(&mut body).map(Change::Put),
            2 | 3 => {
                body.u32().ok_or_else(short)?;
                let lineage = body.lineage().ok_or_else(short)?;
                Ok(if kind == 2 {
                    Change::Delete(lineage)
                } else {
                    Change::Forget(lineage)
                })
            }
            kind => Err(format!(
                "catalogue record kind {kind} is unknown to this program"
            )),
        }
    }
}

impl Item {
    fn encode(&self, to: &mut Writer) {
        let name = self.name.as_ref().map_or("", Name::as_str);
        to.u8(match self.kind {
            Kind::Volume => 1,
            Kind::Snapshot => 2,
            Kind::Image => 3,
            Kind::Importing => 4,
        });
        to.u8(self.object_size.log2());
        to.u16(u16::try_from(name.len()).expect("at most 255"));
        to.lineage(self.lineage);
        to.lineage(self.parent.unwrap_or_default());
        to.u64(self.size);
        to.u64(self.created);
        write_root(to, self.root);
        to.bytes(name.as_bytes());
        to.pad_to(attributes_at(name.len()));
        to.bytes(&self.attributes.encode());
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, String> {
        let bad = |field: &str| format!("a catalogue record's {field} is impossible");
        let kind = match from.u8() {
            Some(1) => Kind::Volume,
            Some(2) => Kind::Snapshot,
            Some(3) => Kind::Image,
            Some(4) => Kind::Importing,
            _ => return Err(bad("kind")),
        };
        let object_size = from
            .u8()
            .and_then(ObjectSize::from_log2)
            .ok_or_else(|| bad("object size"))?;
        let name_len = from.u16().ok_or_else(|| bad("name length"))?;
        let lineage = from.lineage().ok_or_else(|| bad("lineage"))?;
        let parent = from.lineage().ok_or_else(|| bad("parent"))?;
        let size = from.u64().ok_or_else(|| bad("size"))?;
        let created = from.u64().ok_or_else(|| bad("time"))?;
        let root = read_root(from).map_err(|problem| problem.to_string())?;
        let name = from
            .take(usize::from(name_len))
            .ok_or_else(|| bad("name"))?;
        let zeros = attributes_at(name.len()) - FIELDS_LEN - name.len();
        from.take(zeros).ok_or_else(|| bad("length"))?;
        let attributes = Attributes::decode(from)?;
        let name = match name {
            [] => None,
            bytes => {
                let text = std::str::from_utf8(bytes).map_err(|_not_text| bad("name"))?;
                Some(text.parse().map_err(|_illegal| bad("name"))?)
            }
        };
        Ok(Item {
            name,
            kind,
            lineage,
            parent: (parent != Lineage::CATALOGUE).then_some(parent),
            size,
            object_size,
            created,
            root,
            attributes,
        })
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::OnFull;
    use proptest::prelude::*;

    use super::*;

    fn item(name: &str) -> Item {
        Item {
            name: (!name.is_empty()).then(|| name.parse().unwrap()),
            kind: Kind::Snapshot,
            lineage: Lineage(1),
            parent: Some(Lineage(2)),
            size: 512,
            object_size: ObjectSize::MAX,
            created: 77,
            root: Root::default(),
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn changes_survive_their_bytes() {
        let long = "x".repeat(255);
        let changes = vec![
            Change::Put(item("vm-1")),
            Change::Delete(Lineage(4)),
            Change::Put(item("")),
            Change::Put(item(&long)),
            Change::Forget(Lineage(5)),
        ];
        let mut bytes = Writer::bare();
        changes.iter().for_each(|change| change.encode(&mut bytes));
        assert_eq!(Change::decode_all(&bytes.into_bytes()), Ok(changes));
    }

    /// Records of programs that knew no attributes, with names of each length modulo 8, and each with garbage where they wrote
    /// zeros: the padding is not an attribute.
    #[test]
    fn a_record_without_attributes_reads_as_before_and_its_padding_is_none() {
        for name_len in [0, 1, 3, 4, 5, 8, 255] {
            let change = Change::Put(item(&"x".repeat(name_len)));
            let mut bytes = Writer::bare();
            change.encode(&mut bytes);
            let mut bytes = bytes.into_bytes();
            assert_eq!(bytes.len(), (108 + name_len).next_multiple_of(8));
            assert_eq!(Change::decode_all(&bytes), Ok(vec![change.clone()]));
            bytes[108 + name_len..].fill(1);
            assert_eq!(Change::decode_all(&bytes), Ok(vec![change]));
        }
    }

    #[test]
    fn attributes_survive_their_bytes_whatever_the_length_of_the_name() {
        for name_len in [0, 1, 3, 4, 5, 8, 255] {
            let report = Change::Put(Item {
                attributes: Attributes::new(OnFull::Report, Labels::default()),
                ..item(&"x".repeat(name_len))
            });
            let mut bytes = Writer::bare();
            report.encode(&mut bytes);
            let mut bytes = bytes.into_bytes();
            let at = (108 + name_len).next_multiple_of(8);
            assert_eq!(bytes[at..], [1, 0, 4, 0, 0, 0, 0, 0]);
            let read = |bytes: &[u8]| Change::decode_all(bytes);
            assert_eq!(read(&bytes), Ok(vec![report]));
            bytes[at] = 3;
            let again = read(&bytes).unwrap();
            let mut written = Writer::bare();
            again[0].encode(&mut written);
            assert_eq!(written.into_bytes(), bytes, "an unknown attribute");
            bytes[at + 2] = 5;
            assert!(read(&bytes).unwrap_err().contains("attribute"));
        }
    }

    proptest! {
        #[test]
        fn random_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _judged = Change::decode_all(&bytes);
            let _judged = crate::log::Record::decode_all(&bytes);
        }
    }
}
