//! The commands of requests, validated, and the volume's operation for each.

use archipelago_protocol::volume::VolumeOp;

/// A validated command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// The client ends the connection.
    Disconnect,
    /// Reads.
    Read,
    /// Writes the data that follows.
    Write {
        /// Durable when answered.
        durable: bool,
    },
    /// Everything that was answered is durable.
    Flush,
    /// The range is not needed any more; reads as zeros.
    Trim {
        /// As for writes.
        durable: bool,
    },
    /// The range reads as zeros.
    WriteZeroes {
        /// Its space may be given back.
        unmap: bool,
        /// As for writes.
        durable: bool,
    },
    /// Block status of the range, from its start: as many extents as the server returns.
    BlockStatus {
        /// One extent is enough.
        one: bool,
    },
    /// The range is about to be read: nothing to do, there is no cache.
    Cache,
}

impl Command {
    /// Whether its answer means that earlier writes, or this one, are durable.
    #[must_use]
    pub fn flushes(self) -> bool {
        match self {
            Command::Flush => true,
            Command::Write { durable }
            | Command::Trim { durable }
            | Command::WriteZeroes { durable, .. } => durable,
            Command::Disconnect | Command::Read | Command::BlockStatus { .. } | Command::Cache => {
                false
            }
        }
    }

    /// Whether a request of `len` bytes needs no operation, and is answered at once.
    #[must_use]
    pub fn is_noop(self, len: u32) -> bool {
        match self {
            Command::Cache => true,
            Command::Flush | Command::Disconnect => false,
            _ => len == 0,
        }
    }

    /// The volume's operation for it; `None` if it needs none.
    #[must_use]
    pub fn operation(self) -> Option<VolumeOp> {
        Some(match self {
            Command::Read => VolumeOp::Read,
            Command::Write { durable } => VolumeOp::Write { durable },
            Command::Flush => VolumeOp::Flush,
            Command::Trim { durable: false } => VolumeOp::Discard,
            // A discard has no durable variant; zeros whose space is given back are equivalent.
            Command::Trim { durable: true } => VolumeOp::WriteZeroes {
                unmap: true,
                durable: true,
            },
            Command::WriteZeroes { unmap, durable } => VolumeOp::WriteZeroes { unmap, durable },
            Command::BlockStatus { .. } => VolumeOp::BlockStatus,
            Command::Disconnect | Command::Cache => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changes_or_tells_nothing_is_done_at_once() {
        for (command, len, expected) in [
            (Command::Cache, 512, true),
            (Command::Flush, 0, false),
            (Command::Disconnect, 0, false),
            (Command::Read, 0, true),
            (Command::Read, 512, false),
            (Command::Trim { durable: true }, 0, true),
        ] {
            assert_eq!(command.is_noop(len), expected, "{command:?} of {len}");
        }
    }

    #[test]
    fn a_durable_trim_is_durable_zeros_whose_space_is_given_back() {
        let zeros = |unmap, durable| Some(VolumeOp::WriteZeroes { unmap, durable });
        let trim = |durable| Command::Trim { durable }.operation();
        assert_eq!(trim(true), zeros(true, true));
        assert_eq!(trim(false), Some(VolumeOp::Discard));
    }
}
