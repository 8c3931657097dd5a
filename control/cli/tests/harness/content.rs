//! What disks and files hold in the tests.

use crate::harness::Node;

/// Bytes that no two places share, from a seed (xorshift).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    repeated_noise(seed, len, 1)
}

/// Noise whose words stand `runs` times each: it can be compressed.
pub(crate) fn repeated_noise(seed: u64, len: usize, runs: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let words = (0..len.div_ceil(8 * runs)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes().repeat(runs)
    });
    words.take(len).collect()
}

/// A file in the directory of `node`; its path.
pub(crate) fn file(node: &Node, name: &str, content: &[u8]) -> String {
    let path = node.path(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
