//! A client that says what it is told to, and understands what a server may answer.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use archipelago_nbd_protocol::request::Header;
use archipelago_nbd_protocol::wire::{CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk, option};

use crate::host::Host;

/// How a client wants reads to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replies {
    Simple,
    Structured,
}

/// What a request was answered.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// 0: success.
    pub(crate) errno: u32,
    /// Data by its offset in the volume; in a simple reply, where it was asked for.
    pub(crate) data: BTreeMap<u64, Vec<u8>>,
    /// Length and flags.
    pub(crate) extents: Vec<(u32, u32)>,
    pub(crate) chunks: u32,
}

impl Answer {
    /// The data, which lies in one piece.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        assert_eq!(self.errno, 0);
        let mut bytes = Vec::new();
        let mut next = self.data.keys().next().copied().unwrap_or(0);
        for (offset, piece) in &self.data {
            assert_eq!(*offset, next, "without a gap");
            next += piece.len() as u64;
            bytes.extend(piece);
        }
        bytes
    }
}

/// A connection in its transmission.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Reads that are not answered: offset and length, by cookie.
    reads: BTreeMap<u64, (u64, u32)>,
    partial: BTreeMap<u64, Answer>,
    next: u64,
}

/// An option as a client sends it.
pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// A connection behind the greeting and the client's flags.
pub(crate) fn greeted(host: &Host) -> UnixStream {
    let mut stream = UnixStream::connect(&host.socket).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"NBDMAGICIHAVEOPT\0\x03");
    stream.write_all(&[0, 0, 0, 3]).unwrap();
    stream
}

/// Kind and data of the next reply to an option.
pub(crate) fn option_reply(stream: &mut UnixStream) -> (u32, Vec<u8>) {
    let mut header = [0; 20];
    stream.read_exact(&mut header).unwrap();
    let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().unwrap());
    let mut data = vec![0; number(16) as usize];
    stream.read_exact(&mut data).unwrap();
    (number(12), data)
}

/// Whether the server has ended the connection.
pub(crate) fn is_closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    // What was received before does not matter, nor how the end shows.
    let ended = stream.read_to_end(&mut rest);
    !matches!(ended, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

impl Client {
    pub(crate) fn connect(host: &Host, replies: Replies) -> Client {
        let mut stream = greeted(host);
        if replies == Replies::Structured {
            stream
                .write_all(&option(option::STRUCTURED_REPLY, &[]))
                .unwrap();
            assert_eq!(option_reply(&mut stream).0, 1);
            let context = b"\0\0\0\0\0\0\0\x01\0\0\0\x0fbase:allocation";
            stream
                .write_all(&option(option::SET_META_CONTEXT, context))
                .unwrap();
            assert_eq!(
                [option_reply(&mut stream).0, option_reply(&mut stream).0],
                [4, 1]
            );
        }
        stream.write_all(&option(option::GO, &[0; 6])).unwrap();
        while option_reply(&mut stream).0 != 1 {}
        Client {
            stream,
            reads: BTreeMap::new(),
            partial: BTreeMap::new(),
            next: 1,
        }
    }

    /// Sends a request; its cookie.
    pub(crate) fn send(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> u64 {
        let cookie = self.next;
        self.next += 1;
        let header = Header {
            flags,
            command,
            cookie,
            offset,
            len,
        };
        let bytes = [&header.encode()[..], data].concat();
        self.stream.write_all(&bytes).unwrap();
        if command == 0 {
            self.reads.insert(cookie, (offset, len));
        }
        cookie
    }

    fn number(&mut self, len: usize) -> u64 {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes[8 - len..]).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn small(&mut self) -> u32 {
        u32::try_from(self.number(4)).unwrap()
    }

    fn data(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// The next answer that is whole, and whose it is.
    pub(crate) fn receive(&mut self) -> (u64, Answer) {
        loop {
            let magic = self.small();
            if magic == SIMPLE_REPLY_MAGIC {
                let errno = self.small();
                let cookie = self.number(8);
                let mut answer = Answer {
                    errno,
                    ..Answer::default()
                };
                if let Some((offset, len)) = self.reads.remove(&cookie)
                    && errno == 0
                {
                    answer.data.insert(offset, self.data(len as usize));
                }
                return (cookie, answer);
            }
            assert_eq!(magic, CHUNK_MAGIC);
            if let Some(done) = self.chunk() {
                return done;
            }
        }
    }

    fn chunk(&mut self) -> Option<(u64, Answer)> {
        let flags = self.number(2);
        let kind = u16::try_from(self.number(2)).unwrap();
        let cookie = self.number(8);
        let len = self.small() as usize;
        let mut answer = self.partial.remove(&cookie).unwrap_or_default();
        answer.chunks += 1;
        match kind {
            chunk::NONE => assert_eq!(len, 0),
            chunk::OFFSET_DATA => {
                let offset = self.number(8);
                let data = self.data(len - 8);
                let (start, asked) = self.reads[&cookie];
                let end = start + u64::from(asked);
                assert!(offset >= start && offset + data.len() as u64 <= end);
                assert!(answer.data.insert(offset, data).is_none());
            }
            chunk::BLOCK_STATUS => {
                assert_eq!(self.small(), 1);
                for _ in 0..(len - 4) / 8 {
                    let extent = (self.small(), self.small());
                    answer.extents.push(extent);
                }
            }
            chunk::ERROR | chunk::ERROR_OFFSET => {
                answer.errno = self.small();
                self.data(len - 4);
            }
            _ => panic!("chunk {kind}"),
        }
        if flags & 1 == 0 {
            self.partial.insert(cookie, answer);
            return None;
        }
        self.reads.remove(&cookie);
        Some((cookie, answer))
    }

    /// Sends a request and waits for its answer, the only one that is to come.
    pub(crate) fn call(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        len: u32,
        data: &[u8],
    ) -> Answer {
        let cookie = self.send(command, flags, offset, len, data);
        let (answered, answer) = self.receive();
        assert_eq!(answered, cookie);
        answer
    }

    pub(crate) fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        self.call(0, 0, offset, len, &[]).bytes()
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let len = u32::try_from(data.len()).unwrap();
        assert_eq!(self.call(1, 0, offset, len, data).errno, 0);
    }
}
