//! Requests of the volume peer to the mapper, as ring entries.
//!
//! | op | request | answer: result; flags; values |
//! |---|---|---|
//! | [`MapOp::Open`] | session on a lineage | handle; 0 or [`FLAG_DURABLE_POOL`]; size, object size log2 |
//! | [`MapOp::Close`] | end the session, after everything was flushed | 0 |
//! | [`MapOp::Locate`] | where `len` bytes at `offset` are, or shall be written | bytes of the run; a [`Placement`]; epoch, lineage index |
//! | [`MapOp::Lineage`] | which lineage an index stands for | 0; -; high and low word |
//! | [`MapOp::Written`] | `len` bytes at `offset` were written where a locate returned `First` | 0; [`FLAG_FLUSH_REQUESTED`] |
//! | [`MapOp::Zero`] | whole blocks read as zeros from now on | 0; [`FLAG_FLUSH_REQUESTED`] |
//! | [`MapOp::FlushBegin`] | cut: what is present now | 0 nothing new, 1 something; -; the cut |
//! | [`MapOp::FlushCommit`] | data up to the cut is synced, or journaled: log it, sync the log | 0 |
//! | [`MapOp::SnapshotBegin`] | raise the epoch, for a prepared snapshot | 0; -; new epoch |
//! | [`MapOp::SnapshotCommit`] | the old epoch's data is synced: make the snapshot | 0 |
//! | [`MapOp::SnapshotAbort`] | drop the prepared snapshot; the raised epoch stays | 0 |
//! | [`MapOp::Abandon`] | a sync failed: drop what is not durable, end the session | 0 |
//! | [`MapOp::Status`] | which blocks of `len` bytes at `offset` hold data | how many runs; 0; the runs, [`MapRuns`] |
//!
//! Rules
//! - Answers to one handle's `Locate` and `SnapshotBegin` come in the order in which they took effect: a place that was
//!   located before the answer to `SnapshotBegin` belongs to the old epoch. The volume peer has all such writes
//!   completed and reported before it syncs and commits.
//! - A write to a `First` place is acknowledged upward only after `Written` was answered: from then on the map knows it,
//!   also after the death of the mapper's process.
//! - A status covers at least the first block of its range, and as much more as bounded work has found. Its runs are those of one
//!   moment between request and answer.
//! - Presence that is not covered by a cut is never logged by that cut's commit: data is synced before it is logged.
//! - A commit either follows a sync of everything that was dirty and has [`FLAG_HOME`], or it contains a copy of every block that was
//!   written since the commit or snapshot before it ([`crate::journaled`]), or comes from a pool whose completed writes are durable
//!   ([`FLAG_DURABLE_POOL`]): there is nothing to sync then, and nothing to journal.

use xseg::Submission;

use crate::error::ErrorCode;
use crate::ids::{Epoch, Lineage, ObjectSize};
use crate::reply::Reply;
use crate::status::MapRuns;

/// Operations of the mapper on the data path. The numbers are those of the ring entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "the table at the top of the module describes them"
)]
#[repr(u8)]
pub enum MapOp {
    Open = 1,
    Close = 2,
    Locate = 3,
    Lineage = 4,
    Written = 5,
    Zero = 6,
    FlushBegin = 7,
    FlushCommit = 8,
    SnapshotBegin = 9,
    SnapshotCommit = 10,
    SnapshotAbort = 11,
    Abandon = 12,
    Status = 13,
}

impl MapOp {
    fn from_bits(bits: u8) -> Option<Self> {
        use MapOp::{
            Abandon, Close, FlushBegin, FlushCommit, Lineage, Locate, Open, SnapshotAbort,
            SnapshotBegin, SnapshotCommit, Status, Written, Zero,
        };
        [
            Open,
            Close,
            Locate,
            Lineage,
            Written,
            Zero,
            FlushBegin,
            FlushCommit,
            SnapshotBegin,
            SnapshotCommit,
            SnapshotAbort,
            Abandon,
            Status,
        ]
        .into_iter()
        .find(|op| *op as u8 == bits)
    }
}

