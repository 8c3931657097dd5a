//! Catalogue records. Layout: `docs/map-format.md`, "Catalogue records".
//!
//! Kind u8, 0 u8, length u16 of the record, then
//! * 1 put: map kind u8, object size log2 u8, name length u16 (0: hidden), lineage, size u64, created u64, epoch u64,
//!   removed u64, root (52 bytes), sources u16, 0 u16, name, zeros to 8, the sources' lineages,
//!   [`attributes`](super::attributes);
//! * 2 delete: 0 u32, lineage, incarnation that deletes its objects;
//! * 3 forget: 0 u32, lineage;
//! * 4 begin, 5 end: of an [`incarnation`](super::incarnations).
//!
//! The records of one batch take effect together.

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::{Epoch, Labels, Lineage, Name, ObjectSize};

use super::attributes::{ATTRIBUTES_LEN_MAX, Attributes};
use super::incarnations::{End, Incarnation};
use crate::format::{Reader, Writer};
use crate::head::{ROOT_LEN, read_root, write_root};
use crate::tree::Root;

/// Bytes of kind and length, in front of each record's body.
const HEADER_LEN: usize = 4;
// Where the fields of a put stand in its record: each behind the one before it, as the table of `docs/map-format.md` has them.
const KIND_AT: usize = HEADER_LEN;
const OBJECT_SIZE_AT: usize = KIND_AT + 1;
const NAME_LEN_AT: usize = OBJECT_SIZE_AT + 1;
const LINEAGE_AT: usize = NAME_LEN_AT + 2;
const SIZE_AT: usize = LINEAGE_AT + 16;
const CREATED_AT: usize = SIZE_AT + 8;
const EPOCH_AT: usize = CREATED_AT + 8;
const REMOVED_AT: usize = EPOCH_AT + 8;
const ROOT_AT: usize = REMOVED_AT + 8;
const SOURCES_AT: usize = ROOT_AT + ROOT_LEN;
const NAME_AT: usize = SOURCES_AT + 2 + 2;
const _: () = assert!(KIND_AT == 4 && OBJECT_SIZE_AT == 5 && NAME_LEN_AT == 6 && LINEAGE_AT == 8);
const _: () = assert!(SIZE_AT == 24 && CREATED_AT == 32 && EPOCH_AT == 40 && REMOVED_AT == 48);
const _: () = assert!(ROOT_AT == 56 && SOURCES_AT == 108 && NAME_AT == 112);
/// Most sources of an entry: what a record has room for beside the longest name and attributes.
const SOURCES_MAX: usize = 64;
const SOURCE_LEN: usize = 16;
/// Longest record: with the longest name, sources and attributes.
pub(super) const RECORD_LEN_MAX: usize =
    NAME_AT + 256 + SOURCES_MAX * SOURCE_LEN + ATTRIBUTES_LEN_MAX;
const _: () = assert!(RECORD_LEN_MAX <= u16::MAX as usize);

/// A named map, or one whose name is gone while others still need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: Option<Name>,
    pub(crate) kind: Kind,
    pub(crate) lineage: Lineage,
    /// What its map may share pages and blocks with: they stay as long as it does. First the one that it was made of.
    pub(crate) sources: Vec<Lineage>,
    pub(crate) size: u64,
    pub(crate) object_size: ObjectSize,
    pub(crate) created: u64,
    /// Of a snapshot: it has no blocks of its volume that are of a later one. Of an image the same of its own blocks. 0: none.
    pub(crate) epoch: Epoch,
    /// When it was removed, in seconds since 1970, if it is kept until later. 0: it was not; nothing sets it yet.
    pub(crate) removed: u64,
    /// Of frozen things, and of volumes until their first open.
    pub(crate) root: Root,
    pub(crate) attributes: Attributes,
}

impl Item {
    /// Whether its map never changes.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(self.kind, Kind::Snapshot | Kind::Image)
    }

    /// The snapshot of this volume that was asked for, whose map is `frozen`.
    pub(crate) fn snapshot(&self, asked: SnapshotFields, frozen: FrozenRoot) -> Item {
        let FrozenRoot { root, epoch } = frozen;
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
            sources: vec![self.lineage],
            created,
            epoch,
            removed: 0,
            root,
            attributes: self.attributes.with_labels(labels),
            ..self.clone()
        }
    }
}

