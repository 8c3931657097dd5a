//! Commands on NBD devices, through the kernel's generic netlink family `nbd`. Calls block, and need `CAP_SYS_ADMIN` of the host itself.
//!
//! Source: `include/uapi/linux/nbd-netlink.h` of Linux.

use std::os::fd::{AsRawFd, OwnedFd};

use archipelago_protocol::{Error, ErrorCode};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::connection::Connection;
use super::netlink::{Answer, Attributes, answers, request, u16_of};

/// The control family, which returns the numbers of families; its command; attributes of that command.
const CONTROL_FAMILY: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Commands.
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
/// Attributes.
const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const CLIENT_FLAGS: u16 = 6;
const SOCKETS: u16 = 7;
const DEAD_CONNECTION_TIMEOUT: u16 = 8;
const BACKEND_IDENTIFIER: u16 = 10;
/// In [`SOCKETS`]: an item, and the descriptor in it.
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;
/// In [`CLIENT_FLAGS`]: a disconnected device is removed.
const DESTROY_ON_DISCONNECT: u64 = 1;

/// Bytes of a logical block.
const BLOCK_SIZE: u64 = 512;
/// Seconds that a request waits for a connection. Then it fails, and so do all later ones; files wait for the node as long.
const DEAD_SECONDS: u64 = 300;
/// Longest wait for the kernel's answer: a command has ended when the kernel answers.
const ANSWER_SECONDS: i64 = 10;
/// Longest answer: a family with all of its commands.
const ANSWER_MAX: usize = 16 << 10;
/// Most answers to one request: content and its end, after the answers of an earlier request that was not awaited.
const ANSWERS_MAX: usize = 16;

/// A netlink socket to the kernel's NBD client.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Kernel {
    /// Finds the driver.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] if the driver is not loaded; otherwise [`ErrorCode::Io`] with the kernel's error.
    pub(super) fn open() -> Result<Kernel, Error> {
        let failed = |errno: Errno| Error::new(ErrorCode::Io, format!("netlink: {errno}"));
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .map_err(failed)?;
        let timeout = TimeVal::seconds(ANSWER_SECONDS);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(failed)?;
        let mut kernel = Kernel {
            socket,
            family: CONTROL_FAMILY,
            sequence: 0,
        };
        let named = Attributes::default().text(FAMILY_NAME, "nbd");
        kernel.family = match kernel.ask(GET_FAMILY, &named) {
            Ok(Some(family)) => family,
            Ok(None) | Err(Errno::ENOENT) => {
                let message = "this kernel has no NBD devices: modprobe nbd";
                return Err(Error::new(ErrorCode::Unsupported, message));
            }
            Err(errno) => return Err(failed(errno)),
        };
        Ok(kernel)
    }

    /// Sends a command, and waits for its end. Returns the number of a family, if the answer contains one.
    fn ask(&mut self, command: u8, attributes: &Attributes) -> Result<Option<u16>, Errno> {
        self.sequence += 1;
        let message = request(self.family, command, self.sequence, attributes);
        let socket = self.socket.as_raw_fd();
        send(socket, &message, MsgFlags::empty())?;
        let mut family = None;
        let mut buffer = vec![0; ANSWER_MAX];
        for _ in 0..ANSWERS_MAX {
            let len = recv(socket, &mut buffer, MsgFlags::empty())?;
            for answer in answers(&buffer[..len], self.sequence) {
                match answer {
                    Answer::Ended(Ok(())) => return Ok(family),
                    Answer::Ended(Err(code)) => return Err(Errno::from_raw(code)),
                    Answer::Content(content) => family = u16_of(content, FAMILY_ID).or(family),
                }
            }
        }
        Err(Errno::EPROTO)
    }

    /// Connects the device `/dev/nbdN` with N = `number` to `connection`, with the backend identifier `identifier`. If the device `is_new`,
    /// the kernel removes it when it is disconnected.
    ///
    /// # Errors
    /// [`Errno::EBUSY`] if the device is in use.
    pub(super) fn connect(
        &mut self,
        number: u32,
        identifier: &str,
        connection: &Connection,
        is_new: bool,
    ) -> Result<(), Errno> {
        let attributes = device(number, identifier, connection, is_new);
        self.ask(CONNECT, &attributes).map(drop)
    }

    /// Gives the device `number` another connection, if its connection has ended. If it has not ended, this changes nothing and returns no
    /// error.
    pub(super) fn reconnect(
        &mut self,
        number: u32,
        identifier: &str,
        connection: &Connection,
    ) -> Result<(), Errno> {
        let attributes = Attributes::default()
            .u32(INDEX, number)
            .text(BACKEND_IDENTIFIER, identifier)
            .nested(SOCKETS, &sockets(connection));
        self.ask(RECONFIGURE, &attributes).map(drop)
    }

    /// Sets the size of the device `number`.
    pub(super) fn resize(&mut self, number: u32, identifier: &str, size: u64) -> Result<(), Errno> {
        let attributes = Attributes::default()
            .u32(INDEX, number)
            .text(BACKEND_IDENTIFIER, identifier)
            .u64(SIZE_BYTES, size);
        self.ask(RECONFIGURE, &attributes).map(drop)
    }

    /// Disconnects the device `number`: its waiting requests fail.
    pub(super) fn disconnect(&mut self, number: u32) -> Result<(), Errno> {
        let attributes = Attributes::default().u32(INDEX, number);
        self.ask(DISCONNECT, &attributes).map(drop)
    }
}

