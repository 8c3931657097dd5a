//! The map of a volume as it is stored, for work beside the volume's session.

use std::rc::Rc;

use archipelago_protocol::{Epoch, ErrorCode};

use super::checkpoint::checkpoint_now;
use super::head::read_head;
use super::owned_again::own_again;
use crate::catalogue::Item;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::tree::Root;

/// A stored root of the volume that has every block of `epoch` and older ones that the volume still has, and will have after any
/// crash from now on. `epoch` is that of a snapshot, which exists.
///
/// Nothing is written to these epochs any more: a block of them that is not in this root never comes back. That takes a head whose
/// map was stored when the snapshot was there: a head that was made while the snapshot was being made may lack late writes of the
/// epoch. So a volume that is written makes a checkpoint now. Before that it owns again what no snapshot has any more: what it has written
/// elsewhere by then is not in the root, and what it writes over afterwards stays where it is.
///
/// # Errors
/// [`ErrorCode::InUse`]: its last session has not ended, and the volume is not open here.
pub(crate) async fn stored_root(parts: &Rc<Parts>, item: &Item, epoch: Epoch) -> Outcome<Root> {
    let _alone = parts.volumes.lock(item.lineage).await;
    let writer = parts.volumes.get(item.lineage);
    let writer = writer.filter(|volume| volume.access.has_writer());
    let begun = writer.filter(|volume| volume.start.due().is_none());
    let head = match begun {
        Some(volume) => {
            own_again(parts, &volume).await?;
            checkpoint_now(parts, &volume).await?;
            volume.head.get()
        }
        None => match read_head(parts, item).await? {
            Some(head) if head.get().clean => head.get(),
            Some(_) => {
                let why = format!("the last session of {} has not ended", item.lineage);
                return Err(Failure::new(ErrorCode::InUse, why));
            }
            // It was never written.
            None => return Ok(item.root),
        },
    };
    if head.epoch <= epoch {
        let why = format!(
            "the head of {} does not know of its snapshot of epoch {}",
            item.lineage, epoch.0
        );
        return Err(Failure::damaged(why));
    }
    Ok(head.root)
}
