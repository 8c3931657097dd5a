//! The map of an item as it is now, for whoever only looks at it.

use std::rc::Rc;

use archipelago_protocol::ErrorCode;

use super::head::read_head;
use crate::catalogue::Item;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::tree::Tree;

/// The map of `item`: of a volume in memory with all that was reported, flushed or not; of a closed one as it is stored. It is that of
/// one moment, whatever is written afterwards. Nothing is written for it.
///
/// # Errors
/// [`ErrorCode::InUse`]: its last session has not ended, and the volume is not open here.
pub(crate) async fn current_tree(parts: &Rc<Parts>, item: &Item) -> Outcome<Tree> {
    if item.is_frozen() {
        return Ok(Tree::new(item.root, item.object_size));
    }
    let _alone = parts.volumes.lock(item.lineage).await;
    if let Some(volume) = parts.volumes.get(item.lineage) {
        volume.check()?;
        return Ok(volume.map.borrow().tree().clone());
    }
    let root = match read_head(parts, item).await? {
        Some(head) if head.get().clean => head.get().root,
        Some(_) => {
            let why = format!("the last session of {} has not ended", item.lineage);
            return Err(Failure::new(ErrorCode::InUse, why));
        }
        // It was never written.
        None => item.root,
    };
    Ok(Tree::new(root, item.object_size))
}