/// The attributes with which a device is created.
fn device(number: u32, identifier: &str, connection: &Connection, is_new: bool) -> Attributes {
    let flags = if is_new { DESTROY_ON_DISCONNECT } else { 0 };
    Attributes::default()
        .u32(INDEX, number)
        .u64(SIZE_BYTES, connection.export.size)
        .u64(BLOCK_SIZE_BYTES, BLOCK_SIZE)
        // No timeout: see the invariants of the parent module.
        .u64(TIMEOUT, 0)
        .u64(DEAD_CONNECTION_TIMEOUT, DEAD_SECONDS)
        .u64(SERVER_FLAGS, connection.export.flags.into())
        .u64(CLIENT_FLAGS, flags)
        .text(BACKEND_IDENTIFIER, identifier)
        .nested(SOCKETS, &sockets(connection))
}

fn sockets(connection: &Connection) -> Attributes {
    let socket = connection.stream.as_raw_fd().cast_unsigned();
    let item = Attributes::default().u32(SOCKET_FD, socket);
    Attributes::default().nested(SOCKET_ITEM, &item)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use archipelago_nbd_protocol::client::Chosen;

    use super::*;

    #[test]
    fn a_device_has_one_connection_no_timeout_of_requests_and_its_identifier() {
        let (stream, _other) = UnixStream::pair().unwrap();
        let socket = stream.as_raw_fd().cast_unsigned();
        let export = Chosen {
            size: 5 << 20,
            flags: 0x6d,
        };
        let connection = Connection { stream, export };
        for (is_new, client_flags) in [(false, 0), (true, 1)] {
            // Numbers as the kernel's header has them.
            let item = Attributes::default().u32(1, socket);
            let expected = Attributes::default()
                .u32(1, 9)
                .u64(2, 5 << 20)
                .u64(3, 512)
                .u64(4, 0)
                .u64(8, 300)
                .u64(5, 0x6d)
                .u64(6, client_flags)
                .text(10, "node:volume")
                .nested(7, &Attributes::default().nested(1, &item));
            assert_eq!(device(9, "node:volume", &connection, is_new), expected);
        }
    }

    #[test]
    fn a_kernel_without_the_driver_is_said() {
        match Kernel::open() {
            Ok(kernel) => assert_ne!(kernel.family, CONTROL_FAMILY),
            Err(error) => {
                assert_eq!(error.code, ErrorCode::Unsupported, "{error}");
                assert!(error.message.contains("modprobe nbd"), "{error}");
            }
        }
    }
}
