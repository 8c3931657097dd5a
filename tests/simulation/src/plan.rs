//! What a run does: operations with plain numbers, so that any sequence of them is a legal plan.

use archipelago_blocker::simulated::Random;

/// One operation. Numbers are taken modulo what there is; what does not apply is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Writes sectors; others go on meanwhile.
    Write {
        /// Which open volume.
        volume: u8,
        /// First sector.
        first: u16,
        /// Sectors.
        count: u16,
    },
    /// Makes whole blocks zeros; others go on meanwhile.
    Zero {
        /// Which open volume.
        volume: u8,
        /// First block.
        first: u16,
        /// Blocks.
        count: u16,
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
    Remove {
        /// Which thing.
        thing: u8,
    },
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
    /// Reads everything.
    Verify,
}

/// Blocks of a new volume: two objects and a half.
pub const BLOCKS: u64 = 40;

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
    let volume = small(4);
    let first = u16::from(small(BLOCKS as u8 as u64));
    match small(40) {
        // Whole blocks, few places so that they meet.
        0..8 => Op::Write {
            volume,
            first: first % 20 * 8,
            count: u16::from(small(3) + 1) * 8,
        },
        // Parts of blocks.
        8..14 => Op::Write {
            volume,
            first: first * 4 + u16::from(small(8)),
            count: u16::from(small(12) + 1),
        },
        // Over the edge of an object.
        14..16 => Op::Write {
            volume,
            first: 128 - u16::from(small(12)),
            count: u16::from(small(24) + 1),
        },
        16..18 => Op::Zero {
            volume,
            first,
            count: u16::from(small(6) + 1),
        },
        18..26 => Op::Flush { volume },
        26..29 => Op::Snapshot { volume },
        29 => Op::SnapshotClosed { volume },
        30..32 => Op::Clone {
            snapshot: volume,
            grow: small(2) * 8,
        },
        32 => Op::Remove { thing: small(8) },
        33 => Op::Grow {
            volume,
            blocks: small(8) + 1,
        },
        34 => Op::Shrink {
            volume,
            blocks: small(20) + 1,
        },
        35..38 => Op::Reopen { volume },
        _ => Op::Verify,
    }
}

/// The operations whose every short sequence is tried.
pub const ALPHABET: [Op; 10] = [
    Op::Write {
        volume: 0,
        first: 0,
        count: 8,
    },
    Op::Write {
        volume: 0,
        first: 3,
        count: 2,
    },
    Op::Write {
        volume: 0,
        first: 120,
        count: 16,
    },
    Op::Write {
        volume: 1,
        first: 0,
        count: 8,
    },
    Op::Zero {
        volume: 0,
        first: 0,
        count: 1,
    },
    Op::Flush { volume: 0 },
    Op::Snapshot { volume: 0 },
    Op::Clone {
        snapshot: 0,
        grow: 0,
    },
    Op::Reopen { volume: 0 },
    Op::Remove { thing: 1 },
];

/// Sequence `number` of length `len` over [`ALPHABET`]; `None`: there are not so many.
#[must_use]
pub fn nth(len: u32, mut number: usize) -> Option<Vec<(Op, usize)>> {
    let letters = ALPHABET.len();
    if number >= letters.pow(len) {
        return None;
    }
    // Odd places let what was started go on while the next is begun.
    let sequence = (0..len).map(|place| {
        let op = ALPHABET[number % letters];
        number /= letters;
        (op, if place % 2 == 0 { 1000 } else { 1 })
    });
    Some(sequence.collect())
}
