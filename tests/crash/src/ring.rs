//! The guest's side of one split ring (virtio 1.2, section 2.7), in memory that outlives every server.
//!
//! Invariants
//! - Slot `s` has descriptors `3s` to `3s + 2` (header, data, status) and a buffer, for itself.
//! - A head is offered again only when it came back. What comes back is reported as it is: a head that was not in flight is
//!   for the caller to find.

use std::sync::atomic::{Ordering, fence};

use anyhow::{Result, ensure};
use archipelago_bench::disk::{Done, Op};
use nix::errno::Errno;
use xseg::Region;

/// Where the guest's memory begins, as descriptors say it.
pub const GUEST: u64 = 0x10_0000;
/// The same as the front end says it, so that a server that mixes them up is found out.
pub const USER: u64 = 0x7f00_0000_0000;
/// Requests in flight at most: three descriptors each, and a ring that fits below its neighbour.
pub const SLOTS_MAX: usize = 80;
const DESCRIPTORS: u64 = 0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Headers and status bytes, [`REQUEST_LEN`] each.
const REQUESTS: u64 = 0x4000;
const REQUEST_LEN: u64 = 64;
/// Where in it the range of a discard, and the status byte stand.
const RANGE_AT: u64 = 16;
const STATUS_AT: u64 = 32;
const BUFFERS: u64 = 0x8000;
const _: () = assert!(REQUESTS + REQUEST_LEN * SLOTS_MAX as u64 <= BUFFERS);

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const NO_NOTIFY: u16 = 1;
/// What a status byte says before the device has written it.
const UNTOUCHED: u8 = 0xff;

/// A ring and its buffers.
#[derive(Debug)]
pub struct Ring {
    memory: Region,
    size: u16,
    buffer_len: usize,
    offered: u16,
    seen: u16,
}

