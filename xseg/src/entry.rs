//! Ring entries: 64 bytes down, 32 bytes up, inline, little-endian words.
//!
//! Invariants
//! - An entry is eight (four) 64-bit words; a transport moves the words and interprets only the tag.
//! - `tag` belongs to the port: the client's port writes it, and the server's port copies it into the completion.
//!
//! Word layout: `docs/segment-format.md`, version 1.

/// Words of a submission: 64 bytes, one cache line.
pub const SUBMISSION_WORDS: usize = 8;
/// Words of a completion: 32 bytes, two to a cache line.
pub const COMPLETION_WORDS: usize = 4;

/// A request from a client to a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Submission {
    /// Slot (low 16 bits) and sequence (high 48 bits) of the client's private table. Set by the port.
    pub tag: u64,
    /// The operation; its numbers belong to the protocol of the channel.
    pub op: u8,
    /// Modifiers of `op`.
    pub flags: u8,
    /// Number of entries of the scatter list at (`region`, `region_offset`); 0: that place is the buffer itself.
    pub count: u16,
    /// Length of the data in bytes.
    pub len: u32,
    /// What the request concerns. The protocol of the channel defines its bits.
    pub handle: u32,
    /// Memory region of the data, or of the scatter list.
    pub region: u32,
    /// Offset in what the handle identifies, in bytes.
    pub offset: u64,
    /// Offset in the region, in bytes.
    pub region_offset: u64,
    /// Further operands.
    pub args: [u64; 3],
}

impl Submission {
    /// The entry as words, in ring order.
    #[must_use]
    pub fn to_words(&self) -> [u64; SUBMISSION_WORDS] {
        let head = u64::from(self.op)
            | u64::from(self.flags) << 8
            | u64::from(self.count) << 16
            | u64::from(self.len) << 32;
        let place = u64::from(self.handle) | u64::from(self.region) << 32;
        [
            self.tag,
            head,
            place,
            self.offset,
            self.region_offset,
            self.args[0],
            self.args[1],
            self.args[2],
        ]
    }

    /// The entry in `words`. Every bit pattern is an entry: the server validates the request.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of packed words"
    )]
    pub fn from_words(words: [u64; SUBMISSION_WORDS]) -> Self {
        let [tag, head, place, offset, region_offset, a, b, c] = words;
        Submission {
            tag,
            op: head as u8,
            flags: (head >> 8) as u8,
            count: (head >> 16) as u16,
            len: (head >> 32) as u32,
            handle: place as u32,
            region: (place >> 32) as u32,
            offset,
            region_offset,
            args: [a, b, c],
        }
    }
}

/// The answer to a submission.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Completion {
    /// The submission's tag.
    pub tag: u64,
    /// Not negative: success, usually a count of bytes. Negative: an error code of the channel's protocol.
    pub result: i32,
    /// Modifiers of the result.
    pub flags: u32,
    /// Further results.
    pub values: [u64; 2],
}

impl Completion {
    /// The entry as words, in ring order.
    #[must_use]
    pub fn to_words(&self) -> [u64; COMPLETION_WORDS] {
        let head = u64::from(self.result.cast_unsigned()) | u64::from(self.flags) << 32;
        [self.tag, head, self.values[0], self.values[1]]
    }

    /// The entry in `words`. Every bit pattern is an entry.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of packed words"
    )]
    pub fn from_words(words: [u64; COMPLETION_WORDS]) -> Self {
        let [tag, head, a, b] = words;
        Completion {
            tag,
            result: (head as u32).cast_signed(),
            flags: (head >> 32) as u32,
            values: [a, b],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_the_way_through_words() {
        let submission = Submission {
            tag: 1,
            op: 2,
            flags: 3,
            count: 4,
            len: 5,
            handle: 6,
            region: 7,
            offset: 8,
            region_offset: 9,
            args: [10, 11, 12],
        };
        assert_eq!(Submission::from_words(submission.to_words()), submission);
        let completion = Completion {
            tag: 1,
            result: -2,
            flags: 3,
            values: [4, 5],
        };
        assert_eq!(Completion::from_words(completion.to_words()), completion);
    }

    #[test]
    fn fields_stand_where_the_segment_has_them() {
        let submission = Submission {
            tag: 0x0706_0504_0302_0100,
            op: 0x10,
            flags: 0x11,
            count: 0x1312,
            len: 0x1716_1514,
            handle: 0x2322_2120,
            region: 0x2726_2524,
            offset: 0x3736_3534_3332_3130,
            region_offset: 0x4746_4544_4342_4140,
            args: [
                0x5756_5554_5352_5150,
                0x6766_6564_6362_6160,
                0x7776_7574_7372_7170,
            ],
        };
        // The bytes of word `w` are 0x10 * w and up, as they lie in memory.
        let words: [u64; SUBMISSION_WORDS] = std::array::from_fn(|word| {
            let first = 0x10 * u8::try_from(word).unwrap();
            u64::from_le_bytes(std::array::from_fn(|byte| {
                first + u8::try_from(byte).unwrap()
            }))
        });
        assert_eq!(submission.to_words(), words);
        assert_eq!(Submission::from_words(words), submission);
        let completion = Completion {
            tag: 0x0706_0504_0302_0100,
            result: -0x0c0d_0e0f,
            flags: 0x1716_1514,
            values: [0x2726_2524_2322_2120, 0x3736_3534_3332_3130],
        };
        let words = [
            0x0706_0504_0302_0100,
            0x1716_1514_f3f2_f1f1,
            0x2726_2524_2322_2120,
            0x3736_3534_3332_3130,
        ];
        assert_eq!(completion.to_words(), words);
        assert_eq!(Completion::from_words(words), completion);
    }
}
