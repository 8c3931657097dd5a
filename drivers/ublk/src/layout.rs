//! The number of requests that a device has at a time, and where their data is: a region with a buffer for each.

/// Requests of a device at a time. The data thread serves 150,000 requests a second: 128 of them are 0.9 ms of its work.
pub const DEPTH: u16 = 128;
/// Bytes of a buffer: the longest read or write. The kernel cuts longer ones. All buffers together take up to 16 MiB; a buffer takes memory
/// when it is first used.
pub const BUFFER_LEN: u32 = 128 << 10;
/// Bytes of the region.
pub const REGION_LEN: usize = BUFFER_LEN as usize * DEPTH as usize;
/// Longest discard or range of zeros, in bytes: a bounded amount of work for the mapper, as for other drivers.
pub const RANGE_MAX: u32 = 1 << 30;
const _: () = assert!(BUFFER_LEN.is_power_of_two());

/// Offset of the buffer of `tag` in the region.
#[must_use]
pub fn buffer_at(tag: u16) -> u64 {
    u64::from(tag) * u64::from(BUFFER_LEN)
}
