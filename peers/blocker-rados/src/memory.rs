//! Bytes of requests: from several places into one buffer, and back.
//!
//! Invariant: a byte is copied once on its way; a request with one span is not copied here at all.

use xseg::Span;

/// Zeros for the missing end of a short object.
const ZEROS: [u8; 4096] = [0; 4096];

/// The bytes of all spans, copied once: the checked bytes are the written ones.
pub(crate) fn gather(spans: &[Span]) -> Vec<u8> {
    let len = spans.iter().map(Span::len).sum();
    let mut bytes = vec![0; len];
    let mut at = 0;
    for span in spans {
        span.read(&mut bytes[at..at + span.len()]);
        at += span.len();
    }
    bytes
}

/// Copies `bytes` into the spans, and zeros into the rest of them.
pub(crate) fn scatter(bytes: &[u8], spans: &[Span]) {
    let mut rest = bytes;
    for span in spans {
        let count = span.len().min(rest.len());
        let (now, later) = rest.split_at(count);
        if let Ok(part) = span.part(0, count) {
            part.write(now);
        }
        fill_zeros(span, count);
        rest = later;
    }
}

/// Zeros from byte `from` of the span on.
pub(crate) fn fill_zeros(span: &Span, from: usize) {
    let mut at = from;
    while at < span.len() {
        let count = ZEROS.len().min(span.len() - at);
        if let Ok(part) = span.part(at, count) {
            part.write(&ZEROS[..count]);
        }
        at += count;
    }
}

#[cfg(test)]
mod tests {
    use xseg::Region;

    use super::*;

    #[test]
    fn bytes_keep_their_order_over_spans_and_the_rest_is_zeros() {
        let region = Region::anonymous(65_536).unwrap();
        region.fill(0, 65_536, 7).unwrap();
        let spans =
            [(8192, 5000), (0, 10), (100, 6)].map(|(at, len)| region.span(at, len).unwrap());
        let bytes: Vec<u8> = (0..5012_u32).map(|at| (at % 251) as u8).collect();
        scatter(&bytes, &spans);
        let mut expected = bytes.clone();
        expected.extend([0; 4]);
        assert_eq!(gather(&spans), expected);
        scatter(&[], &spans);
        assert_eq!(gather(&spans), [0; 5016]);
        let mut after = [0];
        region.read(8192 + 5000, &mut after).unwrap();
        assert_eq!(after, [7], "nothing beyond");
    }
}
