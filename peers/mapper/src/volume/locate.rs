//! Where blocks live: the hot path.

use archipelago_protocol::map::{FLAG_WRITE, LOCATE_LEN_MAX, MapReply, MapRequest, Placement};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode};

use super::{Live, Volume};
use crate::core::Core;
use crate::tree::{Missing, Range};

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
        return locate_read(core, volume, &mut live, range);
    }
    if live.read_only {
        return Ok(MapReply::failed(ErrorCode::ReadOnly));
    }
    let cache = core.cache.borrow();
    let own = volume.lineage;
    let frozen = live.frozen;
    let unowned = live.tree.unowned_end(&cache, range.start, |layer| {
        layer.lineage == own && layer.epoch > frozen
    })?;
    if unowned > range.start {
        return Ok(run(range, unowned, Placement::First, live.epoch, 0));
    }
    let (layer, end) = live.tree.lookup(&cache, range.start)?;
    let epoch = layer.map_or(live.epoch, |layer| layer.epoch);
    Ok(run(range, end, Placement::Stored, epoch, 0))
}

fn locate_read(
    core: &Core,
    volume: &Volume,
    live: &mut Live,
    range: Range,
) -> Result<MapReply, Missing> {
    let (layer, end) = live.tree.lookup(&core.cache.borrow(), range.start)?;
    Ok(match layer {
        None => run(range, end, Placement::Zero, Epoch(0), 0),
        Some(layer) => {
            let index = if layer.lineage == volume.lineage {
                0
            } else {
                live.lineage_index(layer.lineage)
            };
            run(range, end, Placement::Stored, layer.epoch, index)
        }
    })
}

fn run(range: Range, end: u64, placement: Placement, epoch: Epoch, lineage_index: u32) -> MapReply {
    let blocks = end.min(range.end) - range.start;
    let len = u32::try_from(blocks * BLOCK_SIZE).expect("inside one object");
    MapReply::run(len, placement, epoch, lineage_index)
}
