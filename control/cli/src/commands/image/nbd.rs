//! The client's side of NBD, as much as a copy needs: one connection, several requests in flight, simple replies.
//!
//! Source: the NBD project's `doc/proto.md`. The server is `qemu-nbd`, which works on an image that may be hostile, so everything that it
//! sends is validated. Every wait ends at an interrupt, and after a timeout.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use archipelago_protocol::{Error, ErrorCode};
use nix::poll::PollFlags;

use super::interrupt::Interrupt;

/// How long a server may send nothing: longer than the timeouts of the storage below it.
const SILENCE_MS: i32 = 300_000;
/// Most replies to one option; servers send fewer.
const REPLIES_MAX: usize = 16;
/// Longest reply to an option.
const REPLY_LEN_MAX: u32 = 4096;

const MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
/// Fixed newstyle, no zeroes at the end of the handshake.
const CLIENT_FLAGS: u32 = 3;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
}

/// The header of a reply. The data of a read that succeeded follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) cookie: u64,
    /// 0: success; else an error number of the protocol.
    pub(super) error: u32,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    stream: UnixStream,
    interrupt: &'a Interrupt,
    size: u64,
    is_lost: bool,
}

impl<'a> Connection<'a> {
    /// A connection over `stream`; [`Connection::negotiate`] comes first.
    pub(super) fn new(stream: UnixStream, interrupt: &'a Interrupt) -> Self {
        Connection {
            stream,
            interrupt,
            size: 0,
            is_lost: false,
        }
    }

