//! Generic netlink, as far as commands on NBD devices need it: encodes messages and attributes. Pure functions, tested without a kernel.
//!
//! A message: `u32` length, `u16` type, `u16` flags, `u32` sequence number, `u32` port; then `u8` command, `u8` version, `u16` nothing;
//! then attributes: `u16` length, `u16` type, the value, padded to four bytes. All in the byte order of the host.
//! Source: netlink(7), `include/uapi/linux/genetlink.h` of Linux.

/// Bytes of a message's header, and of a command's.
const HEADER_LEN: usize = 16;
const COMMAND_LEN: usize = 4;
/// Bytes of an attribute's header.
const ATTRIBUTE_LEN: usize = 4;
/// Attributes are padded to a multiple of this.
const ALIGN: usize = 4;
/// Flags: a request; answer it in any case.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// Type of the message that reports the result of a request.
const ERROR: u16 = 2;
/// Flags in an attribute's type: it contains attributes; it is in network byte order.
const NESTED: u16 = 1 << 15;
const TYPE_MASK: u16 = 0x3fff;

/// Attributes of a message, as bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attributes(Vec<u8>);

#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is in the byte order of the host"
)]
impl Attributes {
    fn bytes(mut self, kind: u16, value: &[u8]) -> Attributes {
        // A few names and numbers: far below the limit.
        let len = u16::try_from(ATTRIBUTE_LEN + value.len()).unwrap_or(u16::MAX);
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
        self
    }

    /// Adds the number `value`.
    pub(super) fn u32(self, kind: u16, value: u32) -> Attributes {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds the number `value`.
    pub(super) fn u64(self, kind: u16, value: u64) -> Attributes {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// Adds `text`, terminated by a zero.
    pub(super) fn text(self, kind: u16, text: &str) -> Attributes {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.bytes(kind, &value)
    }

    /// Adds `attributes` as one nested attribute.
    pub(super) fn nested(self, kind: u16, attributes: &Attributes) -> Attributes {
        self.bytes(kind | NESTED, &attributes.0)
    }
}

/// A request to the family `family`; the answer contains `sequence`.
#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is in the byte order of the host"
)]
pub(super) fn request(family: u16, command: u8, sequence: u32, attributes: &Attributes) -> Vec<u8> {
    let len = HEADER_LEN + COMMAND_LEN + attributes.0.len();
    let mut bytes = u32::try_from(len)
        .unwrap_or(u32::MAX)
        .to_ne_bytes()
        .to_vec();
    bytes.extend(family.to_ne_bytes());
    bytes.extend((REQUEST | ACK).to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    // The port: the kernel inserts the number of the socket.
    bytes.extend(0_u32.to_ne_bytes());
    // The version, then zeros.
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(&attributes.0);
    bytes
}

/// The kernel's reply to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The request has succeeded, or has failed with this errno.
    Ended(Result<(), i32>),
    /// Attributes, before the end.
    Content(&'a [u8]),
}

#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is in the byte order of the host"
)]
fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let value = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*value))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "netlink is in the byte order of the host"
)]
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let value = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*value))
}

/// The answers to the request `sequence` in the received bytes; a truncated answer ends the list.
pub(super) fn answers(mut bytes: &[u8], sequence: u32) -> Vec<Answer<'_>> {
    let mut answers = Vec::new();
    while let Some(len) = u32_at(bytes, 0)
        && let Ok(len) = usize::try_from(len)
        && len >= HEADER_LEN
        && let Some(message) = bytes.get(..len)
    {
        bytes = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        let is_asked = u32_at(message, 8) == Some(sequence);
        let body = message.get(HEADER_LEN..).unwrap_or_default();
        match u16_at(message, 4) {
            Some(ERROR) if is_asked => {
                let Some(code) = u32_at(body, 0) else { break };
                answers.push(Answer::Ended(match code.cast_signed() {
                    0 => Ok(()),
                    negative => Err(negative.wrapping_neg()),
                }));
            }
            Some(_) if is_asked => {
                let content = body.get(COMMAND_LEN..).unwrap_or_default();
                answers.push(Answer::Content(content));
            }
            // An answer to an earlier request that was not awaited.
            _ => {}
        }
    }
    answers
}

/// The number in the attribute `kind` of `attributes`.
pub(super) fn u16_of(mut attributes: &[u8], kind: u16) -> Option<u16> {
    loop {
        let len = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE_LEN..len)?;
        if u16_at(attributes, 2)? & TYPE_MASK == kind {
            return u16_at(value, 0);
        }
        attributes = attributes.get(len.next_multiple_of(ALIGN)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written down for a little-endian host.
    fn is_little_endian() -> bool {
        cfg!(target_endian = "little")
    }

    #[test]
    fn a_request_is_as_the_kernel_documents_it() {
        if !is_little_endian() {
            return;
        }
        let item = Attributes::default().u32(1, 7);
        let sockets = Attributes::default().nested(1, &item);
        let attributes = Attributes::default()
            .u32(1, 3)
            .u64(2, 1 << 40)
            .text(10, "ab")
            .nested(7, &sockets);
        #[rustfmt::skip]
        let expected = [
            // 16 + 4 + 8 + 12 + 8 + 16 bytes, family 0x21, request and ack, the fifth, no port.
            64, 0, 0, 0, 0x21, 0, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0,
            // Command 1, version 1.
            1, 1, 0, 0,
            8, 0, 1, 0, 3, 0, 0, 0,
            12, 0, 2, 0, 0, 0, 0, 0, 0, 1, 0, 0,
            7, 0, 10, 0, b'a', b'b', 0, 0,
            16, 0, 7, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0,
        ];
        assert_eq!(request(0x21, 1, 5, &attributes), expected);
    }

    #[test]
    fn an_answer_is_that_of_its_request() {
        if !is_little_endian() {
            return;
        }
        #[rustfmt::skip]
        let bytes = [
            // To another request: failed.
            36, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0, 9, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
            20, 0, 0, 0, 0x21, 0, 5, 0, 4, 0, 0, 0, 0, 0, 0, 0,
            // Content: a text of three bytes and the number 0x1f.
            36, 0, 0, 0, 0x10, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, 1, 2, 0, 0,
            7, 0, 2, 0, b'n', b'b', 0, 0, 6, 0, 1, 0, 0x1f, 0, 0, 0,
            // Ended: no such file.
            36, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff,
            20, 0, 0, 0, 0x21, 0, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0,
        ];
        let found = answers(&bytes, 5);
        let [Answer::Content(content), Answer::Ended(Err(2))] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(u16_of(content, 1), Some(0x1f));
        assert_eq!(u16_of(content, 3), None);
        let done = [20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(answers(&done, 1), [Answer::Ended(Ok(()))]);
    }

    #[test]
    fn what_is_cut_short_says_nothing() {
        let message = request(0x10, 3, 1, &Attributes::default().text(2, "nbd"));
        for len in 0..message.len() {
            assert_eq!(answers(&message[..len], 1), [], "{len}");
        }
        for (bytes, kind) in [
            (&[][..], 1),
            (&[0; 8], 0),
            (&[3, 0, 1, 0, 0, 0], 1),
            (&[9, 0, 1, 0, 0, 0], 1),
        ] {
            assert_eq!(u16_of(bytes, kind), None, "{bytes:?}");
        }
    }
}