/// Flag of [`MapOp::Open`]: open for writing. Flag of [`MapOp::Locate`]: for writing.
pub const FLAG_WRITE: u8 = 1;
/// Flag of [`MapOp::FlushCommit`]: all journaled data is synced at its home location.
pub const FLAG_HOME: u8 = 2;
/// Flag of [`MapOp::Open`]: a sync failed in the last session, and the mapper died before it received [`MapOp::Abandon`]: drop what is not
/// durable.
pub const FLAG_DROP: u8 = 4;
/// Flag in an answer: flush soon, since the memory for unlogged changes is filling up.
pub const FLAG_FLUSH_REQUESTED: u32 = 1 << 8;
/// Flag in an answer to an open: each completed write to the pool is durable.
pub const FLAG_DURABLE_POOL: u32 = 1 << 9;
// Retired in an answer to an open: 1, the last session did not end cleanly.
/// Longest [`MapOp::Locate`] and [`MapOp::Written`]: one object.
pub const LOCATE_LEN_MAX: u64 = 32 << 20;

/// The kind of the run in an answer to [`MapOp::Locate`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Placement {
    /// Reads as zeros; nothing is stored.
    Zero = 0,
    /// Stored at (lineage, epoch): read it there. In answer to a write: owned, write it there, no metadata.
    Stored = 1,
    /// In answer to a write: write whole blocks to (own lineage, epoch), then send [`MapOp::Written`].
    First = 2,
}

impl Placement {
    fn from_bits(bits: u32) -> Option<Self> {
        match bits & 0xff {
            0 => Some(Placement::Zero),
            1 => Some(Placement::Stored),
            2 => Some(Placement::First),
            _ => None,
        }
    }
}

/// A request to the mapper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRequest {
    /// What to do.
    pub op: MapOp,
    /// [`FLAG_WRITE`], [`FLAG_HOME`], [`FLAG_DROP`] or 0.
    pub flags: u8,
    /// The session, from the answer to [`MapOp::Open`].
    pub handle: u32,
    /// Byte offset in the volume, of a block. For [`MapOp::FlushCommit`]: offset of the area in the channel's arena.
    pub offset: u64,
    /// Length in bytes, in whole blocks. For [`MapOp::FlushCommit`]: length of the area, 0 without journaled data.
    pub len: u64,
    /// The lineage to open, the cut, the snapshot's token, the epoch written, the lineage index.
    pub operand: [u64; 2],
}

impl MapRequest {
    /// A request of `op` on session `handle`, with all other fields 0.
    #[must_use]
    pub fn new(op: MapOp, handle: u32) -> Self {
        MapRequest {
            op,
            flags: 0,
            handle,
            offset: 0,
            len: 0,
            operand: [0; 2],
        }
    }

    /// A request to open `lineage`.
    #[must_use]
    pub fn open(lineage: Lineage, for_writing: bool) -> Self {
        let flags = if for_writing { FLAG_WRITE } else { 0 };
        MapRequest {
            flags,
            operand: lineage.to_words(),
            ..MapRequest::new(MapOp::Open, 0)
        }
    }

    /// The request as a ring entry.
    #[must_use]
    pub fn encode(&self) -> Submission {
        Submission {
            op: self.op as u8,
            flags: self.flags,
            handle: self.handle,
            offset: self.offset,
            args: [self.operand[0], self.operand[1], self.len],
            ..Submission::default()
        }
    }

    /// The request in a ring entry, validated for form.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] for an unknown operation, [`ErrorCode::Invalid`] for any other field.
    pub fn decode(entry: &Submission) -> Result<Self, ErrorCode> {
        let op = MapOp::from_bits(entry.op).ok_or(ErrorCode::Unsupported)?;
        let [first, second, len] = entry.args;
        if entry.flags & !(FLAG_WRITE | FLAG_HOME | FLAG_DROP) != 0
            || entry.offset.checked_add(len).is_none()
        {
            return Err(ErrorCode::Invalid);
        }
        Ok(MapRequest {
            op,
            flags: entry.flags,
            handle: entry.handle,
            offset: entry.offset,
            len,
            operand: [first, second],
        })
    }
}

