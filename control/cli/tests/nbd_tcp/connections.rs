//! Several connections to one export as one disk: each request goes over one of them, so that what one has been answered the others
//! must see.

use std::io::{Error, Result};

use archipelago_endpoint_tests::disk::{Disk, Durable, Run, Space};
use archipelago_endpoint_tests::fsx::Random;
use archipelago_nbd_protocol::request::{HEADER_LEN, Header};
use archipelago_nbd_protocol::wire::{
    ALLOCATION, ALLOCATION_ID, CHUNK_MAGIC, OPTION_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command,
    command_flag, extent_flag, info, option, option_reply,
};

use crate::server::{ClientSocket, Server};

const SECTOR: u64 = 512;
/// Sectors whose status is asked for at most: more than one piece.
const STATUS_SECTORS_MAX: u64 = 700;

/// The connections, of which the first has no structured replies, and so no block status.
#[derive(Debug)]
pub(crate) struct Connections<'a> {
    server: &'a Server,
    export: &'a str,
    all: Vec<Connection>,
    random: Random,
}

impl<'a> Connections<'a> {
    /// Three of them; `seed` says which does what.
    pub(crate) fn new(server: &'a Server, export: &'a str, seed: u64) -> Connections<'a> {
        let connect = |structured| Connection::new(server.client(), export, structured);
        Connections {
            server,
            export,
            all: [false, true, true].map(connect).into(),
            // Not the numbers that choose what is done.
            random: Random::new(!seed),
        }
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.random.below(count) == 0
    }

    /// Asks over any of them.
    fn ask(&mut self, command: u16, flags: u16, range: (u64, u64), data: &[u8]) -> Result<Vec<u8>> {
        let which = index(self.random.below(self.all.len() as u64));
        self.all[which].ask(command, flags, range, data)
    }

    /// FUA: where it is asked for, and now and then.
    fn durable(&mut self, wanted: bool) -> u16 {
        match wanted || self.one_in(8) {
            true => command_flag::FUA,
            false => 0,
        }
    }
}

impl Disk for Connections<'_> {
    /// One of them connects anew.
    fn size(&mut self) -> Result<u64> {
        let which = index(self.random.below(self.all.len() as u64));
        self.all[which] = Connection::new(self.server.client(), self.export, which > 0);
        Ok(self.all[which].size)
    }

    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()> {
        let range = (offset, into.len() as u64);
        if self.one_in(40) {
            self.ask(command::CACHE, 0, range, &[])?;
        }
        into.copy_from_slice(&self.ask(command::READ, 0, range, &[])?);
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()> {
        let flags = self.durable(durable == Durable::Now);
        let range = (offset, data.len() as u64);
        self.ask(command::WRITE, flags, range, data).map(drop)
    }

    fn flush(&mut self) -> Result<()> {
        self.ask(command::FLUSH, 0, (0, 0), &[]).map(drop)
    }

    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()> {
        let keep = match space {
            Space::Kept => command_flag::NO_HOLE,
            Space::Released => 0,
        };
        let flags = self.durable(false) | keep;
        self.ask(command::WRITE_ZEROES, flags, (offset, len), &[])
            .map(drop)
    }

    fn discard(&mut self, offset: u64, len: u64) -> Result<()> {
        let flags = self.durable(false);
        self.ask(command::TRIM, flags, (offset, len), &[]).map(drop)
    }

    /// From what the block status says; all of what is said to be zeros must be read so.
    fn run_at(&mut self, offset: u64) -> Result<Option<Run>> {
        let size = self.all[0].size;
        let (mut data, mut hole) = (None, None);
        let mut at = offset / SECTOR * SECTOR;
        while at < size && (data.is_none() || hole.is_none()) {
            let which = 1 + index(self.random.below(self.all.len() as u64 - 1));
            let sectors = 1 + self.random.below(STATUS_SECTORS_MAX);
            let end = size.min(at + SECTOR * sectors);
            let extents = self.all[which].ask(command::BLOCK_STATUS, 0, (at, end - at), &[])?;
            expect(!extents.is_empty(), || "no extent".to_owned())?;
            for extent in extents.chunks_exact(8) {
                let (len, flags) = extent.split_at(4);
                let (len, flags) = (u64::from(u32_of(len)), u32_of(flags));
                let said = || format!("{len} bytes at {at} are said to be {flags}");
                expect(len > 0 && at + len <= end, said)?;
                let is_hole = flags & extent_flag::ZERO != 0;
                if is_hole {
                    let found = self.ask(command::READ, 0, (at, len), &[])?;
                    expect(found.iter().all(|byte| *byte == 0), said)?;
                }
                let first = if is_hole { &mut hole } else { &mut data };
                first.get_or_insert(at.max(offset));
                at += len;
            }
        }
        Ok(Some(Run {
            data: data.unwrap_or(size),
            hole: hole.unwrap_or(size),
        }))
    }
}

