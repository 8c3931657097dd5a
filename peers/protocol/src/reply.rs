//! The answer to a request of any ring protocol, and its encoding as a ring entry.
//!
//! A completion has a count or a negated [`ErrorCode`] as its result, flags, and two values. Their meaning depends on the operation:
//! [`crate::object`], [`crate::map`], and the segment channel of a volume.

use xseg::Completion;

use crate::error::ErrorCode;

/// The answer to a request on a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply {
    /// The count of the operation, or its error.
    pub result: Result<u32, ErrorCode>,
    /// Flags of the operation; 0 if it has none.
    pub flags: u32,
    /// Values of the operation.
    pub values: [u64; 2],
}

impl Reply {
    /// Success with count `result`, without flags and values.
    #[must_use]
    pub fn done(result: u32) -> Self {
        Reply {
            result: Ok(result),
            flags: 0,
            values: [0; 2],
        }
    }

    /// Failure.
    #[must_use]
    pub fn failed(code: ErrorCode) -> Self {
        Reply {
            result: Err(code),
            flags: 0,
            values: [0; 2],
        }
    }

    /// The reply as a ring entry to the request with `tag`.
    #[must_use]
    pub fn encode(&self, tag: u64) -> Completion {
        let result = match self.result {
            // Counts, handles and runs stay below 2^31; a larger one would be a bug.
            Ok(count) => i32::try_from(count).unwrap_or(ErrorCode::Internal.to_result()),
            Err(code) => code.to_result(),
        };
        Completion {
            tag,
            result,
            flags: self.flags,
            values: self.values,
        }
    }

    /// The reply in a ring entry.
    #[must_use]
    pub fn decode(entry: &Completion) -> Self {
        let result =
            u32::try_from(entry.result).map_err(|_negative| ErrorCode::from_result(entry.result));
        Reply {
            result,
            flags: entry.flags,
            values: entry.values,
        }
    }
}

impl From<Result<(), ErrorCode>> for Reply {
    /// The answer to an operation without a count.
    fn from(result: Result<(), ErrorCode>) -> Self {
        result.map_or_else(Reply::failed, |()| Reply::done(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_wire_has_them() {
        let reply = Reply {
            flags: 0x102,
            values: [1, 2],
            ..Reply::done(3)
        };
        let entry = Completion {
            tag: 4,
            result: 3,
            flags: 0x102,
            values: [1, 2],
        };
        assert_eq!(reply.encode(4), entry);
        assert_eq!(Reply::decode(&entry), reply);
        let failed = Reply::failed(ErrorCode::NoSpace);
        assert_eq!(failed.encode(4).result, -5);
        assert_eq!(Reply::decode(&failed.encode(4)), failed);
        let mistake = Reply::done(u32::MAX).encode(4);
        let internal = Reply::failed(ErrorCode::Internal);
        assert_eq!(Reply::decode(&mistake), internal);
        assert_eq!(Reply::from(Ok(())), Reply::done(0));
        assert_eq!(
            Reply::from(Err(ErrorCode::Io)),
            Reply::failed(ErrorCode::Io)
        );
    }
}
