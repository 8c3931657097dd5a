//! Random operations on an NBD export, compared with a model of it: over several connections in turn, so that what one has been
//! answered the others must see. A failure prints the seed and the last operations.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::TcpStream;

use archipelago_nbd_protocol::request::{HEADER_LEN, Header};
use archipelago_nbd_protocol::wire::{
    CHUNK_MAGIC, SIMPLE_REPLY_MAGIC, chunk, command, command_flag, extent_flag,
};

/// Sectors of a request at most: more than one piece.
const SECTORS_MAX: u64 = 700;
const SECTOR: u64 = 512;
/// Operations that a failure prints.
const HISTORY: usize = 20;
/// Environment variable that replays a seed.
const SEED: &str = "ARCHIPELAGO_NBD_SEED";

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// One connection behind its handshake.
pub(crate) struct Connection {
    socket: TcpStream,
    cookie: u64,
}

impl Connection {
    /// Agrees on `export`, with structured replies and block status if `structured`.
    pub(crate) fn new(mut socket: TcpStream, export: &str, structured: bool) -> Connection {
        socket.set_nodelay(true).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        socket.write_all(&3_u32.to_be_bytes()).unwrap();
        let name = [&len_of(export.as_bytes())[..], export.as_bytes()].concat();
        if structured {
            option(&mut socket, 8, &[]);
            let query = b"base:allocation";
            let context = [&name, &1_u32.to_be_bytes()[..], &len_of(query), query].concat();
            option(&mut socket, 10, &context);
        }
        option(&mut socket, 7, &[&name, &[0, 0][..]].concat());
        Connection { socket, cookie: 0 }
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.socket.read_exact(&mut bytes).unwrap();
        bytes
    }

    /// Asks, and gives what a read or a status is answered.
    fn ask(&mut self, command: u16, flags: u16, offset: u64, len: u64, data: &[u8]) -> Vec<u8> {
        self.cookie += 1;
        let header = Header {
            flags,
            command,
            cookie: self.cookie,
            offset,
            len: u32::try_from(len).unwrap(),
        };
        let header: [u8; HEADER_LEN] = header.encode();
        self.socket
            .write_all(&[&header[..], data].concat())
            .unwrap();
        let mut answer = vec![
            0;
            if command == command::READ {
                index(len)
            } else {
                0
            }
        ];
        loop {
            let magic = u32::from_be_bytes(self.array());
            if magic == SIMPLE_REPLY_MAGIC {
                assert_eq!(u32::from_be_bytes(self.array()), 0, "an error");
                assert_eq!(u64::from_be_bytes(self.array()), self.cookie);
                self.socket.read_exact(&mut answer).unwrap();
                return answer;
            }
            assert_eq!(magic, CHUNK_MAGIC);
            let (flags, kind) = (
                u16::from_be_bytes(self.array()),
                u16::from_be_bytes(self.array()),
            );
            assert_eq!(u64::from_be_bytes(self.array()), self.cookie);
            let len = u32::from_be_bytes(self.array()) as usize;
            match kind {
                chunk::OFFSET_DATA => {
                    let at = index(u64::from_be_bytes(self.array()) - offset);
                    let data = self.bytes(len - 8);
                    answer[at..at + data.len()].copy_from_slice(&data);
                }
                chunk::BLOCK_STATUS => {
                    assert_eq!(u32::from_be_bytes(self.array()), 1);
                    answer = self.bytes(len - 4);
                }
                chunk::NONE => {}
                other => panic!("chunk {other:#x}"),
            }
            if flags & chunk::FLAG_DONE != 0 {
                return answer;
            }
        }
    }
}

fn len_of(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap().to_be_bytes()
}

/// Sends an option, and takes its replies, which must end in success.
fn option(socket: &mut TcpStream, number: u32, data: &[u8]) {
    let head = [&b"IHAVEOPT"[..], &number.to_be_bytes(), &len_of(data), data].concat();
    socket.write_all(&head).unwrap();
    loop {
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).unwrap();
        let kind = u32::from_be_bytes(reply[12..16].try_into().unwrap());
        let len = u32::from_be_bytes(reply[16..].try_into().unwrap());
        let mut data = vec![0; len as usize];
        socket.read_exact(&mut data).unwrap();
        assert!(
            kind < 1 << 31,
            "option {number}: {}",
            String::from_utf8_lossy(&data)
        );
        if kind == 1 {
            return;
        }
    }
}