    /// Whether the server has closed the connection, or ended. The reason is in the server's own error output.
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Bytes of the export.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Opens the default export.
    pub(super) fn negotiate(&mut self) -> Result<(), Error> {
        let unblocked = self.stream.set_nonblocking(true);
        unblocked.map_err(|error| self.lost(&error))?;
        if self.u64()? != MAGIC || self.u64()? != OPTION_MAGIC {
            return Err(nonsense("no fixed newstyle handshake"));
        }
        let _flags = self.bytes::<2>()?;
        let mut hello = Vec::new();
        hello.extend(CLIENT_FLAGS.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(OPTION_GO.to_be_bytes());
        // The length of the name, which is empty, and the number of information requests: none.
        hello.extend(6_u32.to_be_bytes());
        hello.extend([0; 6]);
        self.write(&hello)?;
        let mut size = None;
        for _ in 0..REPLIES_MAX {
            if self.u64()? != OPTION_REPLY_MAGIC || self.u32()? != OPTION_GO {
                return Err(nonsense("an answer to no option"));
            }
            let (kind, len) = (self.u32()?, self.u32()?);
            if len > REPLY_LEN_MAX {
                return Err(nonsense("a long answer to an option"));
            }
            let mut content = vec![0; usize::try_from(len).expect("short")];
            self.read(&mut content)?;
            match kind {
                REPLY_ACK => {
                    self.size = size.ok_or_else(|| nonsense("an export without a size"))?;
                    return Ok(());
                }
                REPLY_INFO if content.len() >= 12 && content[..2] == INFO_EXPORT.to_be_bytes() => {
                    let bytes = content[2..10].try_into().expect("eight bytes");
                    size = Some(u64::from_be_bytes(bytes));
                }
                REPLY_INFO => {}
                _ => return Err(nonsense("the export is refused")),
            }
        }
        Err(nonsense("no end of its answers"))
    }

    /// Sends a request; `data` is the payload of a write.
    pub(super) fn send(
        &mut self,
        command: Command,
        cookie: u64,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Result<(), Error> {
        let mut head = [0; 28];
        head[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        head[6..8].copy_from_slice(&(command as u16).to_be_bytes());
        head[8..16].copy_from_slice(&cookie.to_be_bytes());
        head[16..24].copy_from_slice(&offset.to_be_bytes());
        head[24..].copy_from_slice(&len.to_be_bytes());
        self.write(&head)?;
        self.write(data)
    }

    /// Waits for the next reply. The data of a read is then taken with [`Connection::read`].
    pub(super) fn reply(&mut self) -> Result<Reply, Error> {
        let head = self.bytes::<16>()?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if word(0) != REPLY_MAGIC {
            return Err(nonsense("an answer that is none"));
        }
        let cookie = u64::from_be_bytes(head[8..].try_into().expect("eight bytes"));
        Ok(Reply {
            cookie,
            error: word(4),
        })
    }

    fn bytes<const LEN: usize>(&mut self) -> Result<[u8; LEN], Error> {
        let mut bytes = [0; LEN];
        self.read(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Error> {
        self.bytes().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, Error> {
        self.bytes().map(u64::from_be_bytes)
    }

    /// Fills `data`.
    pub(super) fn read(&mut self, mut data: &mut [u8]) -> Result<(), Error> {
        while !data.is_empty() {
            match self.stream.read(data) {
                Ok(0) => {
                    self.interrupt.check()?;
                    return Err(self.lost(&ErrorKind::UnexpectedEof.into()));
                }
                Ok(part) => data = &mut data[part..],
                Err(error) => self.wait(&error, PollFlags::POLLIN)?,
            }
        }
        Ok(())
    }

    fn write(&mut self, mut data: &[u8]) -> Result<(), Error> {
        while !data.is_empty() {
            match self.stream.write(data) {
                Ok(part) => data = &data[part..],
                Err(error) => self.wait(&error, PollFlags::POLLOUT)?,
            }
        }
        Ok(())
    }

    /// Waits until the stream is ready again, if `error` reports only that the stream is not ready.
    fn wait(&mut self, error: &std::io::Error, events: PollFlags) -> Result<(), Error> {
        match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            ErrorKind::WouldBlock => {
                let ready = self
                    .interrupt
                    .wait_within(&self.stream, events, SILENCE_MS)?;
                let silent = || {
                    let message = format!("qemu-nbd did not answer for {} s", SILENCE_MS / 1000);
                    Error::new(ErrorCode::Io, message).with_hint("check the storage of the image")
                };
                if ready { Ok(()) } else { Err(silent()) }
            }
            _ => {
                self.interrupt.check()?;
                Err(self.lost(error))
            }
        }
    }

    fn lost(&mut self, error: &std::io::Error) -> Error {
        self.is_lost = true;
        Error::new(ErrorCode::Damaged, format!("qemu-nbd: {error}"))
    }
}

fn nonsense(what: &str) -> Error {
    Error::new(
        ErrorCode::Internal,
        format!("qemu-nbd is not understood: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client sees of a server that sends `answer` and goes.
    fn opened(answer: &[u8]) -> Result<u64, ErrorCode> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        let interrupt = Interrupt::new().unwrap();
        let mut connection = Connection::new(ours, &interrupt);
        let opened = connection.negotiate().map_err(|error| error.code);
        assert_eq!(connection.is_lost(), opened == Err(ErrorCode::Damaged));
        opened.map(|()| connection.size())
    }

    #[test]
    fn a_server_is_understood_and_one_that_lies_is_refused() {
        let mut hello = Vec::new();
        hello.extend(MAGIC.to_be_bytes());
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend([0, 3]);
        let reply = |kind: u32, content: &[u8]| {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            bytes.extend(OPTION_GO.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            bytes.extend(content);
            bytes
        };
        let export = reply(REPLY_INFO, &[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]);
        let ack = reply(REPLY_ACK, &[]);
        let with = |parts: &[&[u8]]| [hello.as_slice(), &parts.concat()].concat();
        assert_eq!(opened(&with(&[&export, &ack])), Ok(1 << 16));
        let blocks = reply(REPLY_INFO, &[0, 3, 0, 0, 0, 1]);
        assert_eq!(opened(&with(&[&blocks, &export, &ack])), Ok(1 << 16));
        for (answer, code) in [
            (hello.clone(), ErrorCode::Damaged),
            (with(&[&ack]), ErrorCode::Internal),
            (with(&[&reply((1 << 31) + 6, &[])]), ErrorCode::Internal),
            (with(&[&reply(REPLY_INFO, &[0; 5000])]), ErrorCode::Internal),
            (with(&[&blocks.repeat(20)]), ErrorCode::Internal),
            (
                b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
                ErrorCode::Internal,
            ),
            (b"NBDM".to_vec(), ErrorCode::Damaged),
        ] {
            assert_eq!(opened(&answer), Err(code), "{answer:?}");
        }
    }
}
