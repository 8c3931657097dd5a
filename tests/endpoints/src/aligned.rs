//! Memory for direct I/O.

/// Memory for direct I/O: the aligned part of a larger piece.
pub(crate) struct Aligned {
    bytes: Vec<u8>,
    begin: usize,
}

impl Aligned {
    pub(crate) fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + 4096];
        let begin = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, begin }
    }

    pub(crate) fn get(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.begin..self.begin + len]
    }
}

impl std::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Aligned").finish_non_exhaustive()
    }
}
