//! Descriptor chains: from a head index to the request's readable and writable pieces.
//!
//! Invariants
//! - Each descriptor is copied once, and only the copy is used.
//! - A walk ends after [`CHAIN_MAX`] descriptors whatever the ring contains, so loops and long chains cost a bounded amount.
//! - A bad address or a piece out of order does not end the walk ([`Chain::fault`]), so that such a request still gets
//!   its status byte. A fault that hides the chain's end does end the walk.

use std::sync::atomic::Ordering;

use archipelago_protocol::volume::Segment;

use crate::memory::{MemoryTable, Place};

/// Most descriptors of one request: 254 data segments, header, status, and room for guests that split those.
pub const CHAIN_MAX: usize = 512;
/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Why a chain cannot be a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// An index is not below the size of the table.
    #[error("descriptor index {index} is not below the table's size {size}")]
    Index {
        /// The index.
        index: u16,
        /// Descriptors of the table.
        size: u32,
    },
    /// A loop, or more than [`CHAIN_MAX`] descriptors or pieces.
    #[error("the chain has no end within {CHAIN_MAX} descriptors: it loops or is too long")]
    TooLong,
    /// A descriptor cannot be read.
    #[error("descriptor {index} cannot be read from guest memory")]
    Unreadable {
        /// Its index.
        index: u16,
    },
    /// A buffer is not in guest memory.
    #[error("the buffer of {len} bytes at {address:#x} is not in guest memory")]
    Buffer {
        /// Its guest address.
        address: u64,
        /// Its bytes.
        len: u32,
    },
    /// An indirect table is not in guest memory.
    #[error("the indirect table of {len} bytes at {address:#x} is not in guest memory")]
    Table {
        /// Its guest address.
        address: u64,
        /// Its bytes.
        len: u32,
    },
    /// An indirect table of length zero, or of an odd length.
    #[error("an indirect table of {len} bytes is not a multiple of {DESCRIPTOR_LEN} above 0")]
    TableLen {
        /// Its bytes.
        len: u32,
    },
    /// An indirect descriptor without the feature.
    #[error("an indirect descriptor, but INDIRECT_DESC was not negotiated")]
    NotNegotiated,
    /// An indirect descriptor within an indirect table.
    #[error("an indirect descriptor stands in an indirect table")]
    Nested,
    /// A chain that continues after an indirect descriptor.
    #[error("an indirect descriptor has the flag NEXT")]
    NextAndIndirect,
    /// A readable piece after a writable one.
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
}

#[derive(Debug, Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

/// A request's pieces. One is kept per device and filled again for each request.
#[derive(Debug, Default)]
pub struct Chain {
    /// Pieces that the device may read.
    pub readable: Vec<Segment>,
    /// Pieces that the device may write.
    pub writable: Vec<Segment>,
    /// Guest addresses of `writable`.
    pub addresses: Vec<u64>,
    /// Number of descriptors read.
    pub descriptors: usize,
    /// Why the chain is not a valid request, although its end was found.
    pub fault: Option<ChainError>,
    /// Whether the last descriptor was a writable one in guest memory.
    ends_writable: bool,
    scratch: Vec<u64>,
}

impl Chain {
    /// A chain with room for any request.
    #[must_use]
    pub fn new() -> Self {
        Chain {
            readable: Vec::with_capacity(CHAIN_MAX),
            writable: Vec::with_capacity(CHAIN_MAX),
            addresses: Vec::with_capacity(CHAIN_MAX),
            scratch: Vec::with_capacity(CHAIN_MAX),
            descriptors: 0,
            fault: None,
            ends_writable: false,
        }
    }

