//! The id of an object: numbers, never a text.

use crate::ids::{Epoch, Lineage};

/// Bytes of an id in a listing.
pub const OBJECT_ID_LEN: usize = 32;

/// The kind of an object. A part of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum ObjectKind {
    /// Blocks of a volume: `number` is the epoch, `offset` the volume's byte offset.
    Data = 0,
    /// A small object changed by compare-and-swap only: a volume's or the catalogue's head. `number` is 0.
    Head = 1,
    /// A log, appended to in a circle. `number` counts logs of this lineage.
    Log = 2,
    /// Map or catalogue pages, appended, never changed. `number` counts packs of this lineage.
    Pack = 3,
    /// Reserved: immutable content, named by its hash.
    Content = 4,
}

impl ObjectKind {
    pub(crate) fn from_bits(bits: u32) -> Option<Self> {
        Some(match bits {
            0 => ObjectKind::Data,
            1 => ObjectKind::Head,
            2 => ObjectKind::Log,
            3 => ObjectKind::Pack,
            4 => ObjectKind::Content,
            _ => return None,
        })
    }
}

/// Identity of an address space. Only its backend knows how it is divided and placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId {
    /// The lineage that it belongs to.
    pub lineage: Lineage,
    /// Its kind.
    pub kind: ObjectKind,
    /// Epoch of data, running number of logs and packs, 0 for heads.
    pub number: u64,
}

impl ObjectId {
    /// The blocks that `lineage` wrote in `epoch`.
    #[must_use]
    pub fn data(lineage: Lineage, epoch: Epoch) -> Self {
        ObjectId {
            lineage,
            kind: ObjectKind::Data,
            number: epoch.0,
        }
    }

    /// The head of `lineage`.
    #[must_use]
    pub fn head(lineage: Lineage) -> Self {
        ObjectId {
            lineage,
            kind: ObjectKind::Head,
            number: 0,
        }
    }

    /// Log `number` of `lineage`.
    #[must_use]
    pub fn log(lineage: Lineage, number: u64) -> Self {
        ObjectId {
            lineage,
            kind: ObjectKind::Log,
            number,
        }
    }

    /// Pack `number` of `lineage`.
    #[must_use]
    pub fn pack(lineage: Lineage, number: u64) -> Self {
        ObjectId {
            lineage,
            kind: ObjectKind::Pack,
            number,
        }
    }

    /// The id in a listing of [`ObjectOp::List`](super::ObjectOp::List): lineage (high word, low word), number, kind; each a little-endian
    /// u64.
    #[must_use]
    pub fn to_bytes(self) -> [u8; OBJECT_ID_LEN] {
        let [high, low] = self.lineage.to_words();
        let mut bytes = [0; OBJECT_ID_LEN];
        for (index, word) in [high, low, self.number, self.kind as u64]
            .into_iter()
            .enumerate()
        {
            bytes[index * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The id in an entry of a listing; `None` for an unknown kind.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; OBJECT_ID_LEN]) -> Option<Self> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..][..8]);
            u64::from_le_bytes(word)
        };
        let kind = u32::try_from(word(3))
            .ok()
            .and_then(ObjectKind::from_bits)?;
        Some(ObjectId {
            lineage: Lineage::from_words(word(0), word(1)),
            kind,
            number: word(2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_a_listing() {
        let id = ObjectId {
            lineage: Lineage(9 << 64 | 1),
            kind: ObjectKind::Pack,
            number: u64::MAX,
        };
        assert_eq!(ObjectId::from_bytes(&id.to_bytes()), Some(id));
        assert_eq!(ObjectId::from_bytes(&[0xff; OBJECT_ID_LEN]), None);
    }

    #[test]
    fn a_listing_has_four_words_for_an_id() {
        let bytes = ObjectId::log(Lineage(1 << 64 | 2), 3).to_bytes();
        let words = bytes.chunks_exact(8).map(|word| (word[0], &word[1..]));
        assert!(words.eq([1, 2, 3, 2].map(|low| (low, [0; 7].as_slice()))));
    }
}