/// A map of a volume that never changes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrozenRoot {
    pub(crate) root: Root,
    /// The volume's blocks in it are of this epoch and older ones. 0: it has none.
    pub(crate) epoch: Epoch,
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
    /// The item is gone, its objects are to be deleted by the incarnation `by`.
    Delete { lineage: Lineage, by: u128 },
    /// They are deleted.
    Forget(Lineage),
    /// An incarnation serves the pool.
    Begin(Incarnation),
    /// It does not any more, and changes nothing.
    End { incarnation: u128, how: End },
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
            Change::Delete { lineage, by } => {
                body.u32(0);
                body.lineage(*lineage);
                body.lineage(Lineage(*by));
                2
            }
            Change::Forget(lineage) => {
                body.u32(0);
                body.lineage(*lineage);
                3
            }
            Change::Begin(incarnation) => {
                incarnation.encode(&mut body);
                4
            }
            Change::End { incarnation, how } => {
                how.encode(&mut body);
                body.lineage(Lineage(*incarnation));
                5
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
        let reserved = || "a catalogue record's reserved field is not 0".to_owned();
        fields.zeros(1).ok_or_else(reserved)?;
        let len = usize::from(fields.u16().ok_or_else(short)?);
        let body = len
            .checked_sub(HEADER_LEN)
            .and_then(|len| fields.take(len))
            .ok_or_else(short)?;
        let mut body = Reader::new(body);
        match kind {
            1 => Item::decode(&mut body).map(Change::Put),
            2 => {
                body.zeros(4).ok_or_else(reserved)?;
                let lineage = body.lineage().ok_or_else(short)?;
                let by = body.lineage().ok_or_else(short)?.0;
                body.padding().map_err(|problem| problem.to_string())?;
                Ok(Change::Delete { lineage, by })
            }
            3 => {
                body.zeros(4).ok_or_else(reserved)?;
                let lineage = body.lineage().ok_or_else(short)?;
                body.padding().map_err(|problem| problem.to_string())?;
                Ok(Change::Forget(lineage))
            }
            4 => Incarnation::decode(&mut body).map(Change::Begin),
            5 => {
                let (how, incarnation) = End::decode(&mut body)?;
                Ok(Change::End { incarnation, how })
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
        to.u64(self.size);
        to.u64(self.created);
        to.u64(self.epoch.0);
        to.u64(self.removed);
        write_root(to, self.root);
        to.u16(u16::try_from(self.sources.len()).expect("at most SOURCES_MAX"));
        to.u16(0);
        to.bytes(name.as_bytes());
        to.pad_to(sources_at(name.len()) - HEADER_LEN);
        for source in &self.sources {
            to.lineage(*source);
        }
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
        let size = from.u64().ok_or_else(|| bad("size"))?;
        let created = from.u64().ok_or_else(|| bad("time"))?;
        let epoch = Epoch(from.u64().ok_or_else(|| bad("epoch"))?);
        let removed = from.u64().ok_or_else(|| bad("time of removal"))?;
        let root = read_root(from).map_err(|problem| problem.to_string())?;
        let count = from.u16().ok_or_else(|| bad("number of sources"))?;
        from.zeros(2).ok_or_else(|| bad("reserved field"))?;
        let name = from
            .take(usize::from(name_len))
            .ok_or_else(|| bad("name"))?;
        let zeros = sources_at(name.len()) - NAME_AT - name.len();
        from.zeros(zeros).ok_or_else(|| bad("padding"))?;
        let sources = decode_sources(from, count).ok_or_else(|| bad("list of sources"))?;
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
            sources,
            size,
            object_size,
            created,
            epoch,
            removed,
            root,
            attributes,
        })
    }
}

/// Where the sources of a put begin in its record: at a multiple of 8.
fn sources_at(name_len: usize) -> usize {
    (NAME_AT + name_len).next_multiple_of(8)
}

