//! Where blocks live: the hot path.

use archipelago_protocol::map::{FLAG_WRITE, LOCATE_LEN_MAX, MapReply, MapRequest, Placement};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode};

use crate::pool::Pool;
use crate::tree::{Missing, Range, WritePlace};
use crate::volume::Volume;

/// The answer, if the pages are in memory.
pub(super) fn locate(
    pool: &Pool,
    volume: &Volume,
    request: &MapRequest,
) -> Result<MapReply, Missing> {
    let map = volume.map.borrow();
    let range = match map.range(request.offset, request.len.min(LOCATE_LEN_MAX)) {
        Ok(range) => range,
        Err(code) => return Ok(MapReply::failed(code)),
    };
    let cache = pool.pages.cache();
    if request.flags & FLAG_WRITE == 0 {
        let (layer, end) = map.lookup(&cache, range.start)?;
        return Ok(match layer {
            None => run(range, end, Placement::Zero, Epoch(0), 0),
            Some(layer) => {
                let number = volume.lineages.borrow_mut().number(layer.lineage);
                run(range, end, Placement::Stored, layer.epoch, number)
            }
        });
    }
    if volume.access.is_read_only() {
        return Ok(MapReply::failed(ErrorCode::ReadOnly));
    }
    Ok(match map.write_place(&cache, range)? {
        WritePlace::Owned { epoch, end } => run(range, end, Placement::Stored, epoch, 0),
        WritePlace::Unowned { end } => run(range, end, Placement::First, map.epoch(), 0),
    })
}

fn run(range: Range, end: u64, placement: Placement, epoch: Epoch, lineage: u32) -> MapReply {
    let blocks = end.min(range.end) - range.start;
    let len = u32::try_from(blocks * BLOCK_SIZE).expect("inside one object");
    MapReply::run(len, placement, epoch, lineage)
}
