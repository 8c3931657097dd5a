//! Bytes of client memory, which consists of spans: gathered, scattered, and their direction.

use xseg::Span;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write,
}

/// The bytes of `memory`, in its order.
pub(crate) fn gather(memory: &[Span]) -> Vec<u8> {
    let mut bytes = vec![0; memory.iter().map(Span::len).sum()];
    let mut rest = bytes.as_mut_slice();
    for span in memory {
        let (part, after) = rest.split_at_mut(span.len());
        span.read(part);
        rest = after;
    }
    bytes
}

/// Copies as much of `bytes` into `memory` as fits.
pub(crate) fn scatter(mut bytes: &[u8], memory: &[Span]) {
    for span in memory {
        let len = span.len().min(bytes.len());
        let (part, rest) = bytes.split_at(len);
        if let Ok(place) = span.part(0, len) {
            place.write(part);
        }
        bytes = rest;
    }
}
