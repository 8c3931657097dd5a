//! What readers of sources give.

/// A piece that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Where it belongs.
    pub(super) offset: u64,
    /// Bytes of it, a multiple of 512: the last one is filled up with zeros.
    pub(super) len: usize,
}
