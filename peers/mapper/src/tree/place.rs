//! Words of a map: layers, pages, ranges of blocks; and the shape of its nodes.

use archipelago_protocol::{Epoch, Lineage};

/// Objects of a leaf.
pub(crate) const LEAF_OBJECTS: u64 = 512;
/// Children of an inner node.
pub(crate) const FAN_OUT: u64 = 256;
/// The same as lengths of tables.
pub(super) const LEAF_SLOTS: usize = 512;
pub(super) const FAN_SLOTS: usize = 256;
const _: () = assert!(LEAF_SLOTS as u64 == LEAF_OBJECTS && FAN_SLOTS as u64 == FAN_OUT);
/// Highest level: 512 objects of 64 KiB times 256^4 are 2^57 bytes, more than the largest volume.
pub(crate) const LEVEL_MAX: u8 = 4;

/// The objects of one epoch of one lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Layer {
    pub(crate) lineage: Lineage,
    pub(crate) epoch: Epoch,
}

/// Where a page is stored, and what it must hash to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PageRef {
    /// Whose pack: a clone's tree refers to pages of its ancestors.
    pub(crate) lineage: Lineage,
    pub(crate) pack: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

/// Where a page may go: behind what was written of a pack, or to the packs after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackPlace {
    /// Of the pack.
    pub(crate) number: u64,
    pub(crate) offset: u64,
    /// Bytes of a pack at most. Only a page that is longer, alone in its pack, passes it.
    pub(crate) len_max: u64,
}

/// A page that has to be loaded first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    pub(crate) page: PageRef,
    pub(crate) level: u8,
}

/// The root of a stored tree. `None`: everything is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Root {
    pub(crate) page: Option<PageRef>,
    pub(crate) level: u8,
}

/// A run of blocks in the tree's numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Range {
    pub(crate) fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub(crate) fn cut(self, other: Range) -> Range {
        Range {
            start: self.start.max(other.start),
            end: self.end.min(other.end),
        }
    }
}

/// Where blocks that are written go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WritePlace {
    /// Where they are: into the objects of this epoch, up to block `end`.
    Owned { epoch: Epoch, end: u64 },
    /// To a new place: nothing up to block `end` is owned.
    Unowned { end: u64 },
}

/// Where a block of an object is: object sizes are at most 8192 blocks.
pub(super) fn small(blocks: u64) -> u16 {
    u16::try_from(blocks).expect("an object has at most 8192 blocks")
}

pub(super) fn index(number: u64) -> usize {
    usize::try_from(number).expect("below the fan-out")
}
