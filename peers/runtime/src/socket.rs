//! Transfers bytes between a stream socket and shared memory, on the calling thread, without waiting.
//!
//! Invariant: the kernel gets only addresses within a span that outlives the call; they are checked against the length of the span.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use xseg::Span;

/// Most parts of one call.
pub const PARTS_MAX: usize = 64;

/// A part of a span: bytes from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// First byte.
    pub offset: usize,
    /// Length.
    pub len: usize,
}

/// Receives what has arrived into `parts` of `memory`, in their order; 0: the other side sends no more.
///
/// # Errors
/// `WouldBlock` if nothing has arrived, `InvalidInput` if a part is out of bounds or there are more than [`PARTS_MAX`]; otherwise the error
/// of `recvmsg`.
pub fn receive_now(socket: impl AsFd, memory: &Span, parts: &[Part]) -> io::Result<usize> {
    let mut addresses = [NOWHERE; PARTS_MAX];
    let message = message(memory, parts, &mut addresses)?;
    let fd = socket.as_fd().as_raw_fd();
    let mut message = message;
    // SAFETY: the header holds only addresses within `memory`, which outlives the call. Another process may change the bytes meanwhile, but
    // no reference of ours covers them.
    let done = unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(done).map_err(|_negative| io::Error::last_os_error())
}

/// Sends `parts` of `memory`, in their order, as far as the socket has room.
///
/// # Errors
/// As for [`receive_now`], but of `sendmsg`; a disconnected socket causes an error, never a signal.
pub fn send_now(socket: impl AsFd, memory: &Span, parts: &[Part]) -> io::Result<usize> {
    let mut addresses = [NOWHERE; PARTS_MAX];
    let message = message(memory, parts, &mut addresses)?;
    let fd = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: as in `receive_now`; the kernel only reads the bytes.
    let done = unsafe { libc::sendmsg(fd, &raw const message, flags) };
    usize::try_from(done).map_err(|_negative| io::Error::last_os_error())
}

const NOWHERE: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// A message header over `parts`. Their addresses are stored in `addresses`, which outlives the header.
fn message(
    memory: &Span,
    parts: &[Part],
    addresses: &mut [libc::iovec; PARTS_MAX],
) -> io::Result<libc::msghdr> {
    let outside = || io::Error::from(io::ErrorKind::InvalidInput);
    let used = addresses.get_mut(..parts.len()).ok_or_else(outside)?;
    for (address, part) in used.iter_mut().zip(parts) {
        let end = part.offset.checked_add(part.len);
        if end.is_none_or(|end| end > memory.len()) {
            return Err(outside());
        }
        *address = libc::iovec {
            iov_base: memory.address().wrapping_add(part.offset).cast(),
            iov_len: part.len,
        };
    }
    // SAFETY: all zeros are a valid header: no address, no vector, no control data.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = addresses.as_mut_ptr();
    header.msg_iovlen = parts.len();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use xseg::Region;

    use super::*;

    fn part(offset: usize, len: usize) -> Part {
        Part { offset, len }
    }

    #[test]
    fn parts_go_and_come_in_their_order_and_nothing_waits() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let region = Region::anonymous(8192).unwrap();
        let memory = region.span(0, 8192).unwrap();
        region.write(100, b"world").unwrap();
        region.write(4000, b"hello ").unwrap();
        let kind = |result: io::Result<usize>| result.map_err(|error| error.kind());
        let nothing = kind(receive_now(&theirs, &memory, &[part(0, 8)]));
        assert_eq!(nothing, Err(io::ErrorKind::WouldBlock));
        let parts = [part(4000, 6), part(100, 5)];
        assert_eq!(kind(send_now(&ours, &memory, &parts)), Ok(11));
        let parts = [part(6000, 4), part(7000, 100)];
        assert_eq!(kind(receive_now(&theirs, &memory, &parts)), Ok(11));
        let mut bytes = [0; 7];
        region.read(7000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"o world");
        for wrong in [part(8192, 1), part(usize::MAX, 2), part(1, 8192)] {
            let refused = kind(send_now(&ours, &memory, &[wrong]));
            assert_eq!(refused, Err(io::ErrorKind::InvalidInput));
        }
        drop(theirs);
        let refused = kind(send_now(&ours, &memory, &parts));
        assert_eq!(refused, Err(io::ErrorKind::BrokenPipe));
    }

    #[test]
    fn a_full_socket_takes_what_it_has_room_for() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let region = Region::anonymous(4 << 20).unwrap();
        let memory = region.span(0, 4 << 20).unwrap();
        let sent = send_now(&ours, &memory, &[part(0, 4 << 20)]).unwrap();
        assert!(sent > 0 && sent < 4 << 20, "{sent}");
        let again = send_now(&ours, &memory, &[part(0, 1 << 20)]).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::WouldBlock);
        drop(theirs);
    }
}