    /// Walks the chain that starts at `head` of the table of `size` descriptors at `table`.
    ///
    /// # Errors
    /// The fault that hides the end of the chain, and with it the place of the status byte.
    pub fn walk(
        &mut self,
        memory: &MemoryTable,
        table: &Place,
        size: u16,
        head: u16,
        indirect: Allowed,
    ) -> Result<(), ChainError> {
        self.readable.clear();
        self.writable.clear();
        self.addresses.clear();
        self.fault = None;
        self.descriptors = 0;
        let mut table = table.clone();
        let mut size = u32::from(size);
        let mut indirect = indirect;
        let mut index = head;
        for _ in 0..CHAIN_MAX {
            if u32::from(index) >= size {
                return Err(ChainError::Index { index, size });
            }
            self.descriptors += 1;
            let place = table.offset + u64::from(index) * DESCRIPTOR_LEN;
            let descriptor = load(&table, place).ok_or(ChainError::Unreadable { index })?;
            if descriptor.flags & INDIRECT != 0 {
                // WRITE has no meaning here, and is ignored: section 2.7.5.3.2.
                indirect = indirect.used()?;
                let Descriptor { address, len, .. } = descriptor;
                if descriptor.flags & NEXT != 0 {
                    return Err(ChainError::NextAndIndirect);
                }
                if len == 0 || !u64::from(len).is_multiple_of(DESCRIPTOR_LEN) {
                    return Err(ChainError::TableLen { len });
                }
                table = memory
                    .guest_place(address, u64::from(len))
                    .ok_or(ChainError::Table { address, len })?;
                size = len / 16;
                index = 0;
                continue;
            }
            self.append(memory, descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
        }
        Err(ChainError::TooLong)
    }

    fn append(&mut self, memory: &MemoryTable, descriptor: Descriptor) -> Result<(), ChainError> {
        let writable = descriptor.flags & WRITE != 0;
        let (segments, addresses) = if writable {
            (&mut self.writable, &mut self.addresses)
        } else {
            if !self.writable.is_empty() {
                self.fault = self.fault.or(Some(ChainError::Order));
            }
            self.scratch.clear();
            (&mut self.readable, &mut self.scratch)
        };
        let (address, len) = (descriptor.address, descriptor.len);
        let found = memory.translate(address, len, CHAIN_MAX, segments, addresses);
        if !found && segments.len() >= CHAIN_MAX {
            return Err(ChainError::TooLong);
        }
        if !found {
            self.fault = self.fault.or(Some(ChainError::Buffer { address, len }));
        }
        self.ends_writable = found && writable && len > 0;
        Ok(())
    }

    /// Removes the last writable byte, the status byte. Returns its place and its guest address.
    pub fn take_status(&mut self) -> Option<(Segment, u64)> {
        if !self.ends_writable {
            return None;
        }
        let last = self.writable.last_mut()?;
        let address = *self.addresses.last()?;
        last.len -= 1;
        let status = Segment {
            region: last.region,
            len: 1,
            offset: last.offset + u64::from(last.len),
        };
        let address = address + u64::from(last.len);
        if last.len == 0 {
            self.writable.pop();
            self.addresses.pop();
        }
        Some((status, address))
    }

    /// Removes the first `into.len()` readable bytes, and copies them into `into`. `false`: there are fewer.
    #[must_use]
    pub fn take_readable(&mut self, memory: &MemoryTable, into: &mut [u8]) -> bool {
        let mut done = 0;
        let mut whole = 0;
        for segment in &mut self.readable {
            if done == into.len() {
                break;
            }
            let len = usize::try_from(segment.len).map_or(into.len(), |len| len);
            let here = len.min(into.len() - done);
            let Some(region) = memory.region(segment.region) else {
                return false;
            };
            if region
                .read(segment.offset, &mut into[done..done + here])
                .is_err()
            {
                return false;
            }
            done += here;
            let taken = u32::try_from(here).unwrap_or(segment.len);
            segment.offset += u64::from(taken);
            segment.len -= taken;
            if segment.len == 0 {
                whole += 1;
            }
        }
        self.readable.drain(..whole);
        done == into.len()
    }

    /// Bytes of `segments`.
    #[must_use]
    pub fn bytes(segments: &[Segment]) -> u64 {
        segments.iter().map(|segment| u64::from(segment.len)).sum()
    }
}

/// Whether a descriptor may be an indirect one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The feature was negotiated and this is the ring's own table.
    Yes,
    /// Not negotiated.
    No,
    /// This is an indirect table already.
    Nested,
}

impl Allowed {
    /// The rule within the indirect table.
    fn used(self) -> Result<Allowed, ChainError> {
        match self {
            Allowed::Yes => Ok(Allowed::Nested),
            Allowed::No => Err(ChainError::NotNegotiated),
            Allowed::Nested => Err(ChainError::Nested),
        }
    }
}

fn load(table: &Place, offset: u64) -> Option<Descriptor> {
    // Relaxed: the acquire load of the avail index came before, and a guest that changes the descriptor afterwards
    // harms its own request only.
    let address = table.region.load_u64(offset, Ordering::Relaxed).ok();
    let rest = table.region.load_u64(offset + 8, Ordering::Relaxed).ok();
    match (address, rest) {
        (Some(address), Some(rest)) => Some(Descriptor::from_words(address, rest)),
        // An indirect table need not be aligned.
        _ => {
            let mut bytes = [0; 16];
            table.region.read(offset, &mut bytes).ok()?;
            let (address, rest) = bytes.split_at(8);
            Some(Descriptor::from_words(
                u64::from_le_bytes(address.try_into().ok()?),
                u64::from_le_bytes(rest.try_into().ok()?),
            ))
        }
    }
}

impl Descriptor {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "fields are cut out of a packed word"
    )]
    fn from_words(address: u64, rest: u64) -> Self {
        Descriptor {
            address,
            len: rest as u32,
            flags: (rest >> 32) as u16,
            next: (rest >> 48) as u16,
        }
    }
}