/// One connection behind its handshake.
#[derive(Debug)]
struct Connection {
    socket: Box<dyn ClientSocket>,
    cookie: u64,
    size: u64,
}

impl Connection {
    /// Agrees on `export`, with structured replies and block status if `structured`.
    fn new(mut socket: Box<dyn ClientSocket>, export: &str, structured: bool) -> Connection {
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        socket.write_all(&3_u32.to_be_bytes()).unwrap();
        let name = [&len_of(export.as_bytes())[..], export.as_bytes()].concat();
        if structured {
            negotiate(&mut *socket, option::STRUCTURED_REPLY, &[]);
            let query = ALLOCATION.as_bytes();
            let context = [&name, &1_u32.to_be_bytes()[..], &len_of(query), query].concat();
            negotiate(&mut *socket, option::SET_META_CONTEXT, &context);
        }
        let informed = negotiate(&mut *socket, option::GO, &[&name, &[0, 0][..]].concat());
        let mut infos = informed
            .iter()
            .filter(|data| data[..2] == info::EXPORT.to_be_bytes());
        let size = infos.next().expect("the size")[2..10].try_into().unwrap();
        Connection {
            socket,
            cookie: 0,
            size: u64::from_be_bytes(size),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn bytes(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Asks, and gives what a read or a status is answered.
    fn ask(
        &mut self,
        command: u16,
        flags: u16,
        (offset, len): (u64, u64),
        data: &[u8],
    ) -> Result<Vec<u8>> {
        self.cookie += 1;
        let header = Header {
            flags,
            command,
            cookie: self.cookie,
            offset,
            len: u32::try_from(len).unwrap(),
        };
        let header: [u8; HEADER_LEN] = header.encode();
        self.socket.write_all(&[&header[..], data].concat())?;
        let len = if command == command::READ { len } else { 0 };
        let mut answer = vec![0; index(len)];
        loop {
            let magic = self.u32()?;
            if magic == SIMPLE_REPLY_MAGIC {
                let errno = self.u32()?;
                expect(errno == 0, || format!("error {errno}"))?;
                self.takes_cookie()?;
                self.socket.read_exact(&mut answer)?;
                return Ok(answer);
            }
            expect(magic == CHUNK_MAGIC, || format!("magic {magic:#x}"))?;
            let flags = u16::from_be_bytes(self.array()?);
            let kind = u16::from_be_bytes(self.array()?);
            self.takes_cookie()?;
            let len = self.u32()? as usize;
            match kind {
                chunk::OFFSET_DATA => {
                    let at = index(self.u64()? - offset);
                    let data = self.bytes(len - 8)?;
                    answer[at..at + data.len()].copy_from_slice(&data);
                }
                chunk::BLOCK_STATUS => {
                    let context = self.u32()?;
                    expect(context == ALLOCATION_ID, || format!("context {context}"))?;
                    answer = self.bytes(len - 4)?;
                }
                chunk::NONE => {}
                other => return Err(Error::other(format!("chunk {other:#x}"))),
            }
            if flags & chunk::FLAG_DONE != 0 {
                return Ok(answer);
            }
        }
    }

    /// Takes the cookie of an answer, which must be that of the last request.
    fn takes_cookie(&mut self) -> Result<()> {
        let cookie = self.u64()?;
        expect(cookie == self.cookie, || format!("cookie {cookie}"))
    }
}

fn expect(holds: bool, what: impl FnOnce() -> String) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::other(what())),
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

fn u32_of(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

fn len_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap().to_be_bytes()
}

/// Sends an option, and takes its replies, which must end in success; what they hold.
fn negotiate(socket: &mut dyn ClientSocket, option: u32, data: &[u8]) -> Vec<Vec<u8>> {
    let magic = OPTION_MAGIC.to_be_bytes();
    let head = [&magic[..], &option.to_be_bytes(), &len_of(data), data].concat();
    socket.write_all(&head).unwrap();
    let mut replies = Vec::new();
    loop {
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).unwrap();
        let kind = u32_of(&reply[12..16]);
        let mut data = vec![0; u32_of(&reply[16..]) as usize];
        socket.read_exact(&mut data).unwrap();
        assert!(
            kind < 1 << 31,
            "option {option}: {}",
            String::from_utf8_lossy(&data)
        );
        if kind == option_reply::ACK {
            return replies;
        }
        replies.push(data);
    }
}
