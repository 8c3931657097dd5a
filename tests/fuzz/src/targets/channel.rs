//! Channels between processes: messages, headers, ring entries, from a client that lies and from a server that lies.
//!
//! The misbehaving peers are written from `docs/segment-format.md`, without the code under test.

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect,
    listen, recv, sendmsg, socket,
};
use xseg::shared::{
    Admission, ConnectOptions, Listener, OnServerDeath, SharedClient, SharedServer,
};
use xseg::{ClientPort, Completion, Region, RegionId, ServerPort, Submission};

use crate::input::Input;

/// Requests in flight of the channels here.
const SIZE: u64 = 4;
const MEMORY_LEN: usize = 0x2000;
const ARENA_LEN: usize = 4096;
const REQUESTS: u64 = 0x80;
const COMPLETIONS: u64 = 0x100;
const ENTRIES: u64 = 0x1000;
/// `F_SEAL_SEAL`, `SHRINK`, `GROW` and `FUTURE_WRITE`: the last one is unknown to the crate `nix`.
const SEALS: i32 = 0x1 | 0x2 | 0x4 | 0x10;

pub(crate) fn message(bytes: &[u8]) {
    let mut whole = bytes.to_vec();
    whole.resize(64, 0);
    whole[..8].copy_from_slice(b"XSEGMSG1");
    whole[8..10].copy_from_slice(&1_u16.to_le_bytes());
    for bytes in [bytes, &whole] {
        if let Some(again) = xseg::fuzzing::message(bytes) {
            assert_eq!(xseg::fuzzing::message(&again), Some(again));
        }
    }
}

fn message_of(kind: u64, operands: [u64; 4]) -> [u8; 64] {
    let mut bytes = [0; 64];
    let words = [u64::from_le_bytes(*b"XSEGMSG1"), 1 | kind << 32]
        .into_iter()
        .chain(operands);
    for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

fn header(direction: u8, incarnation: u64) -> [u8; 128] {
    let mut header = [0; 128];
    let (log2, entry) = if direction == 1 { (2, 64_u16) } else { (3, 32) };
    header[..8].copy_from_slice(b"XSEGCH01");
    header[0x08] = 1;
    header[0x0c] = 128;
    header[0x10..0x18].copy_from_slice(&(MEMORY_LEN as u64).to_le_bytes());
    header[0x18] = direction;
    header[0x19] = log2;
    header[0x1a..0x1c].copy_from_slice(&entry.to_le_bytes());
    header[0x20..0x28].copy_from_slice(&ENTRIES.to_le_bytes());
    header[0x30..0x38].copy_from_slice(&1_u64.to_le_bytes());
    header[0x38..0x40].copy_from_slice(&incarnation.to_le_bytes());
    seal(&mut header);
    header
}

fn seal(header: &mut [u8; 128]) {
    let crc = crc32c::crc32c(&header[..0x78]);
    header[0x78..0x7c].copy_from_slice(&crc.to_le_bytes());
    header[0x7c..].fill(0);
}

/// Control memory of the misbehaving peer, sealed as the other side wants it.
fn memory(header: &[u8; 128]) -> (OwnedFd, Region) {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"peer", flags).expect("a memfd");
    nix::unistd::ftruncate(&fd, i64::try_from(MEMORY_LEN).expect("small")).expect("a memfd");
    let mapped = fd.try_clone().expect("a descriptor");
    let region = Region::from_fd(mapped, 0, MEMORY_LEN).expect("memory");
    region.write(0, header).expect("inside");
    fcntl(
        &fd,
        FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(SEALS)),
    )
    .expect("a memfd");
    (fd, region)
}

fn eventfd() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).expect("an eventfd")
}

fn seq_packet() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a socket")
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[RawFd]) {
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    let parts = [std::io::IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    // The other side may have disconnected already.
    let _gone = sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None);
}

/// What both misbehaving peers can do.
struct MisbehavingPeer {
    socket: OwnedFd,
    own: Region,
    arena: Region,
    doorbell: EventFd,
}

impl MisbehavingPeer {
    /// A word of the own half: anywhere, or one of those that mean something.
    fn scribble(&self, kind: u8, input: &mut Input<'_>) {
        let offset = match kind & 3 {
            0 => REQUESTS,
            1 => COMPLETIONS,
            2 => 0x180,
            _ => 8 * (u64::from(input.u16()) % (MEMORY_LEN as u64 / 8)),
        };
        let value = if kind & 4 == 0 {
            u64::from(input.u8())
        } else {
            input.u64()
        };
        self.own
            .store_u64(offset, value, Ordering::Release)
            .expect("inside");
    }

