//! The names of RADOS objects. `docs/pool-format.md` has the list.
//!
//! Numbers are in hexadecimal digits of fixed width, so that names and keys sort as the numbers do.

use std::ffi::CStr;
use std::fmt::{self, Write};

use archipelago_protocol::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectKind};

/// The longest name: a lineage (32), `.data.` (6), epoch (16), a dot and a number (17), and the byte that ends it.
const LEN_MAX: usize = 32 + 6 + 16 + 17 + 1;

/// The object that marks a pool as one of ours, with its format.
pub(crate) const MARKER: &CStr = c"pool";
/// The record of the node that serves the pool.
pub(crate) const OWNER: &CStr = c"owner";

/// The name of a RADOS object.
#[derive(Clone, Copy)]
pub(crate) struct ObjectName {
    bytes: [u8; LEN_MAX],
    len: usize,
}

impl ObjectName {
    fn new(text: fmt::Arguments<'_>) -> ObjectName {
        let mut name = ObjectName {
            bytes: [0; LEN_MAX],
            len: 0,
        };
        name.write_fmt(text).expect("names fit, by LEN_MAX");
        name
    }

    /// Object `number` of the data that a lineage wrote in an epoch.
    pub(crate) fn data(id: ObjectId, number: u64) -> ObjectName {
        let (lineage, epoch) = (id.lineage.0, id.number);
        ObjectName::new(format_args!(
            "{lineage:032x}.data.{epoch:016x}.{number:016x}"
        ))
    }

    /// An object that is a RADOS object of its own: anything but data.
    pub(crate) fn whole(id: ObjectId) -> ObjectName {
        let (lineage, number) = (id.lineage.0, id.number);
        let kind = match id.kind {
            ObjectKind::Head => return ObjectName::new(format_args!("{lineage:032x}.head")),
            ObjectKind::Data => "data",
            ObjectKind::Log => "log",
            ObjectKind::Pack => "pack",
            ObjectKind::Content => "content",
        };
        ObjectName::new(format_args!("{lineage:032x}.{kind}.{number:016x}"))
    }

    /// The index of a lineage.
    pub(crate) fn index(lineage: Lineage) -> ObjectName {
        ObjectName::new(format_args!("{:032x}.index", lineage.0))
    }

    /// The part of the index of lineages that lists this one.
    pub(crate) fn lineages(lineage: Lineage) -> ObjectName {
        ObjectName::lineages_part(part_of(lineage))
    }

    /// Part `part` of the index of lineages.
    pub(crate) fn lineages_part(part: u8) -> ObjectName {
        ObjectName::new(format_args!("lineages.{part:x}"))
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).expect("a zero byte follows the name")
    }
}

impl Write for ObjectName {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len + text.len();
        if end >= LEN_MAX {
            return Err(fmt::Error);
        }
        self.bytes[self.len..end].copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_c_str().to_string_lossy())
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectName({self})")
    }
}

/// Parts of the index of lineages: of a million lineages each has 62,500, below the 200,000 keys of an object at which Ceph warns.
pub(crate) const LINEAGE_PARTS: u8 = 16;

/// The part of the index of lineages that lists this one, in the order of lineages.
pub(crate) fn part_of(lineage: Lineage) -> u8 {
    u8::try_from(lineage.0 >> 124).expect("four bits")
}

/// The key of a lineage in its part.
pub(crate) fn lineage_key(lineage: Lineage) -> String {
    format!("{:032x}", lineage.0)
}

/// The lineage of a key; `None` if the key is not valid.
pub(crate) fn parse_lineage_key(key: &[u8]) -> Option<Lineage> {
    let text = std::str::from_utf8(key)
        .ok()
        .filter(|text| text.len() == 32)?;
    u128::from_str_radix(text, 16).ok().map(Lineage)
}

/// The key of an object in the index of its lineage; of data, that of a group of its objects. Keys sort as ids do.
pub(crate) fn index_key(id: ObjectId, group: u64) -> String {
    match id.kind {
        ObjectKind::Data => format!("0.{:016x}.{group:016x}", id.number),
        _ => format!("{}.{:016x}", id.kind as u8, id.number),
    }
}

