//! A client of an NBD export: simple replies, one request at a time, resent on a new connection as `nbd-client -persist` does, or not.

use std::io::{Error, Read, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_bench::waiting::{now, pause};
use archipelago_nbd_protocol::wire::{
    MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, REQUEST_MAGIC, SIMPLE_REPLY_MAGIC, command,
    command_flag, info, option, option_reply,
};

use crate::disk::{Disk, Durable, Space, TIMEOUT};

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(5);

/// What a client does when its connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    /// It connects again, and sends again what was not answered.
    Reconnect,
    /// Its request fails.
    Fail,
}

/// A connected client.
#[derive(Debug)]
pub(crate) struct Nbd {
    socket: PathBuf,
    broken: Broken,
    connection: Connection,
    cookie: u64,
}

#[derive(Debug)]
struct Connection {
    stream: UnixStream,
    size: u64,
}

/// What a request has beside its command.
#[derive(Debug, Clone, Copy, Default)]
struct Range {
    flags: u16,
    offset: u64,
    len: u64,
}

impl Nbd {
    /// A client that reconnects.
    pub(crate) fn connect(socket: &Path) -> Result<Nbd> {
        Nbd::new(socket, Broken::Reconnect)
    }

    /// A client that never reconnects.
    pub(crate) fn connect_once(socket: &Path) -> Result<Nbd> {
        Nbd::new(socket, Broken::Fail)
    }

    fn new(socket: &Path, broken: Broken) -> Result<Nbd> {
        Ok(Nbd {
            broken,
            socket: socket.to_owned(),
            connection: Connection::await_server(socket)?,
            cookie: 0,
        })
    }

    /// Does a request, again on another connection if this one breaks: each can be done twice.
    fn run(&mut self, kind: u16, range: Range, data: &[u8], into: &mut [u8]) -> Result<()> {
        let deadline = now() + TIMEOUT;
        loop {
            self.cookie += 1;
            match self.connection.run(self.cookie, kind, range, data, into) {
                Ok(0) => return Ok(()),
                Ok(errno) => return Err(Error::from_raw_os_error(errno)),
                Err(error) if self.broken == Broken::Fail || now() > deadline => return Err(error),
                Err(_broken) => self.connection = Connection::await_server(&self.socket)?,
            }
        }
    }

    fn range(&mut self, kind: u16, flags: u16, offset: u64, len: u64) -> Result<()> {
        self.run(kind, Range { flags, offset, len }, &[], &mut [])
    }
}

impl Disk for Nbd {
    fn size(&mut self) -> Result<u64> {
        self.connection = Connection::await_server(&self.socket)?;
        Ok(self.connection.size)
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let range = Range {
            offset,
            len: into.len() as u64,
            flags: 0,
        };
        self.run(command::READ, range, &[], into)
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()> {
        let range = Range {
            offset,
            len: data.len() as u64,
            flags: match durable {
                Durable::Later => 0,
                Durable::Now => command_flag::FUA,
            },
        };
        self.run(command::WRITE, range, data, &mut [])
    }

    fn flush(&mut self) -> Result<()> {
        self.range(command::FLUSH, 0, 0, 0)
    }

    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()> {
        let flags = match space {
            Space::Kept => command_flag::NO_HOLE,
            Space::Released => 0,
        };
        self.range(command::WRITE_ZEROES, flags, offset, len)
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        self.range(command::TRIM, 0, offset, len)
    }
}

impl Connection {
    /// Connects to the server, or to its successor.
    fn await_server(socket: &Path) -> Result<Connection> {
        let deadline = now() + TIMEOUT;
        loop {
            match Connection::greet(socket) {
                Err(_not_yet) if now() < deadline => pause(RETRY),
                connected => return connected,
            }
        }
    }

    /// Fixed newstyle, and `GO` with the empty name, which is the default export.
    fn greet(socket: &Path) -> Result<Connection> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting)?;
        expect(u64_at(&greeting, 0), MAGIC, "magic")?;
        expect(u64_at(&greeting, 8), OPTION_MAGIC, "magic of options")?;
        let mut asked = 3_u32.to_be_bytes().to_vec();
        asked.extend(OPTION_MAGIC.to_be_bytes());
        asked.extend(option::GO.to_be_bytes());
        // The name's length, and no information that is asked for.
        asked.extend(6_u32.to_be_bytes());
        asked.extend([0; 6]);
        stream.write_all(&asked)?;
        let mut size = None;
        loop {
            let mut header = [0; 20];
            stream.read_exact(&mut header)?;
            expect(u64_at(&header, 0), OPTION_REPLY_MAGIC, "magic of a reply")?;
            let mut data = vec![0; usize::try_from(u32_at(&header, 16)).map_err(Error::other)?];
            stream.read_exact(&mut data)?;
            match u32_at(&header, 12) {
                option_reply::ACK => break,
                option_reply::INFO if data[..2] == info::EXPORT.to_be_bytes() => {
                    size = Some(u64_at(&data, 2));
                }
                option_reply::INFO => {}
                other => return Err(Error::other(format!("reply {other:#x} to GO"))),
            }
        }
        let size = size.ok_or_else(|| Error::other("no size"))?;
        Ok(Connection { stream, size })
    }

    /// The `errno` of the answer; an error is the connection's.
    fn run(
        &mut self,
        cookie: u64,
        kind: u16,
        range: Range,
        data: &[u8],
        into: &mut [u8],
    ) -> Result<i32> {
        let len = u32::try_from(range.len).map_err(Error::other)?;
        let mut request = REQUEST_MAGIC.to_be_bytes().to_vec();
        request.extend(range.flags.to_be_bytes());
        request.extend(kind.to_be_bytes());
        request.extend(cookie.to_be_bytes());
        request.extend(range.offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request)?;
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        expect(
            u64::from(u32_at(&header, 0)),
            u64::from(SIMPLE_REPLY_MAGIC),
            "magic of an answer",
        )?;
        expect(u64_at(&header, 8), cookie, "cookie")?;
        let errno = u32_at(&header, 4);
        if errno == 0 {
            self.stream.read_exact(into)?;
        }
        i32::try_from(errno).map_err(Error::other)
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn expect(found: u64, expected: u64, what: &str) -> Result<()> {
    match found == expected {
        true => Ok(()),
        false => Err(Error::other(format!(
            "{what} is {found:#x}, not {expected:#x}"
        ))),
    }
}
