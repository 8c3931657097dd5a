//! From a head in a ring to a request: walks the chain and parses its content. One reader serves all rings of a device, and allocates
//! nothing.

use archipelago_protocol::volume::Segment;

use crate::chain::{Allowed, CHAIN_MAX, Chain};
use crate::config::RANGES_MAX;
use crate::failure::Failure;
use crate::memory::{MemoryTable, Place};
use crate::queue::Broken;
use crate::request::{Kind, Limits, Range, Request, parse};

/// A chain that ends in a status byte.
#[derive(Debug)]
pub(super) struct ReadChain {
    /// The request, or its error.
    pub(super) request: Result<Request, (Kind, Failure)>,
    /// Region and offset of the status byte.
    pub(super) status: (u32, u64),
    /// Guest address of the status byte.
    pub(super) status_address: u64,
}

/// Reads requests; keeps the pieces of the last one.
#[derive(Debug)]
pub(super) struct RequestReader {
    chain: Chain,
    ranges: Vec<Range>,
}

impl RequestReader {
    pub(super) fn new() -> Self {
        RequestReader {
            chain: Chain::new(),
            ranges: Vec::with_capacity(RANGES_MAX),
        }
    }

    /// Reads the chain at `head` of the `table` of `size` descriptors.
    pub(super) fn read(
        &mut self,
        memory: &MemoryTable,
        (table, size): (&Place, u16),
        head: u16,
        indirect: Allowed,
        limits: Limits,
    ) -> Result<ReadChain, Broken> {
        self.chain
            .walk(memory, table, size, head, indirect)
            .map_err(|source| Broken::Chain { head, source })?;
        let (status, status_address) = self.chain.take_status().ok_or(Broken::NoStatus { head })?;
        let request = match self.chain.fault {
            Some(fault) => Err((Kind::Other, Failure::Chain(fault))),
            None => parse(&mut self.chain, memory, limits, &mut self.ranges),
        };
        Ok(ReadChain {
            request,
            status: (status.region, status.offset),
            status_address,
        })
    }

    /// Descriptors of the chain.
    pub(super) fn descriptors(&self) -> usize {
        self.chain.descriptors
    }

    /// The pieces that the device may read.
    pub(super) fn readable(&self) -> &[Segment] {
        &self.chain.readable
    }

    /// The pieces that the device may write.
    pub(super) fn writable(&self) -> &[Segment] {
        &self.chain.writable
    }

    /// The ranges of a discard or write-zeroes request.
    pub(super) fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// First byte of the ranges, and the sum of their lengths.
    pub(super) fn ranges_sum(&self) -> (u64, u64) {
        let sum = self.ranges.iter().map(|range| range.len).sum();
        (self.ranges.first().map_or(0, |range| range.offset), sum)
    }

    /// Guest addresses and lengths of the writable pieces, at most `limit` of them.
    pub(super) fn written(&self, limit: WrittenPieces) -> impl Iterator<Item = (u64, u32)> {
        let pieces = self.chain.addresses.iter().zip(&self.chain.writable);
        let pieces = pieces.map(|(address, segment)| (*address, segment.len));
        pieces.take(match limit {
            WrittenPieces::All => CHAIN_MAX,
            WrittenPieces::None => 0,
        })
    }

    /// Writes `bytes` into the writable pieces; returns how many fitted.
    pub(super) fn put(&self, memory: &MemoryTable, bytes: &[u8]) -> u64 {
        let mut left = bytes;
        for segment in &self.chain.writable {
            let len = usize::try_from(segment.len).map_or(left.len(), |len| len.min(left.len()));
            let (here, rest) = left.split_at(len);
            if let Some(region) = memory.region(segment.region) {
                let written = region.write(segment.offset, here);
                debug_assert!(written.is_ok(), "translated by the table");
            }
            left = rest;
        }
        (bytes.len() - left.len()) as u64
    }
}

/// Which writable pieces a request writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrittenPieces {
    All,
    None,
}