/// So many sources: not too many, none of them the catalogue, each once.
fn decode_sources(from: &mut Reader<'_>, count: u16) -> Option<Vec<Lineage>> {
    let count = usize::from(count);
    if count > SOURCES_MAX {
        return None;
    }
    let mut sources = Vec::with_capacity(count);
    for _ in 0..count {
        let source = from.lineage()?;
        if source == Lineage::CATALOGUE || sources.contains(&source) {
            return None;
        }
        sources.push(source);
    }
    Some(sources)
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
            sources: vec![Lineage(2)],
            size: 512,
            object_size: ObjectSize::MAX,
            created: 77,
            epoch: Epoch(5),
            removed: 0,
            root: Root::default(),
            attributes: Attributes::default(),
        }
    }

    #[test]
    fn changes_survive_their_bytes() {
        let long = "x".repeat(255);
        let changes = vec![
            Change::Put(item("vm-1")),
            Change::Delete {
                lineage: Lineage(4),
                by: 1 << 64 | 9,
            },
            Change::Put(item("")),
            Change::Put(item(&long)),
            Change::Put(Item {
                sources: (1..=64).map(Lineage).collect(),
                removed: u64::MAX,
                ..item(&long)
            }),
            Change::Forget(Lineage(5)),
        ];
        let mut bytes = Writer::bare();
        changes.iter().for_each(|change| change.encode(&mut bytes));
        assert_eq!(Change::decode_all(&bytes.into_bytes()), Ok(changes));
    }

    /// The bytes of a put.
    fn put(item: &Item) -> Vec<u8> {
        let mut bytes = Writer::bare();
        Change::Put(item.clone()).encode(&mut bytes);
        bytes.into_bytes()
    }

    #[test]
    fn padding_behind_a_name_is_zeros() {
        for name_len in [0, 1, 3, 4, 5, 8, 255] {
            let item = item(&"x".repeat(name_len));
            let mut bytes = put(&item);
            let end = (112 + name_len).next_multiple_of(8);
            assert_eq!(bytes.len(), end + 16);
            assert_eq!(Change::decode_all(&bytes), Ok(vec![Change::Put(item)]));
            for at in 112 + name_len..end {
                bytes[at] = 1;
                let refused = Change::decode_all(&bytes).unwrap_err();
                assert!(refused.contains("padding"), "{refused}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn fields_that_cannot_be_are_refused() {
        let two = Item {
            sources: vec![Lineage(2), Lineage(3)],
            ..item("four")
        };
        let whole = put(&two);
        // The record's reserved byte, the number of sources, the reserved field behind it, the second source: the first one
        // again, the catalogue.
        for (at, value, why) in [
            (1, 1, "reserved"),
            (108, 3, "list of sources"),
            (108, 65, "list of sources"),
            (110, 1, "reserved"),
            (136 + 8, 2, "list of sources"),
            (136 + 8, 0, "list of sources"),
        ] {
            let mut bad = whole.clone();
            bad[at] = value;
            let refused = Change::decode_all(&bad).unwrap_err();
            assert!(refused.contains(why), "{at}: {refused}");
        }
        for (at, why) in [(4, "reserved"), (24, "padding")] {
            let mut bytes = Writer::bare();
            Change::Forget(Lineage(2)).encode(&mut bytes);
            let mut bytes = bytes.into_bytes();
            // Eight bytes more than the record has.
            bytes[2] += 8;
            bytes.extend([0; 8]);
            assert_eq!(
                Change::decode_all(&bytes),
                Ok(vec![Change::Forget(Lineage(2))])
            );
            bytes[at] = 1;
            let refused = Change::decode_all(&bytes).unwrap_err();
            assert!(refused.contains(why), "{at}: {refused}");
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
            let at = (112 + name_len).next_multiple_of(8) + 16;
            assert_eq!(bytes[at..], [1, 0, 4, 0, 0, 0, 0, 0]);
            let read = |bytes: &[u8]| Change::decode_all(bytes);
            assert_eq!(read(&bytes), Ok(vec![report]));
            bytes[at] = 7;
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