/// The answer to a [`MapRequest`].
pub type MapReply = Reply;

/// Fields of the mapper's answers besides the result.
impl MapReply {
    /// The answer to a locate: `len` bytes lie at `placement` in (`lineage_index`, `epoch`).
    #[must_use]
    pub fn run(len: u32, placement: Placement, epoch: Epoch, lineage_index: u32) -> Self {
        MapReply {
            result: Ok(len),
            flags: placement as u32,
            values: [epoch.0, u64::from(lineage_index)],
        }
    }

    /// The answer to a status.
    #[must_use]
    pub fn status(runs: &MapRuns) -> Self {
        MapReply {
            result: Ok(runs.len()),
            flags: 0,
            values: runs.to_values(),
        }
    }

    /// The runs in the answer to a status.
    ///
    /// # Errors
    /// The error of the request; [`ErrorCode::Internal`] from a mapper with another protocol.
    pub fn status_runs(&self) -> Result<MapRuns, ErrorCode> {
        let count = self.result?;
        let runs = MapRuns::from_values(self.values)?;
        if count != runs.len() {
            return Err(ErrorCode::Internal);
        }
        Ok(runs)
    }

    /// Where the located run is; `None` from a mapper with another protocol.
    #[must_use]
    pub fn placement(&self) -> Option<Placement> {
        Placement::from_bits(self.flags)
    }

    /// Whether the answer to an open reports that each completed write to the pool is durable.
    #[must_use]
    pub fn pool_is_durable(&self) -> bool {
        self.flags & FLAG_DURABLE_POOL != 0
    }

    /// The object size in the answer to an open.
    #[must_use]
    pub fn object_size(&self) -> Option<ObjectSize> {
        u8::try_from(self.values[1])
            .ok()
            .and_then(ObjectSize::from_log2)
    }
}

#[cfg(test)]
mod tests {
    use xseg::Completion;

    use super::*;
    use crate::status::BlockState;

