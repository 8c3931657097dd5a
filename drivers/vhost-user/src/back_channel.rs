//! Messages that the crate `vhost` hides or does not support, handled before it sees them.
//!
//! * SET_BACKEND_REQ_FD: the crate keeps the back channel's socket to itself and has no sender for config changes, so the
//!   message is received here.
//! * SET_LOG_FD: the crate does not support it, and would break the connection. The descriptor is not needed here.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv, send};
use tracing::debug;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of a message header.
pub(crate) const HEADER_LEN: usize = 12;

const SET_LOG_FD: u32 = 7;
const SET_BACKEND_REQ_FD: u32 = 21;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
const CONFIG_CHANGE: u32 = 2;

/// The header of the next message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) request: u32,
    pub(crate) flags: u32,
    pub(crate) len: u32,
}

impl Header {
    const UNKNOWN: Header = Header {
        request: u32::MAX,
        flags: 0,
        len: 0,
    };

    // The protocol's numbers are in the byte order of the host.
    #[expect(clippy::host_endian_bytes, reason = "the protocol requires it")]
    fn from_bytes(bytes: [u8; HEADER_LEN]) -> Self {
        let word = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&bytes[at..at + 4]);
            u32::from_ne_bytes(word)
        };
        Header {
            request: word(0),
            flags: word(4),
            len: word(8),
        }
    }

    #[expect(clippy::host_endian_bytes, reason = "the protocol requires it")]
    fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        for (at, word) in [self.request, self.flags, self.len].into_iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether the sender waits for an answer even to a failure.
    pub(crate) fn needs_reply(self) -> bool {
        self.flags & NEED_REPLY != 0
    }
}

/// Looks at the next header without taking it. `None`: the front end has disconnected.
pub(crate) fn peek(stream: &UnixStream) -> Option<Header> {
    let mut bytes = [0; HEADER_LEN];
    loop {
        match recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) {
            Ok(HEADER_LEN) => return Some(Header::from_bytes(bytes)),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) | Err(_) => return None,
            // A header in parts: the crate waits for the rest, and refuses the message if it is one of ours.
            Ok(_) => return Some(Header::UNKNOWN),
        }
    }
}

/// The back channel to a front end.
#[derive(Debug, Default)]
pub(crate) struct BackChannel {
    socket: Option<UnixStream>,
}

impl BackChannel {
    /// Takes the message if it is one of ours. `Ok(false)`: the crate handles it.
    pub(crate) fn take(&mut self, stream: &UnixStream, header: Header) -> std::io::Result<bool> {
        if ![SET_LOG_FD, SET_BACKEND_REQ_FD].contains(&header.request) {
            return Ok(false);
        }
        let refused = |text| Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
        let mut bytes = [0; HEADER_LEN + 8];
        let len = usize::try_from(header.len).unwrap_or(usize::MAX);
        if len > 8 {
            return refused("a descriptor message with a long body");
        }
        let (got, file) = stream
            .recv_with_fd(&mut bytes[..HEADER_LEN + len])
            .map_err(std::io::Error::from)?;
        if got != HEADER_LEN + len {
            return refused("half a message with a descriptor");
        }
        if header.request == SET_BACKEND_REQ_FD {
            let Some(file) = file else {
                return refused("a back channel without a descriptor");
            };
            self.socket = Some(UnixStream::from(OwnedFd::from(file)));
        }
        if header.needs_reply() {
            acknowledge(stream, header.request)?;
        }
        Ok(true)
    }

    /// Asks the front end to read the configuration space again.
    pub(crate) fn config_changed(&self) {
        let Some(socket) = &self.socket else {
            debug!("no back channel: the front end will not hear of the new size");
            return;
        };
        let header = Header {
            request: CONFIG_CHANGE,
            flags: VERSION,
            len: 0,
        };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        if let Err(error) = send(socket.as_raw_fd(), &header.to_bytes(), flags) {
            debug!(%error, "the front end cannot be notified of the new size");
        }
    }
}

fn acknowledge(mut stream: &UnixStream, request: u32) -> std::io::Result<()> {
    let header = Header {
        request,
        flags: VERSION | REPLY,
        len: 8,
    };
    let mut bytes = [0; HEADER_LEN + 8];
    bytes[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    stream.write_all(&bytes)
}

/// Whether `file` is an eventfd: anything else could block the data thread when it is written.
pub(crate) fn is_eventfd(file: &File) -> bool {
    std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
        .is_ok_and(|target| target.as_os_str() == "anon_inode:[eventfd]")
}
