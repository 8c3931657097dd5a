//! A hostile front end with its guest: the adversary attacks at full speed, again and again.
//!
//! Each [`Attack`] is what a hostile virtual machine or its hypervisor can do to the process that serves it. No attack requests
//! real I/O: that would be a busy neighbour, not a hostile one.

use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use xseg::Region;

use crate::load::Random;
use crate::waiting::now;

const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
const MEMORY: usize = 4 << 20;
const PAGE: u64 = 4096;
/// Entries of the ring.
const RING: u16 = 1024;
const AVAIL: u64 = 0x8000;
const USED: u64 = 0xa000;
/// Where indirect tables and buffers are.
const TABLE: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;
/// Memory slots of a guest: close to the limit of the device.
const SLOTS: u64 = 500;
/// VERSION_1, PROTOCOL_FEATURES, INDIRECT_DESC, CONFIG_WCE, FLUSH.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28 | 1 << 11 | 1 << 9;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Longest time of one connection.
const CONNECTION_TIME: Duration = Duration::from_millis(100);
/// Longest wait for an answer: far beyond any healthy server's.
const TIMEOUT: Duration = Duration::from_secs(20);

/// What the adversary does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Attack {
    /// Random descriptors and avail indices, until the ring breaks; then anew.
    Chains,
    /// Well-formed requests that the device refuses at once, the ring always full.
    Refusals,
    /// Requests of as many pieces as there may be, in the last of as many memory slots as there may be.
    Pieces,
    /// Messages of any kind and form, and half ones.
    Messages,
    /// Connect, start the ring, disconnect.
    Reconnects,
    /// Guest memory whose file is truncated under the device.
    Truncation,
}

impl Attack {
    /// All of them.
    pub const ALL: [Attack; 6] = [
        Attack::Chains,
        Attack::Refusals,
        Attack::Pieces,
        Attack::Messages,
        Attack::Reconnects,
        Attack::Truncation,
    ];
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Connections made.
    pub connections: u64,
    /// Chains offered.
    pub chains: u64,
    /// Messages sent.
    pub messages: u64,
}

/// Attacks the server at `socket`, in random order, until `stop` is set.
///
/// # Errors
/// The server does not accept connections, or does not answer any more: the attack has harmed it.
pub fn attack(socket: &Path, attacks: &[Attack], stop: &AtomicBool, seed: u64) -> Result<Tally> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    while !stop.load(Ordering::Relaxed) {
        let attack = attacks[usize::try_from(random.below(attacks.len() as u64))?];
        let mut guest = Guest::connect(socket, attack == Attack::Truncation)?;
        tally.connections += 1;
        // A refusal midway only ends the connection early: the server disconnects a front end that breaks the rules.
        match attack {
            Attack::Chains => guest.chains(&mut random, stop, &mut tally)?,
            Attack::Refusals => guest.refusals(stop, &mut tally)?,
            Attack::Pieces => guest.pieces(stop, &mut tally)?,
            Attack::Messages => guest.messages(&mut random, &mut tally)?,
            Attack::Reconnects => guest.start(1)?,
            Attack::Truncation => guest.truncation(&mut tally)?,
        }
    }
    Ok(tally)
}

struct Guest {
    stream: UnixStream,
    memory: Region,
    file: OwnedFd,
    kick: EventFd,
    error: EventFd,
    avail: u16,
}

