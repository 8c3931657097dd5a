//! Limits of all tables, and how volumes share them.

use archipelago_protocol::object::SCATTER_MAX;

/// Volumes open at a time: more than a host has devices, and their slots (about 1.5 KiB each) are 1.5 MiB at most.
pub(crate) const VOLUMES_MAX: u32 = 1024;
/// Requests in flight of all volumes: 32 busy queues of 128. About 100 bytes each: 400 KiB.
pub(crate) const REQUESTS_MAX: u32 = 4096;
/// Requests in flight of one volume: 8 queues of 128, so one volume cannot fill the table.
pub(crate) const REQUESTS_PER_VOLUME: u32 = 1024;
/// Pieces in flight of all volumes: one for each request, and room for large ones. About 200 bytes each: 1.6 MiB.
pub(crate) const PIECES_MAX: u32 = 8192;
/// Pieces in flight of one volume: a request of 32 MiB over objects of 64 KiB has 512, twice.
pub(crate) const PIECES_PER_VOLUME: u32 = 1024;
/// Segments of one request: the entries of the longest scatter list.
pub(crate) const SEGMENTS_MAX: usize = SCATTER_MAX as usize;
/// Blocks of a volume that are being merged or wait for it: half of a queue of small writes into a new clone.
pub(crate) const MERGES_MAX: usize = 64;
/// Requests that a volume sends to one port in its turn: few enough that others get their share when credits are scarce.
pub(crate) const QUANTUM: usize = 16;

/// Whether a volume that holds `held` of a shared resource may acquire one more while `free` are left.
///
/// A volume may hold at most half of a shared resource. One volume whose storage hangs keeps at most half, two keep a third each, and some
/// are always free for the other volumes.
pub(crate) fn may_acquire(held: usize, free: usize) -> bool {
    held < free
}
