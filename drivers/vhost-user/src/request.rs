//! Requests of virtio-blk (virtio 1.2, section 5.2.6): from a chain to a request to the volume.

use archipelago_protocol::ids::SECTOR_SIZE;

use crate::chain::Chain;
use crate::config::{RANGE_SECTORS_MAX, RANGES_MAX, SERIAL_LEN};
use crate::failure::Failure;
use crate::memory::MemoryTable;
pub use crate::request_kind::{Kind, Status};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const HEADER_LEN: usize = 16;
const RANGE_LEN: usize = 16;
const UNMAP: u32 = 1;

/// A part of a volume, from a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Offset in the volume.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Whether space may be given back.
    pub unmap: bool,
}

/// The request in a chain. Data stands in the chain; ranges in the vector given to [`parse`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Reads `len` bytes into the writable pieces.
    Read {
        /// Offset in the volume.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Writes the readable pieces.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes completed writes durable.
    Flush,
    /// Discards ranges.
    Discard,
    /// Zeroes ranges.
    WriteZeroes,
    /// Returns the serial.
    GetId,
}

impl Request {
    /// Its kind, for counting and completion.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Request::Read { .. } => Kind::Read,
            Request::Write { .. } => Kind::Write,
            Request::Flush => Kind::Flush,
            Request::Discard => Kind::Discard,
            Request::WriteZeroes => Kind::WriteZeroes,
            Request::GetId => Kind::Other,
        }
    }
}

/// The limits that requests are validated against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the volume.
    pub size: u64,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Parses the request in `chain`, whose status byte is already removed.
///
/// # Errors
/// The failure, and the kind of the request.
pub fn parse(
    chain: &mut Chain,
    memory: &MemoryTable,
    limits: Limits,
    ranges: &mut Vec<Range>,
) -> Result<Request, (Kind, Failure)> {
    let Limits { size, read_only } = limits;
    ranges.clear();
    let mut header = [0; HEADER_LEN];
    if !chain.take_readable(memory, &mut header) {
        return Err((Kind::Other, Failure::Header));
    }
    let [kind, _reserved, low, high] = words(header);
    let sector = u64::from(low) | u64::from(high) << 32;
    let refuse_write = |kind| {
        if read_only {
            Err((kind, Failure::ReadOnly))
        } else {
            Ok(())
        }
    };
    match kind {
        IN => {
            let len = Chain::bytes(&chain.writable);
            let offset = checked(sector, len, size).map_err(|why| (Kind::Read, why))?;
            Ok(Request::Read { offset, len })
        }
        OUT => {
            refuse_write(Kind::Write)?;
            let len = Chain::bytes(&chain.readable);
            let offset = checked(sector, len, size).map_err(|why| (Kind::Write, why))?;
            Ok(Request::Write { offset, len })
        }
        FLUSH => Ok(Request::Flush),
        GET_ID => {
            let len = Chain::bytes(&chain.writable);
            if len < SERIAL_LEN as u64 {
                return Err((Kind::Other, Failure::Serial(len)));
            }
            Ok(Request::GetId)
        }
        DISCARD => {
            refuse_write(Kind::Discard)?;
            let known = |flags| flags == 0;
            take_ranges(chain, memory, size, known, ranges).map_err(|why| (Kind::Discard, why))?;
            Ok(Request::Discard)
        }
        WRITE_ZEROES => {
            refuse_write(Kind::WriteZeroes)?;
            let known = |flags| flags & !UNMAP == 0;
            take_ranges(chain, memory, size, known, ranges)
                .map_err(|why| (Kind::WriteZeroes, why))?;
            Ok(Request::WriteZeroes)
        }
        unknown => Err((Kind::Other, Failure::UnknownRequest(unknown))),
    }
}

/// The offset of `sector`, if `len` bytes there are whole sectors inside the volume.
fn checked(sector: u64, len: u64, size: u64) -> Result<u64, Failure> {
    let offset = sector.checked_mul(SECTOR_SIZE);
    let end = offset.and_then(|offset| offset.checked_add(len));
    match (offset, end) {
        (Some(offset), Some(end)) if len.is_multiple_of(SECTOR_SIZE) && end <= size => Ok(offset),
        _ => Err(Failure::Outside { sector, len, size }),
    }
}

fn take_ranges(
    chain: &mut Chain,
    memory: &MemoryTable,
    size: u64,
    known: impl Fn(u32) -> bool,
    ranges: &mut Vec<Range>,
) -> Result<(), Failure> {
    let bytes = Chain::bytes(&chain.readable);
    let whole = bytes.is_multiple_of(RANGE_LEN as u64);
    if bytes == 0 || !whole || bytes > (RANGES_MAX * RANGE_LEN) as u64 {
        return Err(Failure::Ranges(bytes));
    }
    // An unknown flag is UNSUPP whatever else is wrong (section 5.2.6.2), so all ranges are read.
    let (mut unknown_flag, mut wrong) = (false, None);
    for _ in 0..bytes / RANGE_LEN as u64 {
        let mut range = [0; RANGE_LEN];
        if !chain.take_readable(memory, &mut range) {
            return Err(Failure::Ranges(bytes));
        }
        let [low, high, sectors, flags] = words(range);
        unknown_flag |= !known(flags);
        let sector = u64::from(low) | u64::from(high) << 32;
        let len = u64::from(sectors) * SECTOR_SIZE;
        let unmap = flags & UNMAP != 0;
        match checked(sector, len, size) {
            Err(why) => wrong = Some(why),
            Ok(_) if sectors > RANGE_SECTORS_MAX => wrong = Some(Failure::RangeLen(sectors)),
            Ok(_) if sectors == 0 => {}
            Ok(offset) => ranges.push(Range { offset, len, unmap }),
        }
    }
    match (unknown_flag, wrong) {
        (true, _) => Err(Failure::UnknownFlag),
        (false, Some(why)) => Err(why),
        (false, None) => Ok(()),
    }
}

fn words(bytes: [u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, four) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        let mut copy = [0; 4];
        copy.copy_from_slice(four);
        *word = u32::from_le_bytes(copy);
    }
    words
}
