//! Which blocks hold data.

use archipelago_protocol::map::{MapReply, MapRequest};

use crate::pool::Pool;
use crate::tree::Missing;
use crate::volume::Volume;

/// The answer, if the page of the first block is in memory: the live map's, so every write that was reported is in it.
pub(super) fn status(
    pool: &Pool,
    volume: &Volume,
    request: &MapRequest,
) -> Result<MapReply, Missing> {
    let map = volume.map.borrow();
    match map.range(request.offset, request.len) {
        Ok(range) => {
            let runs = map.status(&pool.pages.cache(), range)?;
            Ok(MapReply::status(&runs))
        }
        Err(code) => Ok(MapReply::failed(code)),
    }
}
