//! The control socket of a channel: messages, descriptors and credentials. No call blocks.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt,
    sendmsg, socket, sockopt::PeerCredentials,
};

use super::message::{MESSAGE_BYTES, Message, Unreadable};
use crate::mapping;

/// What was received from a socket.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message and its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// The bytes are not a message of this protocol.
    Unreadable(Unreadable),
    /// There is nothing to receive.
    Nothing,
    /// The other side has disconnected.
    HungUp,
}

/// A new socket of the type that channels use.
pub(crate) fn unconnected() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        flags,
        None,
    )?)
}

/// Connects to the server at `path`; an error means that no server is there now.
pub(crate) fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let fd = unconnected()?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Sends `message` with `descriptors`. `WouldBlock`: the buffer is full, and nothing was sent.
pub(crate) fn send(
    fd: &OwnedFd,
    message: &Message,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = message.encode();
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    let control: &[ControlMessage<'_>] = if numbers.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(
        fd.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        flags,
        None,
    )?;
    Ok(())
}

/// Receives the next message.
pub(crate) fn next(fd: &OwnedFd) -> Received {
    let mut buffer = [0; MESSAGE_BYTES];
    match mapping::receive(fd, &mut buffer) {
        Ok(None) => Received::HungUp,
        Ok(Some((len, descriptors))) => match Message::decode(&buffer[..len]) {
            Ok(message) => Received::Message(message, descriptors),
            Err(why) => Received::Unreadable(why),
        },
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Nothing,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Received::Nothing,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Received::Unreadable(Unreadable::Garbage)
        }
        Err(_gone) => Received::HungUp,
    }
}

/// The process at the other end, at the time when it connected or listened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    pub(crate) pid: i32,
}

/// The process and user at the other end.
pub(crate) fn peer(fd: &OwnedFd) -> io::Result<Peer> {
    let credentials = getsockopt(fd, PeerCredentials)?;
    Ok(Peer {
        uid: credentials.uid(),
        pid: credentials.pid(),
    })
}

/// A set of sockets behind one epoll descriptor that never changes: a reactor watches that descriptor, whichever sockets are added or
/// removed.
#[derive(Debug)]
pub(crate) struct Watch(Epoll);

impl Watch {
    pub(crate) fn new() -> io::Result<Watch> {
        Ok(Watch(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    pub(crate) fn add(&self, fd: &impl AsFd) -> io::Result<()> {
        Ok(self.0.add(
            fd,
            EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, 0),
        )?)
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}