    #[test]
    fn requests_and_replies_survive_the_ring() {
        let request = MapRequest {
            offset: 4096,
            len: 8192,
            ..MapRequest::open(Lineage(5 << 64 | 6), true)
        };
        assert_eq!(MapRequest::decode(&request.encode()), Ok(request));
        let reply = MapReply::run(4096, Placement::First, Epoch(7), 2);
        assert_eq!(MapReply::decode(&reply.encode(1)), reply);
        assert_eq!(reply.placement(), Some(Placement::First));
    }

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let request = MapRequest {
            flags: FLAG_WRITE | FLAG_HOME | FLAG_DROP,
            handle: 9,
            offset: 4096,
            len: 8192,
            ..MapRequest::open(Lineage(5 << 64 | 6), false)
        };
        let entry = Submission {
            tag: 0,
            op: 1,
            flags: 7,
            count: 0,
            len: 0,
            handle: 9,
            region: 0,
            offset: 4096,
            region_offset: 0,
            args: [5, 6, 8192],
        };
        assert_eq!(request.encode(), entry);
        assert_eq!(MapRequest::decode(&entry), Ok(request));
        let reply = MapReply {
            flags: 2 | FLAG_FLUSH_REQUESTED,
            ..MapReply::run(4096, Placement::Zero, Epoch(7), 3)
        };
        let entry = Completion {
            tag: 8,
            result: 4096,
            flags: 0x102,
            values: [7, 3],
        };
        assert_eq!(reply.encode(8), entry);
        assert_eq!(MapReply::decode(&entry), reply);
        let failed = MapReply::failed(ErrorCode::Stale);
        assert_eq!(failed.encode(8).result, -9);
        assert_eq!(MapReply::decode(&failed.encode(8)), failed);
    }

    #[test]
    fn an_answer_to_a_status_has_its_runs() {
        let mut runs = MapRuns::default();
        runs.push(BlockState::Hole, 3);
        runs.push(BlockState::Data, 1);
        let reply = MapReply::status(&runs);
        assert_eq!((reply.result, reply.values), (Ok(2), [12 | 5 << 32, 0]));
        assert_eq!(MapReply::decode(&reply.encode(1)).status_runs(), Ok(runs));
        let other = MapReply {
            result: Ok(1),
            ..reply
        };
        assert_eq!(other.status_runs(), Err(ErrorCode::Internal));
        let failed = MapReply::failed(ErrorCode::Damaged);
        assert_eq!(failed.status_runs(), Err(ErrorCode::Damaged));
    }

    #[test]
    fn every_operation_has_its_number() {
        for bits in 0..=u8::MAX {
            let entry = Submission {
                op: bits,
                ..Submission::default()
            };
            let op = MapRequest::decode(&entry).map(|request| request.op as u8);
            let expected = match bits {
                1..=13 => Ok(bits),
                _ => Err(ErrorCode::Unsupported),
            };
            assert_eq!(op, expected);
        }
    }

    #[test]
    fn unknown_flags_and_ranges_beyond_the_end_are_refused() {
        let good = MapRequest::new(MapOp::Written, 1).encode();
        for flags in 0..=u8::MAX {
            let decoded = MapRequest::decode(&Submission { flags, ..good });
            assert_eq!(decoded.is_ok(), flags < 8, "flags {flags:#x}");
        }
        let at_end = |len| Submission {
            offset: u64::MAX - 4096,
            args: [0, 0, len],
            ..good
        };
        assert!(MapRequest::decode(&at_end(4096)).is_ok());
        assert_eq!(
            MapRequest::decode(&at_end(4097)),
            Err(ErrorCode::Invalid),
            "with flags that are known"
        );
    }

    #[test]
    fn a_locate_covers_the_largest_object_at_most() {
        assert_eq!(LOCATE_LEN_MAX, ObjectSize::MAX.bytes());
    }

    #[test]
    fn an_open_asks_to_write_or_not() {
        let [to_read, to_write] = [false, true].map(|write| MapRequest::open(Lineage(1), write));
        assert_eq!((to_read.flags, to_write.flags), (0, FLAG_WRITE));
        assert_eq!((to_read.op, to_read.operand), (MapOp::Open, [0, 1]));
    }

    #[test]
    fn an_answer_says_its_placement_beside_its_flags() {
        let decoded = |flags| {
            MapReply {
                flags,
                ..MapReply::done(4096)
            }
            .placement()
        };
        for (bits, placement) in [
            (0, Some(Placement::Zero)),
            (1, Some(Placement::Stored)),
            (2, Some(Placement::First)),
            (3, None),
            (0xff, None),
        ] {
            assert_eq!(decoded(bits), placement);
            assert_eq!(decoded(bits | FLAG_FLUSH_REQUESTED), placement);
        }
    }

    #[test]
    fn an_answer_to_an_open_says_the_object_size() {
        let decoded = |log2| {
            MapReply {
                values: [1 << 30, log2],
                ..MapReply::done(1)
            }
            .object_size()
        };
        assert_eq!(decoded(22), Some(ObjectSize::DEFAULT));
        // The low byte alone would be a legal size.
        for log2 in [0, 15, 26, 256 + 22, u64::MAX] {
            assert_eq!(decoded(log2), None, "{log2}");
        }
    }

    #[test]
    fn a_count_that_no_answer_can_have_is_a_mistake_of_ours() {
        let entry = MapReply::done(u32::MAX).encode(0);
        assert_eq!(
            MapReply::decode(&entry),
            MapReply::failed(ErrorCode::Internal)
        );
    }
}
