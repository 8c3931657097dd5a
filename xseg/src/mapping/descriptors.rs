//! Receiving messages and the descriptors that come with them: here because a received number becomes an owned
//! descriptor only by a promise that the compiler cannot check.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Descriptors in one message at most: the hello's four.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

/// Receives one message, or what a stream has, into `buffer` without blocking, with the descriptors that came with it. `None`: the other side has disconnected.
///
/// # Errors
/// `WouldBlock`: nothing there. `InvalidData`: a message longer than `buffer`, or with too many descriptors.
pub fn receive(socket: &impl AsFd, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut control = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(
        socket.as_fd().as_raw_fd(),
        &mut slices,
        Some(&mut control),
        flags,
    )?;
    let mut descriptors = Vec::new();
    let truncated = message
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    // With a truncated control buffer the library refuses to list what came, which the kernel has then cut to what fits:
    // those descriptors cannot be named any more, so this is a leak of at most four per offending connection.
    if let Ok(list) = message.cmsgs() {
        for entry in list {
            if let ControlMessageOwned::ScmRights(numbers) = entry {
                for number in numbers {
                    // SAFETY: the kernel has just installed this descriptor for us, and it is taken over exactly once.
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(number) });
                }
            }
        }
    }
    if truncated {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message of another size than ours",
        ));
    }
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(None);
    }
    Ok(Some((message.bytes, descriptors)))
}