fn eventfd() -> Result<EventFd> {
    Ok(EventFd::from_flags(
        EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC,
    )?)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Guest {
    fn connect(socket: &Path, unsealed: bool) -> Result<Guest> {
        let stream = UnixStream::connect(socket).context("the server does not accept")?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        let memory = if unsealed {
            let file = tempfile::tempfile()?;
            file.set_len(MEMORY as u64)?;
            Region::from_fd(file.into(), 0, MEMORY)?
        } else {
            Region::anonymous(MEMORY)?
        };
        let file = memory.descriptor().0.try_clone()?;
        Ok(Guest {
            stream,
            memory,
            file,
            kick: eventfd()?,
            error: eventfd()?,
            avail: 0,
        })
    }

    fn send(&self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> Result<()> {
        let mut bytes = Vec::with_capacity(12 + body.len());
        for word in [request, flags | 1, u32::try_from(body.len())?] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(body);
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<()>(
            self.stream.as_raw_fd(),
            &parts,
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Sends a message, and returns the first word of its answer.
    fn query(&mut self, request: u32, flags: u32, body: &[u8], fds: &[RawFd]) -> Result<u64> {
        self.send(request, flags, body, fds)?;
        let mut answer = [0; 20];
        self.stream
            .read_exact(&mut answer)
            .with_context(|| format!("message {request} is not answered"))?;
        let mut word = [0; 8];
        word.copy_from_slice(&answer[12..]);
        Ok(u64::from_le_bytes(word))
    }

    /// Sends a message that the server must acknowledge.
    fn set(&mut self, request: u32, body: &[u64], fds: &[RawFd]) -> Result<()> {
        let answer = self.query(request, 8, &words(body), fds)?;
        ensure!(answer == 0, "message {request} is refused");
        Ok(())
    }

    fn negotiate(&mut self) -> Result<()> {
        self.send(3, 0, &[], &[])?;
        let offered = self.query(1, 0, &[], &[])?;
        let protocol = self.query(15, 0, &[], &[])?;
        self.send(16, 0, &words(&[protocol]), &[])?;
        self.set(2, &[FEATURES & offered], &[])
    }

    /// Starts the ring, with the memory in this many slots.
    fn start(&mut self, slots: u64) -> Result<()> {
        self.negotiate()?;
        let fd = self.file.as_raw_fd();
        let first = MEMORY as u64 - (slots - 1) * PAGE;
        self.set(37, &[0, GUEST, first, USER, 0], &[fd])?;
        for slot in 0..slots - 1 {
            let at = first + slot * PAGE;
            self.set(37, &[0, GUEST + at, PAGE, USER + at, at], &[fd])?;
        }
        let (kick, error) = (self.kick.as_raw_fd(), self.error.as_raw_fd());
        self.set(8, &[u64::from(RING) << 32], &[])?;
        self.set(10, &[0], &[])?;
        self.set(9, &[0, USER, USER + USED, USER + AVAIL, 0], &[])?;
        self.set(14, &[0], &[error])?;
        self.set(12, &[0], &[kick])?;
        self.set(18, &[1 << 32], &[])
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) -> Result<()> {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        Ok(self.memory.write(at, &words(&[address, rest]))?)
    }

    fn offer(&mut self, head: u16) -> Result<()> {
        let at = AVAIL + 4 + 2 * u64::from(self.avail % RING);
        self.memory.store_u16(at, head, Ordering::Relaxed)?;
        self.avail = self.avail.wrapping_add(1);
        Ok(self
            .memory
            .store_u16(AVAIL + 2, self.avail, Ordering::Release)?)
    }

    fn ring(&self) {
        // Full: it rings already.
        let _rings = self.kick.write(1);
    }

    fn chains(&mut self, random: &mut Random, stop: &AtomicBool, tally: &mut Tally) -> Result<()> {
        self.start(1)?;
        let end = now() + CONNECTION_TIME;
        while self.error.read().is_err() && now() < end && !stop.load(Ordering::Relaxed) {
            for _ in 0..64 {
                let entry = random.below(u64::from(RING));
                let bits = random.next();
                let address = match bits & 3 {
                    0 => bits,
                    1 => GUEST + MEMORY as u64 - (bits >> 8 & 0xff),
                    _ => GUEST + (bits >> 8) % MEMORY as u64,
                };
                let [flags, len_bits, ..] = (bits >> 32).to_le_bytes();
                let len = 16 << (len_bits & 15);
                let next = u16::try_from(random.below(u64::from(RING)))?;
                self.descriptor(16 * entry, address, len, u16::from(flags & 7), next)?;
            }
            let head = u16::try_from(random.below(u64::from(RING) + 1))?;
            self.offer(head)?;
            tally.chains += 1;
            self.ring();
        }
        Ok(())
    }

    /// Keeps the ring full of the chain at `head` of each entry.
    fn flood(&mut self, stop: &AtomicBool, tally: &mut Tally, heads: &[u16]) -> Result<()> {
        let end = now() + CONNECTION_TIME;
        let mut done: u16 = 0;
        for head in heads {
            self.offer(*head)?;
        }
        self.ring();
        let mut progress = now();
        while now() < end && !stop.load(Ordering::Relaxed) {
            let used = self.memory.load_u16(USED + 2, Ordering::Acquire)?;
            if used == done {
                ensure!(
                    now() - progress < TIMEOUT,
                    "the ring is not served any more"
                );
                std::thread::yield_now();
                continue;
            }
            progress = now();
            while done != used {
                let at = USED + 4 + 8 * u64::from(done % RING);
                let head = self.memory.load_u32(at, Ordering::Relaxed)?;
                self.offer(u16::try_from(head)?)?;
                done = done.wrapping_add(1);
                tally.chains += 1;
            }
            self.ring();
        }
        Ok(())
    }

    fn refusals(&mut self, stop: &AtomicBool, tally: &mut Tally) -> Result<()> {
        self.start(1)?;
        // A request of no known kind.
        self.memory.write(BUFFERS, &words(&[77, 0]))?;
        let heads: Vec<u16> = (0..RING / 2).map(|pair| 2 * pair).collect();
        for head in &heads {
            let at = 16 * u64::from(*head);
            self.descriptor(at, GUEST + BUFFERS, 16, NEXT, head + 1)?;
            self.descriptor(
                at + 16,
                GUEST + BUFFERS + 64 + u64::from(*head),
                1,
                WRITE,
                0,
            )?;
        }
        self.flood(stop, tally, &heads)
    }

    fn pieces(&mut self, stop: &AtomicBool, tally: &mut Tally) -> Result<()> {
        self.start(SLOTS)?;
        let last = GUEST + MEMORY as u64 - PAGE;
        // A write of 509 single bytes: no whole sectors, so the device refuses it after looking at all of it.
        for piece in 0..511_u16 {
            let at = TABLE + 16 * u64::from(piece);
            let (len, flags) = match piece {
                0 => (16, NEXT),
                510 => (1, WRITE),
                _ => (1, NEXT),
            };
            self.descriptor(at, last, len, flags, piece + 1)?;
        }
        self.memory.write(MEMORY as u64 - PAGE, &words(&[1, 0]))?;
        let heads: Vec<u16> = (0..RING).collect();
        for head in &heads {
            self.descriptor(16 * u64::from(*head), GUEST + TABLE, 511 * 16, INDIRECT, 0)?;
        }
        self.flood(stop, tally, &heads)
    }

    fn messages(&mut self, random: &mut Random, tally: &mut Tally) -> Result<()> {
        self.negotiate()?;
        let fds = [self.file.as_raw_fd(), self.kick.as_raw_fd()];
        for _ in 0..64 {
            let bits = random.next();
            let [request, flags, len, count, ..] = bits.to_le_bytes();
            let body: Vec<u8> = (0..len % 64 / 8)
                .flat_map(|_| random.next().to_le_bytes())
                .collect();
            let count = usize::from(count % 4 / 2);
            let first = usize::from(flags & 1);
            // The server has disconnected, as it should.
            if self
                .send(
                    u32::from(request % 48),
                    u32::from(flags & 0xe),
                    &body,
                    &fds[first..first + count],
                )
                .is_err()
            {
                break;
            }
            tally.messages += 1;
        }
        Ok(())
    }

    fn truncation(&mut self, tally: &mut Tally) -> Result<()> {
        self.start(1)?;
        let head = 0;
        self.descriptor(0, GUEST + BUFFERS, 16, NEXT, 1)?;
        self.descriptor(16, GUEST + BUFFERS + 16, 1, WRITE, 0)?;
        self.offer(head)?;
        tally.chains += 1;
        // The device may look at the memory before or meanwhile; nothing here touches the memory any more.
        nix::unistd::ftruncate(&self.file, 0)?;
        self.ring();
        Ok(())
    }
}
