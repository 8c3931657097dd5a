//! What an NBD client sends: the handshake as a state machine, and a whole connection over a volume in memory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_endpoint::{Driver, ServedVolume};
use archipelago_nbd::config::{AttachConfig, HANDSHAKE_MAX};
use archipelago_nbd::{Endpoint, Server};
use archipelago_nbd_protocol::handshake::{Broken, Handshake, Progress, Refusal};
use archipelago_nbd_protocol::offer::Offer;
use archipelago_nbd_protocol::request::{HEADER_LEN, Header, Terms};
use archipelago_protocol::{Lineage, ObjectSize, OnFull};

use super::device::NoWakeups;

const SIZE: usize = 1 << 20;
/// Turns after which everything that was sent is dealt with: each takes some requests, or some hundred bytes.
const TURNS: usize = 256;
/// Output that a handshake may gather: a few replies to each of the options that are answered.
const OUTPUT_MAX: usize = 64 * 1024;

/// The handshake alone, as fast as bytes come: with the one export of a socket, and as a server of several does it, with TLS.
pub(crate) fn handshake(input: &[u8]) {
    let offer = Offer {
        name: "vm1",
        size: SIZE as u64,
        read_only: false,
    };
    if let Some((left, terms)) = negotiate(Handshake::new(), input, |handshake, bytes| {
        handshake.take_with(bytes, &offer)
    }) {
        requests(left, &terms);
    }
    negotiate(Handshake::with_tls(), input, |handshake, bytes| {
        let progress = handshake.take(bytes)?;
        match progress {
            Progress::Names => handshake.list(Ok(["vm1", "vm2"].into_iter())),
            Progress::Described | Progress::Chosen => {
                let found = match handshake.name() {
                    b"" | b"vm1" => Ok(&offer),
                    _ => Err(Refusal::Policy("in use")),
                };
                return handshake.answer(found);
            }
            Progress::StartTls => handshake.encrypted(),
            progress => return Ok(progress),
        }
        Ok(Progress::Continues)
    });
}

/// The terms that are agreed on, and the bytes behind them.
fn negotiate(
    mut handshake: Handshake,
    input: &[u8],
    mut take: impl FnMut(&mut Handshake, &[u8]) -> Result<Progress, Broken>,
) -> Option<(&[u8], Terms)> {
    let mut left = input;
    let mut agreed = None;
    while let Some((now, rest)) = left.split_at_checked(handshake.wants()) {
        left = rest;
        match take(&mut handshake, now) {
            Ok(Progress::Continues) if !now.is_empty() => {}
            Ok(Progress::Agreed(terms)) => {
                agreed = Some((left, terms));
                break;
            }
            Ok(_) | Err(_) => break,
        }
    }
    assert!(handshake.output().len() < OUTPUT_MAX);
    if agreed.is_some() {
        assert_eq!(handshake.wants(), 0);
    }
    agreed
}

/// What passes the check lies inside the export, in whole sectors.
fn requests(input: &[u8], terms: &Terms) {
    for bytes in input.as_chunks::<HEADER_LEN>().0 {
        let Ok(header) = Header::decode(bytes) else {
            continue;
        };
        // Flushes and goodbyes have no range.
        if header.check(terms).is_ok() && ![2, 3].contains(&header.command) {
            assert!(header.offset + u64::from(header.len) <= terms.size);
            assert!(header.offset.is_multiple_of(512) && header.len.is_multiple_of(512));
        }
    }
}

/// A connection: the input behind the greeting, and an honest client beside it.
pub(crate) fn connection(input: &[u8]) {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("n");
    let config = AttachConfig {
        volume: ServedVolume {
            lineage: Lineage(1),
            size: SIZE as u64,
            object_size: ObjectSize::DEFAULT,
            read_only: false,
            serial: String::new(),
            on_full: OnFull::Report,
        },
        socket: socket.clone(),
        socket_mode: AttachConfig::SOCKET_MODE,
        export: "vm1".to_owned(),
        handshake_max: HANDSHAKE_MAX,
    };
    let (_endpoint, seed) = Endpoint::attach(config).expect("attached");
    let volumes = MemoryVolumes::new(SIZE);
    let mut server = seed
        .build(volumes, NoWakeups::default())
        .expect("watched by nobody");
    let mut hostile = UnixStream::connect(&socket).expect("it listens");
    let mut honest = UnixStream::connect(&socket).expect("it listens");
    for stream in [&hostile, &honest] {
        stream.set_nonblocking(true).expect("a socket");
    }
    let mut left = input;
    for _ in 0..TURNS {
        // Whoever is sent away or breaks the connection gets errors.
        if let Ok(sent) = hostile.write(left) {
            left = &left[sent..];
        }
        let _gone = hostile.read(&mut [0; 4096]);
        server.poll();
    }
    drop(hostile);
    is_served(&mut honest, &mut server);
}

/// The client at `stream` gets a sector: simple replies, the default export.
fn is_served(stream: &mut UnixStream, server: &mut Server<MemoryVolumes, NoWakeups>) {
    let mut request = [0, 0, 0, 3].to_vec();
    request.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    let read = Header {
        flags: 0,
        command: 0,
        cookie: 9,
        offset: 0,
        len: 512,
    };
    request.extend(read.encode());
    stream.write_all(&request).expect("a few bytes");
    let expected = 18 + 10 + 16 + 512;
    let mut answer: Vec<u8> = Vec::new();
    for _ in 0..TURNS {
        server.poll();
        let mut bytes = [0; 1024];
        if let Ok(len) = stream.read(&mut bytes) {
            answer.extend_from_slice(&bytes[..len]);
        }
    }
    assert_eq!(answer.len(), expected, "an honest client is served");
    assert_eq!(answer[32..36], [0; 4], "without an error");
}