/// Does `count` operations over `connections` on an export of `size` zeros; what it holds then.
pub(crate) fn run(connections: &mut [Connection], size: u64, count: u64) -> Vec<u8> {
    let seed = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | size >> 20);
    println!("seed {seed}: {SEED}={seed} repeats it");
    let mut random = Random(seed);
    let mut model = vec![0; index(size)];
    let mut history = VecDeque::new();
    for number in 0..count {
        let which = index(random.below(connections.len() as u64));
        let sectors = size / SECTOR;
        let begin = random.below(sectors);
        let longest = if random.below(4) == 0 {
            SECTORS_MAX
        } else {
            17
        };
        let len = SECTOR * (1 + random.below(longest.min(sectors - begin)));
        let range = (begin * SECTOR, len);
        if history.len() == HISTORY {
            history.pop_front();
        }
        let kind = random.below(100);
        history.push_back(format!("{kind} on {which}: {range:?}"));
        // The first one has no structured replies, and so no block status.
        let connection = &mut connections[which];
        if let Err(what) = step(connection, which > 0, &mut model, &mut random, kind, range) {
            let history = history.make_contiguous().join("\n");
            panic!("seed {seed}, operation {number}: {what}; the last ones:\n{history}");
        }
    }
    connections[0].ask(command::FLUSH, 0, 0, 0, &[]);
    model
}

fn step(
    connection: &mut Connection,
    structured: bool,
    model: &mut [u8],
    random: &mut Random,
    kind: u64,
    (offset, len): (u64, u64),
) -> Result<(), String> {
    let part = &mut model[index(offset)..index(offset + len)];
    let fua = if random.below(8) == 0 {
        command_flag::FUA
    } else {
        0
    };
    match kind {
        0..=39 => {
            let data = connection.ask(command::READ, 0, offset, len, &[]);
            let wrong = data.iter().zip(part.iter()).position(|(a, b)| a != b);
            return wrong.map_or(Ok(()), |at| {
                Err(format!(
                    "byte {} is {}, not {}",
                    offset + at as u64,
                    data[at],
                    part[at]
                ))
            });
        }
        40..=74 => {
            for bytes in part.chunks_mut(8) {
                bytes.copy_from_slice(&random.next().to_le_bytes()[..bytes.len()]);
            }
            connection.ask(command::WRITE, fua, offset, len, part);
        }
        75..=81 => {
            connection.ask(command::TRIM, fua, offset, len, &[]);
            part.fill(0);
        }
        82..=89 => {
            let keep = if random.below(2) == 0 {
                command_flag::NO_HOLE
            } else {
                0
            };
            connection.ask(command::WRITE_ZEROES, fua | keep, offset, len, &[]);
            part.fill(0);
        }
        90..=91 => {
            connection.ask(command::FLUSH, 0, 0, 0, &[]);
        }
        92 => {
            connection.ask(command::CACHE, 0, offset, len, &[]);
        }
        _ if structured => {
            let extents = connection.ask(command::BLOCK_STATUS, 0, offset, len, &[]);
            return holes_are_zeros(&extents, part);
        }
        _ => {}
    }
    Ok(())
}

/// Data may be said where zeros were written; a hole never where anything else was.
fn holes_are_zeros(extents: &[u8], part: &[u8]) -> Result<(), String> {
    let mut at = 0;
    for extent in extents.chunks_exact(8) {
        let len = u32::from_be_bytes(extent[..4].try_into().unwrap()) as usize;
        let flags = u32::from_be_bytes(extent[4..].try_into().unwrap());
        let run = part.get(at..at + len).ok_or("an extent beyond the range")?;
        if len == 0 || flags & extent_flag::ZERO != 0 && run.iter().any(|byte| *byte != 0) {
            return Err(format!("{len} bytes at {at} of it are said to be {flags}"));
        }
        at += len;
    }
    match at {
        0 => Err("no extent".to_owned()),
        _ => Ok(()),
    }
}
