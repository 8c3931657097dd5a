//! The result type of readers of sources.

/// A piece that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Its offset in the disk.
    pub(super) offset: u64,
    /// Its length, a multiple of 512: the end of a source is padded with zeros.
    pub(super) len: usize,
}