    fn entry(&self, index: u64, entry_len: u64, words: &[u64]) {
        let slots = (MEMORY_LEN as u64 - ENTRIES) / entry_len;
        let at = ENTRIES + index % slots * entry_len;
        for (word, place) in words.iter().zip(0..) {
            self.own
                .store_u64(at + 8 * place, *word, Ordering::Relaxed)
                .expect("inside");
        }
    }

    /// A message: any bytes, or one that is nearly right.
    fn say(&self, kind: u8, input: &mut Input<'_>) {
        let (arena, doorbell) = (
            self.arena.descriptor().0.as_raw_fd(),
            self.doorbell.as_raw_fd(),
        );
        let fds: &[RawFd] = match kind & 3 {
            0 => &[],
            1 => &[arena],
            2 => &[doorbell],
            _ => &[arena, doorbell, arena],
        };
        if kind & 4 == 0 {
            let which = u64::from(input.u8() & 7);
            let operands = std::array::from_fn(|_| u64::from(input.u8()) << (input.u8() & 31));
            send(&self.socket, &message_of(which, operands), fds);
        } else {
            let len = usize::from(input.u8());
            send(&self.socket, input.take(len), fds);
        }
    }
}

struct Place {
    directory: tempfile::TempDir,
    listener: Listener,
}

thread_local! {
    static SERVED: std::cell::RefCell<Option<Place>> = const { std::cell::RefCell::new(None) };
}

/// A server whose client lies.
pub(crate) fn server_port(bytes: &[u8]) {
    SERVED.with_borrow_mut(|place| {
        let place = place.get_or_insert_with(|| {
            let directory = tempfile::tempdir().expect("a directory");
            let admission = Admission::own(0..=u8::MAX);
            let listener =
                Listener::bind(&directory.path().join("s"), admission).expect("a listener");
            Place {
                directory,
                listener,
            }
        });
        let mut input = Input::new(bytes);
        let (peer, server) = misbehaving_client(place, &mut input);
        if let Some(server) = server {
            serve(server, &peer, input);
        }
        drop(peer);
        // Leftovers of a hello that was none.
        while place.listener.accept().is_some() {}
    });
}

fn misbehaving_client(
    place: &mut Place,
    input: &mut Input<'_>,
) -> (MisbehavingPeer, Option<SharedServer>) {
    let flags = input.u8();
    let mut hello = message_of(1, [1, 1, SIZE, ARENA_LEN as u64]);
    let mut header = header(1, 1);
    if flags & 1 != 0 {
        for _ in 0..4 {
            hello[input.below(64)] = input.u8();
        }
    }
    if flags & 2 != 0 {
        for _ in 0..4 {
            header[input.below(128)] = input.u8();
        }
        if flags & 4 != 0 {
            seal(&mut header);
        }
    }
    let (memory, own) = memory(&header);
    let arena = Region::anonymous(ARENA_LEN).expect("memory");
    let doorbells = [eventfd(), eventfd()];
    let socket = seq_packet();
    let path = place.directory.path().join("s");
    connect(
        socket.as_raw_fd(),
        &UnixAddr::new(&path).expect("a short path"),
    )
    .expect("the listener is there");
    let arena_fd = arena.descriptor().0.as_raw_fd();
    let mut fds = [
        memory.as_raw_fd(),
        arena_fd,
        doorbells[0].as_raw_fd(),
        doorbells[1].as_raw_fd(),
    ];
    if flags & 8 != 0 {
        fds.swap(input.below(4), input.below(4));
    }
    let count = if flags & 16 == 0 { 4 } else { input.below(5) };
    send(&socket, &hello, &fds[..count]);
    let mut server = place.listener.accept();
    if let Some(server) = &mut server {
        server.start();
    }
    let [doorbell, _] = doorbells;
    let peer = MisbehavingPeer {
        socket,
        own,
        arena,
        doorbell,
    };
    (peer, server)
}

fn serve(mut server: SharedServer, peer: &MisbehavingPeer, mut input: Input<'_>) {
    let mut open: Vec<Submission> = Vec::new();
    let mut tail = 0;
    while !input.is_empty() {
        let kind = input.u8();
        match kind >> 4 {
            0..=3 => peer.scribble(kind, &mut input),
            4..=6 => {
                let tag = u64::from(input.u8() & 7) | u64::from(input.u8()) << 16;
                let words: [u64; 8] =
                    std::array::from_fn(|word| if word == 0 { tag } else { input.u64() });
                peer.entry(tail % SIZE, 64, &words);
                tail += 1;
                peer.own
                    .store_u64(REQUESTS, tail, Ordering::Release)
                    .expect("inside");
            }
            7 => peer.say(kind, &mut input),
            8..=10 => open.extend(server.accept()),
            11 | 12 if !open.is_empty() => {
                let submission = open.swap_remove(input.below(open.len()));
                let tag = submission.tag;
                server.complete(Completion {
                    tag,
                    ..Completion::default()
                });
            }
            13 => {
                if server.prepare_sleep() {
                    let _maybe = server.prepare_sleep();
                }
                server.wake();
            }
            14 => {
                server.service();
            }
            _ => server.publish(),
        }
        assert!(
            open.len() as u64 <= SIZE,
            "more open requests than the ring has entries"
        );
        assert_eq!(server.in_flight(), open.len());
        if server.is_closed() {
            assert_eq!(server.accept(), None);
        }
    }
    // What was started is answered, also to a client that is gone.
    for submission in open.drain(..) {
        server.complete(Completion {
            tag: submission.tag,
            ..Completion::default()
        });
    }
    server.publish();
    assert_eq!(server.in_flight(), 0);
}

