//! A request of the kernel, decoded and validated.

use archipelago_endpoint::NotServed;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::volume::VolumeOp;
use archipelago_runtime::ublk::abi::{Descriptor, operation};
use nix::errno::Errno;

use crate::layout::BUFFER_LEN;

/// A validated request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) op: VolumeOp,
    /// Offset in the volume.
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Request {
    /// # Errors
    /// The error to answer at once.
    pub(crate) fn decode(descriptor: &Descriptor) -> Result<Request, Errno> {
        let flags = descriptor.op_flags;
        let durable = flags & operation::FUA != 0;
        let op = match flags & operation::MASK {
            operation::READ => VolumeOp::Read,
            operation::WRITE => VolumeOp::Write { durable },
            operation::FLUSH => VolumeOp::Flush,
            operation::DISCARD => VolumeOp::Discard,
            operation::WRITE_ZEROES => VolumeOp::WriteZeroes {
                unmap: flags & operation::NO_UNMAP == 0,
                durable,
            },
            _ => return Err(Errno::EOPNOTSUPP),
        };
        if op == VolumeOp::Flush {
            return Ok(Request {
                op,
                offset: 0,
                len: 0,
            });
        }
        let offset = descriptor.start_sector.checked_mul(SECTOR_SIZE);
        let request = Request {
            op,
            offset: offset.ok_or(Errno::EINVAL)?,
            len: u64::from(descriptor.sectors) * SECTOR_SIZE,
        };
        match request.has_data() && request.len > u64::from(BUFFER_LEN) {
            true => Err(Errno::EINVAL),
            false => Ok(request),
        }
    }

    /// Whether it uses bytes of its buffer.
    pub(crate) fn has_data(&self) -> bool {
        matches!(self.op, VolumeOp::Read | VolumeOp::Write { .. })
    }

    /// The answer to the kernel.
    pub(crate) fn answer(&self, result: Result<(), Errno>) -> i32 {
        match result {
            // At most the length of a buffer.
            Ok(()) if self.has_data() => i32::try_from(self.len).unwrap_or(-(Errno::EIO as i32)),
            Ok(()) => 0,
            Err(errno) => -(errno as i32),
        }
    }
}

/// The kernel's error number for an error of the volume.
pub(crate) fn errno(code: ErrorCode) -> Errno {
    match code {
        ErrorCode::NoSpace | ErrorCode::NoRunSpace => Errno::ENOSPC,
        ErrorCode::ReadOnly | ErrorCode::Denied => Errno::EROFS,
        ErrorCode::Unsupported => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

/// The error for the kernel while the volume is not served.
pub(crate) fn unserved(why: NotServed) -> Errno {
    match why {
        NotServed::NoSpace => Errno::ENOSPC,
        NotServed::NotOpen => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(op_flags: u32, sectors: u32) -> Result<Request, Errno> {
        Request::decode(&Descriptor {
            op_flags,
            sectors,
            start_sector: 8,
            address: 0,
        })
    }

    #[test]
    fn each_operation_is_decoded_with_its_flags() {
        let fua = operation::FUA;
        let zeroes = |unmap, durable| VolumeOp::WriteZeroes { unmap, durable };
        for (op_flags, op) in [
            (operation::READ, VolumeOp::Read),
            (operation::READ | 1 << 11, VolumeOp::Read),
            (operation::WRITE, VolumeOp::Write { durable: false }),
            (operation::WRITE | fua, VolumeOp::Write { durable: true }),
            (operation::DISCARD, VolumeOp::Discard),
            (operation::WRITE_ZEROES, zeroes(true, false)),
            (
                operation::WRITE_ZEROES | operation::NO_UNMAP,
                zeroes(false, false),
            ),
            (operation::WRITE_ZEROES | fua, zeroes(true, true)),
        ] {
            let request = decode(op_flags, 3).unwrap();
            assert_eq!(request.op, op);
            assert_eq!((request.offset, request.len), (4096, 1536));
        }
        let flush = decode(operation::FLUSH, 0).unwrap();
        assert_eq!((flush.op, flush.len), (VolumeOp::Flush, 0));
        assert_eq!(decode(99, 1), Err(Errno::EOPNOTSUPP));
    }

    #[test]
    fn data_longer_than_a_buffer_is_refused_and_ranges_are_not() {
        let most = BUFFER_LEN / 512;
        assert!(decode(operation::READ, most).is_ok());
        assert_eq!(decode(operation::READ, most + 1), Err(Errno::EINVAL));
        assert_eq!(decode(operation::WRITE, most + 1), Err(Errno::EINVAL));
        assert!(decode(operation::DISCARD, u32::MAX).is_ok());
    }

    #[test]
    fn data_is_answered_with_its_bytes_and_all_else_with_zero() {
        assert_eq!(decode(operation::READ, 2).unwrap().answer(Ok(())), 1024);
        assert_eq!(decode(operation::DISCARD, 2).unwrap().answer(Ok(())), 0);
        let write = decode(operation::WRITE, 2).unwrap();
        assert_eq!(write.answer(Err(Errno::ENOSPC)), -28);
    }
}
