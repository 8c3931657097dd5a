//! A disk as any client sees it.

use std::fmt;
use std::io::Result;
use std::time::Duration;

/// How long a request may take, with the restart of whatever died.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// Longest read or write.
pub const LEN_MAX: usize = 512 << 10;

/// When a write is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durable {
    /// After a flush.
    Later,
    /// When it is answered: FUA.
    Now,
}

/// What becomes of the space of zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// It is kept for later writes.
    Kept,
    /// It may be given back.
    Released,
}

/// Where the next data and the next hole begin; the size, if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First byte of data.
    pub data: u64,
    /// First byte of a hole.
    pub hole: u64,
}

/// A client. Offsets and lengths are bytes, multiples of [`Disk::unit`]; an error has the `errno` that the client was answered.
pub trait Disk: fmt::Debug + Send {
    /// Bytes, as a client sees it that connects now.
    ///
    /// # Errors
    /// As any request.
    fn size(&mut self) -> Result<u64>;

    /// What offsets and lengths are multiples of.
    fn unit(&self) -> u64 {
        512
    }

    /// Reads `into`.
    ///
    /// # Errors
    /// What the disk answers, or that nobody answers within [`TIMEOUT`].
    fn read(&mut self, offset: u64, into: &mut [u8]) -> Result<()>;

    /// Writes `data`; a way without FUA flushes for [`Durable::Now`].
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn write(&mut self, offset: u64, data: &[u8], durable: Durable) -> Result<()>;

    /// Makes durable what was answered.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn flush(&mut self) -> Result<()>;

    /// Makes `len` bytes read as zeros.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn zero(&mut self, offset: u64, len: u64, space: Space) -> Result<()>;

    /// Discards `len` bytes: here they read as zeros afterwards, whatever the way promises.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn discard(&mut self, offset: u64, len: u64) -> Result<()>;

    /// Makes it `size` bytes; false: clients of this way cannot.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn grow(&mut self, _size: u64) -> Result<bool> {
        Ok(false)
    }

    /// The next data and the next hole from `offset` on; `None`: this way does not say.
    ///
    /// # Errors
    /// As [`Disk::read`].
    fn run_at(&mut self, _offset: u64) -> Result<Option<Run>> {
        Ok(None)
    }
}
