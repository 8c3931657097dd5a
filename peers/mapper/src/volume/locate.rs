//! Where blocks live: the hot path.

use archipelago_protocol::map::{FLAG_WRITE, LOCATE_LEN_MAX, MapReply, MapRequest, Placement};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode};

use super::{Live, Volume};
use crate::core::Core;
use crate::tree::{Missing, Range, WritePlace};

/// The answer, if the pages are in memory.
pub(super) fn locate(
    core: &Core,
    volume: &Volume,
    request: &MapRequest,
) -> Result<MapReply, Missing> {
    let mut live = volume.live.borrow_mut();
    let range = match live.range(request.offset, request.len.min(LOCATE_LEN_MAX)) {
        Ok(range) => range,
        Err(code) => return Ok(MapReply::failed(code)),
    };
    if request.flags & FLAG_WRITE == 0 {
        return locate_read(core, &mut live, range);
    }
    if live.read_only {
        return Ok(MapReply::failed(ErrorCode::ReadOnly));
    }
    let cache = core.cache.borrow();
    let own = volume.lineage;
    let frozen = live.frozen;
    let place = live.tree.write_place(&cache, range, |layer| {
        layer.lineage == own && layer.epoch > frozen
    })?;
    Ok(match place {
        WritePlace::Owned { epoch, end } => run(range, end, Placement::Stored, epoch, 0),
        WritePlace::Unowned { end } => run(range, end, Placement::First, live.epoch, 0),
    })
}

fn locate_read(core: &Core, live: &mut Live, range: Range) -> Result<MapReply, Missing> {
    let (layer, end) = live.tree.lookup(&core.cache.borrow(), range.start)?;
    Ok(match layer {
        None => run(range, end, Placement::Zero, Epoch(0), 0),
        Some(layer) => {
            let index = live.lineages.number(layer.lineage);
            run(range, end, Placement::Stored, layer.epoch, index)
        }
    })
}

fn run(range: Range, end: u64, placement: Placement, epoch: Epoch, lineage_index: u32) -> MapReply {
    let blocks = end.min(range.end) - range.start;
    let len = u32::try_from(blocks * BLOCK_SIZE).expect("inside one object");
    MapReply::run(len, placement, epoch, lineage_index)
}
