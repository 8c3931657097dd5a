//! The head of a volume, as a session finds it.

use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_protocol::{Epoch, Lineage};

use crate::catalogue::Item;
use crate::disk::name_of;
use crate::failure::{Failure, Outcome};
use crate::head::{StoredHead, VolumeHead};
use crate::parts::Parts;

/// A volume's head as it is stored; `None`: it was never opened for writing.
pub(crate) async fn read_head(
    parts: &Parts,
    item: &Item,
) -> Outcome<Option<StoredHead<VolumeHead>>> {
    let id = ObjectId::head(item.lineage);
    let mut found = parts.pool.disk.read_swapped(id).await?;
    let opened = found.is_none() && was_opened(parts, item.lineage).await?;
    if opened && parts.catalogue.has_others() {
        // Another node may have opened it for the first time since the head was looked for.
        found = parts.pool.disk.read_swapped(id).await?;
    }
    let Some((version, bytes)) = found else {
        if opened {
            let why = format!(
                "{} is missing, but there are data or pages that it led to",
                name_of(id)
            );
            return Err(Failure::damaged(why));
        }
        return Ok(None);
    };
    let head = VolumeHead::decode(item.lineage, &bytes)?;
    if head.object_size != item.object_size {
        let why = format!(
            "{} is damaged: its object size is not the catalogue's",
            name_of(id)
        );
        return Err(Failure::damaged(why));
    }
    Ok(Some(StoredHead::new(item.lineage, head, version)))
}

/// Whether a volume without a head must have had one: only its log is written before its head is.
async fn was_opened(parts: &Parts, lineage: Lineage) -> Outcome<bool> {
    // A volume that was never opened has no log either, which is cheap to see.
    if parts
        .pool
        .disk
        .occupied(ObjectId::log(lineage, 1))
        .await?
        .is_none()
    {
        return Ok(false);
    }
    let first = ObjectId::data(lineage, Epoch(0));
    let objects = parts.pool.disk.list_above(first).await?;
    Ok(objects.iter().any(|object| {
        object.lineage == lineage && matches!(object.kind, ObjectKind::Data | ObjectKind::Pack)
    }))
}