/// A key above all keys of `id` and below those of the next object.
pub(crate) fn behind_key(id: ObjectId) -> String {
    format!("{}.{:016x}.~", id.kind as u8, id.number)
}

/// A key below all keys of the data `id` and above those of the epoch before.
pub(crate) fn before_data_key(id: ObjectId) -> String {
    format!("0.{:016x}", id.number)
}

/// The object and the group of a key in the index of `lineage`; `None` if the key is not valid.
pub(crate) fn parse_index_key(lineage: Lineage, key: &[u8]) -> Option<(ObjectId, u64)> {
    let text = std::str::from_utf8(key).ok()?;
    let mut parts = text.split('.');
    let kind = match parts.next()? {
        "0" => ObjectKind::Data,
        "1" => ObjectKind::Head,
        "2" => ObjectKind::Log,
        "3" => ObjectKind::Pack,
        "4" => ObjectKind::Content,
        _ => return None,
    };
    let number = u64::from_str_radix(parts.next()?, 16).ok()?;
    let group = match (kind, parts.next()) {
        (ObjectKind::Data, Some(group)) => u64::from_str_radix(group, 16).ok()?,
        (ObjectKind::Data, None) | (_, Some(_)) => return None,
        (_, None) => 0,
    };
    let id = ObjectId {
        lineage,
        kind,
        number,
    };
    (index_key(id, group) == text).then_some((id, group))
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Epoch;

    use super::*;

    const US: Lineage = Lineage(0x0123_4567_89ab_cdef_0011_2233_4455_6677);

    fn all() -> [ObjectId; 7] {
        [
            ObjectId::data(US, Epoch(1)),
            ObjectId::data(US, Epoch(u64::MAX)),
            ObjectId::head(US),
            ObjectId::log(US, 0),
            ObjectId::log(US, 16),
            ObjectId::pack(US, 3),
            ObjectId {
                kind: ObjectKind::Content,
                ..ObjectId::pack(US, 3)
            },
        ]
    }

    #[test]
    fn names_are_those_of_the_document() {
        let text = |name: ObjectName| name.to_string();
        let us = "0123456789abcdef0011223344556677";
        assert_eq!(
            text(ObjectName::data(ObjectId::data(US, Epoch(1)), 255)),
            format!("{us}.data.0000000000000001.00000000000000ff")
        );
        let longest = ObjectName::data(
            ObjectId::data(Lineage(u128::MAX), Epoch(u64::MAX)),
            u64::MAX,
        );
        assert_eq!(text(longest).len(), LEN_MAX - 1);
        assert_eq!(
            text(ObjectName::whole(ObjectId::head(US))),
            format!("{us}.head")
        );
        assert_eq!(
            text(ObjectName::whole(ObjectId::log(US, 16))),
            format!("{us}.log.0000000000000010")
        );
        assert_eq!(text(ObjectName::index(US)), format!("{us}.index"));
        assert_eq!(text(ObjectName::lineages(US)), "lineages.0");
        assert_eq!(text(ObjectName::lineages(Lineage(u128::MAX))), "lineages.f");
    }

    #[test]
    fn keys_sort_as_ids_and_are_read_back() {
        let mut keys = Vec::new();
        for id in all() {
            let groups: &[u64] = match id.kind {
                ObjectKind::Data => &[0, 1, u64::MAX],
                _ => &[0],
            };
            for group in groups {
                let key = index_key(id, *group);
                let before = before_data_key(id);
                let above = keys.last().is_none_or(|last| *last < before || group > &0);
                assert!(
                    id.kind != ObjectKind::Data || before < key && above,
                    "{key}"
                );
                assert!(key < behind_key(id));
                assert_eq!(parse_index_key(US, key.as_bytes()), Some((id, *group)));
                keys.push(key);
            }
            keys.push(behind_key(id));
        }
        assert!(keys.is_sorted(), "{keys:?}");
        for other in [
            "",
            "0.1.2",
            "5.0000000000000001",
            "2.0000000000000001.~",
            "0.0000000000000001",
        ] {
            assert_eq!(parse_index_key(US, other.as_bytes()), None, "{other}");
        }
        assert_eq!(parse_lineage_key(lineage_key(US).as_bytes()), Some(US));
        assert_eq!(parse_lineage_key(b"12"), None);
    }
}