/// Where the parts of a ring are, as SET_VRING_ADDR says it.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Avail ring.
    pub avail: u64,
    /// Used ring.
    pub used: u64,
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Ring {
    /// A ring for `slots` requests in flight, of at most `buffer_len` bytes each.
    ///
    /// # Errors
    /// If they are more than [`SLOTS_MAX`], or there is no memory.
    pub fn new(slots: usize, buffer_len: usize) -> Result<Self> {
        ensure!(
            slots <= SLOTS_MAX,
            "{slots} slots are more than {SLOTS_MAX}"
        );
        let len = usize::try_from(BUFFERS)? + slots * buffer_len;
        Ok(Ring {
            memory: Region::anonymous(len)?,
            size: u16::try_from((3 * slots).next_power_of_two())?,
            buffer_len,
            offered: 0,
            seen: 0,
        })
    }

    /// All of the guest's memory.
    #[must_use]
    pub fn memory(&self) -> &Region {
        &self.memory
    }

    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where it is.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        Addresses {
            descriptors: USER + DESCRIPTORS,
            avail: USER + AVAIL,
            used: USER + USED,
        }
    }

    /// The device's used index.
    ///
    /// # Errors
    /// Never: it is inside the memory.
    pub fn used_index(&self) -> Result<u16> {
        // Acquire: pairs with the device's release; used entries, status bytes and data are complete then.
        Ok(self.memory.load_u16(USED + 2, Ordering::Acquire)?)
    }

    fn buffer(&self, slot: usize) -> u64 {
        BUFFERS + (slot * self.buffer_len) as u64
    }

    /// Fills the buffer of `slot` from `data`.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn fill(&self, slot: usize, data: &[u8]) -> Result<()> {
        ensure!(
            data.len() <= self.buffer_len,
            "{} bytes do not fit a buffer",
            data.len()
        );
        Ok(self.memory.write(self.buffer(slot), data)?)
    }

    /// Copies the buffer of `slot` into `data`.
    ///
    /// # Errors
    /// If it is longer than a buffer.
    pub fn take(&self, slot: usize, data: &mut [u8]) -> Result<()> {
        ensure!(
            data.len() <= self.buffer_len,
            "{} bytes are more than a buffer",
            data.len()
        );
        Ok(self.memory.read(self.buffer(slot), data)?)
    }

    /// Offers a request; the device may see it at once, and must be kicked if [`Ring::wants_kick`].
    ///
    /// # Errors
    /// If the request cannot be said.
    pub fn submit(&mut self, slot: usize, op: Op, offset: u64, len: usize) -> Result<()> {
        ensure!(len <= self.buffer_len, "{len} bytes do not fit a buffer");
        let request = REQUESTS + REQUEST_LEN * slot as u64;
        let sector = offset / 512;
        // Types and layout: virtio 1.2, section 5.2.6.
        let (kind, unmap) = match op {
            Op::Read => (0, false),
            Op::Write => (1, false),
            Op::Flush => (4, false),
            Op::Discard => (11, false),
            Op::WriteZeroes { unmap } => (13, unmap),
        };
        let (data, len, flags) = match op {
            Op::Read => (self.buffer(slot), len, NEXT | WRITE),
            Op::Write => (self.buffer(slot), len, NEXT),
            Op::Flush => (0, 0, 0),
            Op::Discard | Op::WriteZeroes { .. } => {
                let rest = (len / 512) as u64 | u64::from(unmap) << 32;
                let at = request + RANGE_AT;
                self.memory.write(at, &words(&[sector, rest]))?;
                (at, 16, NEXT)
            }
        };
        let place = match op {
            Op::Read | Op::Write => sector,
            Op::Flush | Op::Discard | Op::WriteZeroes { .. } => 0,
        };
        self.memory.write(request, &words(&[kind, place]))?;
        self.memory.write(request + STATUS_AT, &[UNTOUCHED])?;
        let first = u16::try_from(3 * slot)?;
        let second = if len == 0 { first + 2 } else { first + 1 };
        self.descriptor(first, request, 16, NEXT, second)?;
        self.descriptor(first + 1, data, u32::try_from(len)?, flags, first + 2)?;
        self.descriptor(first + 2, request + STATUS_AT, 1, WRITE, 0)?;
        let entry = AVAIL + 4 + 2 * u64::from(self.offered % self.size);
        self.memory.store_u16(entry, first, Ordering::Relaxed)?;
        self.offered = self.offered.wrapping_add(1);
        // Release: pairs with the device's acquire of the avail index; descriptors and request are complete then.
        self.memory
            .store_u16(AVAIL + 2, self.offered, Ordering::Release)?;
        Ok(())
    }

    fn descriptor(&self, index: u16, at: u64, len: u32, flags: u16, next: u16) -> Result<()> {
        let rest = u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48;
        let entry = words(&[GUEST + at, rest]);
        Ok(self
            .memory
            .write(DESCRIPTORS + 16 * u64::from(index), &entry)?)
    }

    /// Whether the device asks to be kicked for what was offered.
    ///
    /// # Errors
    /// Never: the flags are inside the memory.
    pub fn wants_kick(&self) -> Result<bool> {
        // SeqCst: the avail index is out before the flags are read; pairs with the device's fence between its store of
        // the flags and its last look at the avail index.
        fence(Ordering::SeqCst);
        Ok(self.memory.load_u16(USED, Ordering::Relaxed)? & NO_NOTIFY == 0)
    }

    /// The next request that came back.
    ///
    /// # Errors
    /// If the used ring is more than a ring ahead.
    pub fn next_done(&mut self) -> Result<Option<Done>> {
        let waiting = self.used_index()?.wrapping_sub(self.seen);
        ensure!(
            waiting <= self.size,
            "the used index is {waiting} entries ahead, more than a ring"
        );
        if waiting == 0 {
            return Ok(None);
        }
        let entry = USED + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        let head = self.memory.load_u32(entry, Ordering::Relaxed)?;
        ensure!(
            head.is_multiple_of(3) && head < u32::from(self.size),
            "head {head} came back, which was never offered"
        );
        let slot = usize::try_from(head / 3)?;
        let mut status = [0];
        self.memory.read(
            REQUESTS + REQUEST_LEN * slot as u64 + STATUS_AT,
            &mut status,
        )?;
        // OK, IOERR, UNSUPP; anything else was never written by a device.
        let result = match status[0] {
            0 => 0,
            1 => -(Errno::EIO as i32),
            2 => -(Errno::EOPNOTSUPP as i32),
            other => -i32::from(other) - 1000,
        };
        Ok(Some(Done { slot, result }))
    }
}
