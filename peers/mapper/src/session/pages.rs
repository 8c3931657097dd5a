//! Map pages that a step needs.

use crate::failure::Outcome;
use crate::parts::Parts;
use crate::tree::Missing;
use crate::volume::Volume;

/// Does `step` as soon as the pages that it needs are in memory.
pub(super) async fn with_pages<T>(
    parts: &Parts,
    volume: &Volume,
    mut step: impl FnMut() -> Result<T, Missing>,
) -> Outcome<T> {
    // Held, so that one page of the way down does not drive out another.
    let mut held = Vec::new();
    loop {
        match step() {
            Ok(done) => return Ok(done),
            Err(missing) => match parts.pool.load_page(missing, volume.object_size).await {
                Ok(node) => held.push(node),
                Err(failure) => {
                    parts.pool.note(volume.lineage, &failure);
                    return Err(failure);
                }
            },
        }
    }
}
