//! What a run does: operations with plain numbers, so that any sequence of them is a legal plan.

use archipelago_doubles::simulated::Random;
use archipelago_protocol::volume::VolumeOp;

/// One operation. What does not apply is skipped. Numbers of things: 0 and 1 are the first and the second, larger ones are
/// taken modulo what there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Writes sectors; others go on meanwhile, also where they meet.
    Write {
        /// Which open volume.
        volume: u8,
        /// First sector.
        first: u16,
        /// Sectors.
        count: u16,
        /// Force unit access.
        durable: bool,
    },
    /// Makes sectors zeros; others go on meanwhile, also where they meet.
    Zero {
        /// Which open volume.
        volume: u8,
        /// First sector.
        first: u16,
        /// Sectors.
        count: u16,
        /// A discard, or write zeroes of some kind.
        how: VolumeOp,
    },
    /// Flushes; others go on meanwhile.
    Flush {
        /// Which open volume.
        volume: u8,
    },
    /// Snapshots an open volume; others go on meanwhile.
    Snapshot {
        /// Which open volume.
        volume: u8,
    },
    /// Closes a volume, snapshots it, opens it again.
    SnapshotClosed {
        /// Which open volume.
        volume: u8,
    },
    /// Clones a snapshot and opens the clone.
    Clone {
        /// Which snapshot.
        snapshot: u8,
        /// Blocks that the clone is larger.
        grow: u8,
    },
    /// Removes a snapshot, or a volume that is closed for it.
    Remove(Target),
    /// Gives a thing another name.
    Rename(Target),
    /// Grows an open volume.
    Grow {
        /// Which open volume.
        volume: u8,
        /// Blocks.
        blocks: u8,
    },
    /// Closes a volume, cuts it off and grows it again to its size: what was cut off reads as zeros.
    Shrink {
        /// Which open volume.
        volume: u8,
        /// Blocks.
        blocks: u8,
    },
    /// Closes a volume cleanly and opens it again.
    Reopen {
        /// Which open volume.
        volume: u8,
    },
    /// Writes and flushes until a checkpoint has happened.
    Checkpoint {
        /// Which open volume.
        volume: u8,
    },
    /// The mapper dies while the volume peer lives, whatever is in flight.
    MapperDeath,
    /// Another node takes the pool and opens everything while this one goes on, whatever is in flight.
    TakeOver,
    /// The next call that makes something durable fails, whatever is in flight; a flush sees to it that there is one.
    FailedSync {
        /// Which open volume is flushed.
        volume: u8,
    },
    /// Reads everything.
    Verify,
}

/// A named thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A volume.
    Volume(u8),
    /// A snapshot.
    Snapshot(u8),
}

/// Blocks of a new volume: an object and a half.
pub const BLOCKS: u64 = 24;

/// First sector and sectors of what [`Op::Checkpoint`] writes.
pub const FILLER: (usize, usize) = (160, 24);

/// A random plan of `len` operations, each with the number of backend calls that may complete before the next.
#[must_use]
pub fn random(random: &mut Random, len: usize) -> Vec<(Op, usize)> {
    (0..len)
        .map(|_| {
            let op = random_op(random);
            let pause = [0, 1, 2, 5, 1000][below(random, 5)];
            (op, pause)
        })
        .collect()
}

fn below(random: &mut Random, bound: u64) -> usize {
    usize::try_from(random.below(bound)).expect("small")
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers below a bound that fits"
)]
fn random_op(random: &mut Random) -> Op {
    let mut small = |bound: u64| random.below(bound) as u8;
    let volume = 2 + small(6);
    let (first, count) = match small(4) {
        // Whole blocks, few places so that they meet.
        0..2 => (u16::from(small(12)) * 8, u16::from(small(3) + 1) * 8),
        // Parts of blocks.
        2 => (u16::from(small(100)), u16::from(small(12) + 1)),
        // Over the edge of an object.
        _ => (128 - u16::from(small(12)), u16::from(small(24) + 1)),
    };
    let durable = small(4) == 0;
    let target = match small(2) {
        0 => Target::Volume(volume),
        _ => Target::Snapshot(volume),
    };
    match small(52) {
        0..16 => Op::Write {
            volume,
            first,
            count,
            durable,
        },
        16..21 => Op::Zero {
            volume,
            first,
            count,
            how: [
                VolumeOp::Discard,
                VolumeOp::WriteZeroes {
                    unmap: false,
                    durable,
                },
                VolumeOp::WriteZeroes {
                    unmap: true,
                    durable,
                },
            ][usize::from(small(3))],
        },
        21..28 => Op::Flush { volume },
        28..31 => Op::Snapshot { volume },
        31 => Op::SnapshotClosed { volume },
        32..34 => Op::Clone {
            snapshot: volume,
            grow: small(2) * 8,
        },
        34 => Op::Remove(target),
        35 => Op::Rename(target),
        36 => Op::Grow {
            volume,
            blocks: small(8) + 1,
        },
        37 => Op::Shrink {
            volume,
            blocks: small(12) + 1,
        },
        38..40 => Op::Reopen { volume },
        40..42 => Op::Checkpoint { volume },
        42..44 => Op::MapperDeath,
        44..46 => Op::TakeOver,
        46..49 => Op::FailedSync { volume },
        _ => Op::Verify,
    }
}

const fn write(volume: u8, first: u16, count: u16, durable: bool) -> Op {
    Op::Write {
        volume,
        first,
        count,
        durable,
    }
}

const fn zero(first: u16, count: u16, how: VolumeOp) -> Op {
    Op::Zero {
        volume: 0,
        first,
        count,
        how,
    }
}

/// The operations whose every short sequence is tried.
pub const ALPHABET: [Op; 22] = [
    write(0, 0, 8, false),
    write(0, 3, 2, false),
    write(0, 120, 16, false),
    write(0, 4, 16, true),
    write(1, 0, 8, false),
    zero(0, 8, VolumeOp::Discard),
    zero(
        2,
        10,
        VolumeOp::WriteZeroes {
            unmap: false,
            durable: true,
        },
    ),
    zero(
        0,
        16,
        VolumeOp::WriteZeroes {
            unmap: true,
            durable: false,
        },
    ),
    Op::Flush { volume: 0 },
    Op::Snapshot { volume: 0 },
    Op::Clone {
        snapshot: 0,
        grow: 0,
    },
    Op::Remove(Target::Volume(0)),
    Op::Remove(Target::Volume(1)),
    Op::Remove(Target::Snapshot(0)),
    Op::Rename(Target::Volume(0)),
    Op::Grow {
        volume: 0,
        blocks: 1,
    },
    Op::Shrink {
        volume: 0,
        blocks: 23,
    },
    Op::Reopen { volume: 0 },
    Op::Checkpoint { volume: 0 },
    Op::MapperDeath,
    Op::TakeOver,
    Op::FailedSync { volume: 0 },
];

/// The sequence that `letters` of [`ALPHABET`] spell. How long an operation goes on before the next is begun depends on the
/// letters up to it and on `seed`: what a sequence does is what every longer one that begins with it does first.
#[must_use]
pub fn spelled(letters: &[usize], seed: u64) -> Vec<(Op, usize)> {
    let mut hash = seed;
    letters
        .iter()
        .map(|letter| {
            hash = Random::new(hash ^ (*letter as u64 + 1)).next_u64();
            let pause = [0, 1, 1, 2, 1000, 1000][usize::try_from(hash % 6).expect("small")];
            (ALPHABET[*letter], pause)
        })
        .collect()
}
