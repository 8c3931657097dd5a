//! A front end and guest driver written by hand: what the client crate cannot do, and what no honest one would.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use xseg::Region;

use crate::host::eventually;

pub(crate) const GUEST: u64 = 0x10_0000;
pub(crate) const USER: u64 = 0x7f00_0000_0000;
pub(crate) const MEMORY: u64 = 1 << 20;
pub(crate) const RING: u16 = 16;
const DESCRIPTORS: u64 = 0;
pub(crate) const AVAIL: u64 = 0x1000;
pub(crate) const USED: u64 = 0x2000;
/// Where buffers may be.
pub(crate) const BUFFERS: u64 = 0x1_0000;
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 9 | 1 << 11;
pub(crate) const WRITE: u16 = 2;

/// One connection and one guest with one queue; the guest outlives connections.
pub(crate) struct FrontEnd {
    pub(crate) stream: UnixStream,
    pub(crate) memory: Region,
    pub(crate) kick: OwnedFd,
    pub(crate) call: EventFd,
    pub(crate) error: EventFd,
    pub(crate) avail: u16,
    pub(crate) seen: u16,
    pub(crate) features: u64,
}

fn bell() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap()
}

pub(crate) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl FrontEnd {
    pub(crate) fn connect(socket: &str) -> FrontEnd {
        FrontEnd {
            stream: UnixStream::connect(socket).unwrap(),
            memory: Region::anonymous(usize::try_from(MEMORY).unwrap()).unwrap(),
            kick: OwnedFd::from(bell()),
            call: bell(),
            error: bell(),
            avail: 0,
            seen: 0,
            features: FEATURES,
        }
    }

    pub(crate) fn reconnect(&mut self, socket: &str) {
        self.stream = UnixStream::connect(socket).unwrap();
    }

    pub(crate) fn send(&mut self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) {
        let mut bytes = Vec::new();
        let len = u32::try_from(body.len()).unwrap();
        for word in [request, flags | 1, len] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        let sent = sendmsg::<()>(
            self.stream.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        assert_eq!(sent.unwrap(), bytes.len());
    }

    /// The body of the next answer; `None`: hung up.
    pub(crate) fn answer(&mut self) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).ok()?;
        let mut body = vec![0; usize::from(header[8])];
        self.stream.read_exact(&mut body).ok()?;
        Some(body)
    }

    /// Sends and takes the acknowledgement: 0 is success.
    pub(crate) fn ask(&mut self, request: u32, body: &[u8], fds: &[RawFd]) -> Option<u64> {
        self.send(request, 8, body, fds);
        let body = self.answer()?;
        Some(u64::from_le_bytes(body[..8].try_into().unwrap()))
    }

    pub(crate) fn get(&mut self, request: u32) -> u64 {
        self.send(request, 0, &[], &[]);
        u64::from_le_bytes(self.answer().unwrap()[..8].try_into().unwrap())
    }

    pub(crate) fn negotiate(&mut self) {
        self.send(3, 0, &[], &[]);
        let offered = self.get(1);
        assert_eq!(offered & self.features, self.features);
        let protocol = self.get(15);
        self.send(16, 0, &words(&[protocol]), &[]);
        assert_eq!(self.ask(2, &words(&[self.features]), &[]), Some(0));
    }

    pub(crate) fn add_memory(&mut self) {
        let fd = self.memory.descriptor().0.as_raw_fd();
        let body = words(&[0, GUEST, MEMORY, USER, 0]);
        assert_eq!(self.ask(37, &body, &[fd]), Some(0));
    }

    pub(crate) fn start_ring(&mut self, base: u16, log: Option<u64>) {
        let state = |num: u16| words(&[u64::from(num) << 32]);
        assert_eq!(self.ask(8, &state(RING), &[]), Some(0));
        assert_eq!(self.ask(10, &state(base), &[]), Some(0));
        self.set_ring_address(log);
        let (call, kick) = (self.call.as_raw_fd(), self.kick.as_raw_fd());
        let error = self.error.as_raw_fd();
        assert_eq!(self.ask(13, &words(&[0]), &[call]), Some(0));
        assert_eq!(self.ask(14, &words(&[0]), &[error]), Some(0));
        assert_eq!(self.ask(12, &words(&[0]), &[kick]), Some(0));
        assert_eq!(self.ask(18, &state(1), &[]), Some(0));
    }

    pub(crate) fn set_ring_address(&mut self, log: Option<u64>) {
        let flags = u64::from(log.is_some()) << 32;
        let body = words(&[
            flags,
            USER + DESCRIPTORS,
            USER + USED,
            USER + AVAIL,
            log.unwrap_or(0),
        ]);
        assert_eq!(self.ask(9, &body, &[]), Some(0));
    }

    pub(crate) fn start(&mut self) {
        self.negotiate();
        self.add_memory();
        self.start_ring(0, None);
    }

    /// GET_VRING_BASE.
    pub(crate) fn stop_ring(&mut self) -> u16 {
        self.send(11, 0, &words(&[0]), &[]);
        let body = self.answer().unwrap();
        u16::from_le_bytes([body[4], body[5]])
    }

    /// GET_INFLIGHT_FD: the answer's body and the descriptor.
    pub(crate) fn inflight(&mut self) -> (Vec<u8>, OwnedFd) {
        let body = words(&[0, 0, 1 | u64::from(RING) << 16]);
        self.send(31, 0, &body, &[]);
        let mut bytes = [0; 12 + 24];
        let (len, file) = self.stream.recv_with_fd(&mut bytes).unwrap();
        assert_eq!(len, bytes.len());
        (bytes[12..].to_vec(), OwnedFd::from(file.unwrap()))
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + 16 * u64::from(index);
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.memory.write(at, &words(&[address, rest])).unwrap();
    }

    pub(crate) fn offer(&mut self, head: u16) {
        let at = AVAIL + 4 + 2 * u64::from(self.avail % RING);
        self.memory.store_u16(at, head, Ordering::Relaxed).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.memory
            .store_u16(AVAIL + 2, self.avail, Ordering::Release)
            .unwrap();
    }

    pub(crate) fn ring(&self) {
        nix::unistd::write(&self.kick, &1u64.to_le_bytes()).unwrap();
    }

    /// Buffers of `slot`, 16 KiB: header at 0, status at 16, data at 4096.
    pub(crate) fn buffer(slot: u16) -> u64 {
        BUFFERS + 0x4000 * u64::from(slot)
    }

    /// Offers a request of three descriptors from `3 * slot` on; `flags`: of the data.
    pub(crate) fn submit(&mut self, slot: u16, kind: u32, sector: u64, len: u32, flags: u16) {
        let buffer = Self::buffer(slot);
        self.memory
            .write(buffer, &words(&[u64::from(kind), sector]))
            .unwrap();
        self.memory.write(buffer + 16, &[0xff]).unwrap();
        let first = 3 * slot;
        let data = if len == 0 { first + 2 } else { first + 1 };
        self.descriptor(first, GUEST + buffer, 16, 1, data);
        self.descriptor(first + 1, GUEST + buffer + 4096, len, 1 | flags, first + 2);
        self.descriptor(first + 2, GUEST + buffer + 16, 1, WRITE, 0);
        self.offer(first);
        self.ring();
    }

    pub(crate) fn status(&self, slot: u16) -> u8 {
        let mut byte = [0];
        self.memory
            .read(Self::buffer(slot) + 16, &mut byte)
            .unwrap();
        byte[0]
    }

    pub(crate) fn used_index(&self) -> u16 {
        self.memory.load_u16(USED + 2, Ordering::Acquire).unwrap()
    }

    /// The next used entry: slot and length.
    pub(crate) fn used(&mut self) -> (u16, u32) {
        eventually("a completion", || self.used_index() != self.seen);
        let at = USED + 4 + 8 * u64::from(self.seen % RING);
        self.seen = self.seen.wrapping_add(1);
        let id = self.memory.load_u32(at, Ordering::Relaxed).unwrap();
        let len = self.memory.load_u32(at + 4, Ordering::Relaxed).unwrap();
        (u16::try_from(id).unwrap() / 3, len)
    }
}