thread_local! {
    static SERVING: (tempfile::TempDir, PathBuf, UnixListener) = {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let socket = seq_packet();
        bind(socket.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("a fresh path");
        listen(&socket, Backlog::new(16).expect("small")).expect("a socket");
        (directory, path, UnixListener::from(socket))
    };
}

/// A client whose server lies.
pub(crate) fn client_port(bytes: &[u8]) {
    SERVING.with(|(_, path, listener)| {
        let mut input = Input::new(bytes);
        let flags = input.u8();
        let options = ConnectOptions {
            role: 7,
            client_id: 1,
            ring_size: usize::try_from(SIZE).expect("small"),
            arena_len: ARENA_LEN,
            on_server_death: if flags & 8 == 0 {
                OnServerDeath::Replay
            } else {
                OnServerDeath::Report
            },
            allowed_uids: Vec::new(),
        };
        let mut client = SharedClient::connect(path, options).expect("memory");
        let mut outstanding = BTreeSet::new();
        let mut cookie = 0;
        // Each connection meets a misbehaving server; a client that detects a violation connects again.
        while let Ok((socket, _)) = listener.accept() {
            misbehave(
                &mut client,
                socket.into(),
                &mut input,
                &mut outstanding,
                &mut cookie,
            );
            if input.is_empty() {
                break;
            }
            client.service();
        }
        drop(client);
        while listener.accept().is_ok() {}
    });
}

fn misbehave(
    client: &mut SharedClient,
    socket: OwnedFd,
    input: &mut Input<'_>,
    outstanding: &mut BTreeSet<u64>,
    cookie: &mut u64,
) {
    let flags = input.u8();
    let mut hello = [0; 64];
    let _its_hello = recv(socket.as_raw_fd(), &mut hello, MsgFlags::MSG_DONTWAIT);
    let incarnation = client.incarnation();
    let mut welcome = message_of(2, [1, incarnation, 0, 0]);
    let mut header = header(2, incarnation);
    if flags & 1 != 0 {
        welcome[input.below(64)] = input.u8();
    }
    if flags & 2 != 0 {
        header[input.below(128)] = input.u8();
        if flags & 4 != 0 {
            seal(&mut header);
        }
    }
    let (memory, own) = memory(&header);
    let peer = MisbehavingPeer {
        socket,
        own,
        arena: Region::anonymous(ARENA_LEN).expect("memory"),
        doorbell: eventfd(),
    };
    send(&peer.socket, &welcome, &[memory.as_raw_fd()]);
    client.service();
    let first = client.incarnation();
    let mut tail = 0;
    while !input.is_empty() && client.incarnation() == first {
        let kind = input.u8();
        match kind >> 4 {
            0..=2 => peer.scribble(kind, input),
            3..=5 => {
                let tag = u64::from(input.u8() & 7) | u64::from(input.u8()) << 16;
                peer.entry(tail, 32, &[tag, input.u64(), input.u64(), input.u64()]);
                tail += 1;
                peer.own
                    .store_u64(COMPLETIONS, tail, Ordering::Release)
                    .expect("inside");
            }
            6 => peer.say(kind, input),
            7..=9 => {
                *cookie += 1;
                if client.submit(*cookie, Submission::default()).is_ok() {
                    outstanding.insert(*cookie);
                }
                client.publish();
            }
            10..=12 => {
                if let Some((cookie, _)) = client.complete() {
                    assert!(outstanding.remove(&cookie), "answered twice or never asked");
                }
            }
            13 => {
                let id = RegionId(1 + u32::from(input.u8() & 3));
                if kind & 1 == 0 {
                    let _too_many = client.add_region(id, peer.arena.clone());
                } else {
                    client.remove_region(id);
                }
            }
            14 => {
                if client.prepare_sleep() {
                    client.wake();
                }
                client.wake();
            }
            _ => {
                client.service();
            }
        }
        assert!(client.in_flight() as u64 <= SIZE);
    }
}
