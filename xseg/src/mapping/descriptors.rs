//! Receives messages and their descriptors. It is in this module because turning a received number into an owned descriptor needs a
//! guarantee that the compiler cannot check.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Most descriptors of one message: the hello has four.
pub(crate) const DESCRIPTORS_MAX: usize = 4;

/// Receives one message, or the available bytes of a stream, into `buffer` without blocking, and the descriptors that came with it. `None`:
/// the other side has disconnected.
///
/// # Errors
/// `WouldBlock`: there is nothing to receive. `InvalidData`: the message is longer than `buffer`, or has too many descriptors.
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
    // If the control buffer was truncated, the library refuses to list the descriptors that the kernel installed before the cut. They
    // cannot be named any more, so each offending connection leaks at most four.
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
