//! What the backends in memory share: objects consist of pages, and the bytes of a request lie in spans.

use std::ops::Range;

use xseg::Span;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Calls `each` with (page, offset in it, range of the buffer) for each page of `len` bytes at `offset`.
pub(crate) fn for_pages(offset: u64, len: usize, mut each: impl FnMut(u64, usize, Range<usize>)) {
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let within = usize::try_from(at % PAGE as u64).expect("below a page");
        let piece = (PAGE - within).min(len - done);
        each(at / PAGE as u64, within, done..done + piece);
        done += piece;
    }
}

/// Collects the bytes of `memory` in `into`.
pub(crate) fn gather(into: &mut Vec<u8>, memory: &[Span]) {
    into.clear();
    into.resize(memory.iter().map(Span::len).sum(), 0);
    let mut rest = into.as_mut_slice();
    for span in memory {
        let (piece, after) = rest.split_at_mut(span.len());
        span.read(piece);
        rest = after;
    }
}

/// Puts `bytes` into the beginning of `memory`.
pub(crate) fn scatter(bytes: &[u8], memory: &[Span]) {
    let mut rest = bytes;
    for span in memory {
        let (piece, after) = rest.split_at(span.len().min(rest.len()));
        if piece.is_empty() {
            return;
        }
        span.part(0, piece.len())
            .expect("not longer than the span")
            .write(piece);
        rest = after;
    }
}
