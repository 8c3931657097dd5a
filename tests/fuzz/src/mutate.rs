//! Mutations of an input from a seed, for machines without libFuzzer. Nothing clever: what it finds is found in seconds.

/// A repeatable stream of numbers (splitmix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    #[expect(
        clippy::should_implement_trait,
        reason = "an endless stream needs no Option"
    )]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `bound`.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        // A remainder of `bound` fits where `bound` did.
        usize::try_from(self.next() % bound as u64).unwrap_or(0)
    }
}

/// Numbers at which arithmetic breaks.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Changes `bytes` in one to eight places; `other`: what pieces are borrowed from.
pub fn mutate(random: &mut Random, bytes: &mut Vec<u8>, other: &[u8], len_max: usize) {
    for _ in 0..1 << random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next().to_le_bytes()[0],
            2 => bytes.insert(at, random.next().to_le_bytes()[0]),
            3 => {
                let end = bytes.len().min(at + 1 + random.below(16));
                bytes.drain(at..end);
            }
            4 => {
                let width = 1 << random.below(4);
                let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
                let end = bytes.len().min(at + width);
                bytes[at..end].copy_from_slice(&edge[..end - at]);
            }
            5 if !other.is_empty() => {
                let from = random.below(other.len());
                let to = other.len().min(from + 1 + random.below(64));
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            6 if !other.is_empty() => {
                let from = random.below(other.len());
                let len = (1 + random.below(64))
                    .min(other.len() - from)
                    .min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&other[from..from + len]);
            }
            _ => {
                let end = bytes.len().min(at + 1 + random.below(32));
                let piece = bytes[at..end].to_vec();
                bytes.splice(end..end, piece);
            }
        }
    }
    bytes.truncate(len_max);
}
