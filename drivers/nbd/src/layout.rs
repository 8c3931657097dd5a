//! The memory of a connection: one region, which the blocker sees, so that data is read and written without a copy.
//!
//! | offset | bytes | content |
//! |---|---|---|
//! | 0 | [`CELLS`] x [`CELL_LEN`] | cells: the data of requests |
//! | `INPUT_AT` | `INPUT_LEN` | received and not parsed yet: headers of requests |
//! | `SCRAP_AT` | `SCRAP_LEN` | data of writes that were refused |
//! | `OUTPUT_AT` | `OUTPUT_SLOTS` x `OUTPUT_SLOT_LEN` | headers of replies |
//!
//! The kernel gives memory only to pages that are used: a client with little in flight uses the first pages of few cells.

/// Bytes of a cell: the longest piece of a request, which is one request to the volume.
pub const CELL_LEN: u32 = archipelago_nbd_protocol::offer::PIECE_MAX;
/// Cells of a connection: enough for the longest read without structured replies, which must be complete before it is answered.
pub const CELLS: u16 = 256;
/// Cells that all other requests of a connection may use: its bytes in flight, 8 MiB.
pub const CELLS_SHARED: u16 = 64;

/// Offset of the input.
pub(crate) const INPUT_AT: usize = CELLS as usize * CELL_LEN as usize;
/// Thirty-two headers: a queue of reads is received by one call, and little of a write's data lands here, from where it has to be copied.
pub(crate) const INPUT_LEN: usize = 32 * archipelago_nbd_protocol::wire::HEADER_LEN;
const INPUT_ROOM: usize = 4096;
/// Offset of the scrap, where refused data goes.
pub(crate) const SCRAP_AT: usize = INPUT_AT + INPUT_ROOM;
/// Bytes of the scrap.
pub(crate) const SCRAP_LEN: usize = 60 << 10;
/// Offset of the headers of replies.
pub(crate) const OUTPUT_AT: usize = SCRAP_AT + SCRAP_LEN;
/// Bytes of the slot of one header.
pub(crate) const OUTPUT_SLOT_LEN: usize = 64;
/// Most replies that wait to be sent: see `sender`.
pub(crate) const OUTPUT_SLOTS: usize = 1024;
/// Bytes of the region.
pub(crate) const REGION_LEN: usize = OUTPUT_AT + OUTPUT_SLOTS * OUTPUT_SLOT_LEN;

const _: () = assert!(INPUT_LEN <= INPUT_ROOM && REGION_LEN.is_multiple_of(4096));
const _: () = assert!(CELLS as u32 * CELL_LEN == archipelago_nbd_protocol::offer::BLOCK_MAX);
const _: () = assert!(archipelago_nbd_protocol::wire::REPLY_HEADER_MAX <= OUTPUT_SLOT_LEN);

/// Offset of cell `index`.
pub(crate) fn cell_at(index: u16) -> usize {
    usize::from(index) * CELL_LEN as usize
}
