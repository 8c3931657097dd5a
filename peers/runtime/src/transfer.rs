//! Reads and writes: their direction, their addresses, and those that the calling thread carries out itself.

use std::io;

use xseg::Span;

use crate::file::File;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Read,
    Write { durable: bool },
}

impl Direction {
    /// The flags of the system call.
    pub(crate) fn flags(self) -> i32 {
        match self {
            Direction::Write { durable: true } => libc::RWF_DSYNC,
            Direction::Read | Direction::Write { durable: false } => 0,
        }
    }
}

/// One `preadv2` or `pwritev2` on the calling thread.
pub(crate) fn transfer_now(
    file: &File,
    direction: Direction,
    spans: &[Span],
    offset: u64,
) -> io::Result<usize> {
    let one;
    let many: Vec<libc::iovec>;
    let addresses: &[libc::iovec] = if let [span] = spans {
        one = [address_of(span)];
        &one
    } else {
        many = spans.iter().map(address_of).collect();
        &many
    };
    let offset =
        i64::try_from(offset).map_err(|_too_large| io::Error::from_raw_os_error(libc::EFBIG))?;
    let count = i32::try_from(addresses.len())
        .map_err(|_too_many| io::Error::from_raw_os_error(libc::EINVAL))?;
    let (fd, flags) = (file.raw(), direction.flags());
    let done = match direction {
        // SAFETY: each address comes from a span that outlives the call, so its memory is mapped and writable.
        Direction::Read => unsafe { libc::preadv2(fd, addresses.as_ptr(), count, offset, flags) },
        // SAFETY: each address comes from a span that outlives the call, so its memory is mapped.
        Direction::Write { .. } => unsafe {
            libc::pwritev2(fd, addresses.as_ptr(), count, offset, flags)
        },
    };
    usize::try_from(done).map_err(|_negative| io::Error::last_os_error())
}

pub(crate) fn address_of(span: &Span) -> libc::iovec {
    libc::iovec {
        iov_base: span.address().cast(),
        iov_len: span.len(),
    }
}
