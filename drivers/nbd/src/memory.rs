//! The region of a connection, as its socket and its volume use it.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::Volumes;
use archipelago_runtime::Part;
use xseg::{Region, RegionId, Span};

use crate::layout::REGION_LEN;

/// Bytes copied at a time within the region.
const COPY_MAX: usize = 1024;
const _: () = assert!(crate::layout::INPUT_LEN <= COPY_MAX);

/// A region that was added to the volume peer.
#[derive(Debug)]
pub(crate) struct Memory {
    id: RegionId,
    region: Region,
    /// All of it, for the socket.
    span: Span,
}

impl Memory {
    /// Fresh memory, which is added to `volumes` as a region.
    pub(crate) fn new(volumes: &mut impl Volumes) -> Result<Memory, ErrorCode> {
        let region = Region::anonymous(REGION_LEN).map_err(|error| {
            tracing::warn!(%error, "no memory for the buffers of a connection");
            ErrorCode::NoMemory
        })?;
        let span = region.span(0, REGION_LEN as u64);
        let span = span.map_err(|_shorter| ErrorCode::Internal)?;
        let id = volumes.fresh_region();
        volumes.add_region(id, region.clone())?;
        Ok(Memory { id, region, span })
    }

    /// Removes the region; no request in flight names it.
    pub(crate) fn end(self, volumes: &mut impl Volumes) {
        volumes.remove_region(self.id);
    }

    /// Whether requests may name it.
    pub(crate) fn is_ready(&self, volumes: &impl Volumes) -> bool {
        volumes.region_ready(self.id)
    }

    pub(crate) fn id(&self) -> u32 {
        self.id.0
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Copies bytes out: the blocker's process can write them too, so the copy is validated and used.
    pub(crate) fn read(&self, at: usize, into: &mut [u8]) {
        let read = self.region.read(at as u64, into);
        debug_assert!(read.is_ok(), "the layout is inside the region");
    }

    pub(crate) fn write(&self, at: usize, from: &[u8]) {
        let written = self.region.write(at as u64, from);
        debug_assert!(written.is_ok(), "the layout is inside the region");
    }

    /// Copies bytes within the region, at most as many as the input has.
    pub(crate) fn copy(&self, from: Part, to: usize) {
        let mut bytes = [0; COPY_MAX];
        let bytes = &mut bytes[..from.len];
        self.read(from.offset, bytes);
        self.write(to, bytes);
    }
}
