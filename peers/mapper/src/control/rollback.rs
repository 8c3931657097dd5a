//! A volume begins again as one of its snapshots.
//!
//! The catalogue gets a clone of the snapshot with the volume's name, labels and policy, and the volume as it was loses its name, in one
//! change: it stays as long as its snapshots need it. So no map gets back a place that it had given up, which is what [`super::reclaim`]
//! relies on, and the data is not touched.

use std::rc::Rc;

use archipelago_protocol::catalogue::{CatalogueReply, Kind};
use archipelago_protocol::{ErrorCode, Lineage, Name};

use super::named::{check_fresh_lineage, clone_of, entry, in_use, not_found, volume_named};
use crate::catalogue::{Change, Item, Names};
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::session::check_owner;

/// Makes the volume `name` what `snapshot` is, as the new lineage `lineage`. The same request again changes nothing.
///
/// # Errors
/// [`ErrorCode::Invalid`] if `snapshot` is not one of the volume, [`ErrorCode::InUse`] if the volume is open.
pub(super) async fn rollback(
    parts: &Rc<Parts>,
    name: &Name,
    snapshot: &Name,
    lineage: Lineage,
) -> Outcome<CatalogueReply> {
    let known = volume_named(&parts.catalogue.names(), name)?;
    if known.lineage == lineage {
        return Ok(entry(parts, lineage));
    }
    let _alone = parts.volumes.lock(known.lineage).await;
    check_owner(parts, &known).await?;
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let before = volume_named(names, name)?;
        if before.lineage != known.lineage {
            return Err(not_found(name));
        }
        if parts.volumes.is_open(before.lineage) {
            return Err(in_use(name));
        }
        check_fresh_lineage(names, lineage)?;
        check_own(names, &before, name, snapshot)?;
        let again = Item {
            attributes: before.attributes.clone(),
            ..clone_of(names, snapshot, name, lineage, None, before.created)?
        };
        let before = Item {
            name: None,
            ..before
        };
        Ok((vec![Change::Put(before), Change::Put(again)], ()))
    };
    parts.catalogue.change(&guard, decide).await?;
    parts.catalogue.forget_prepared(known.lineage);
    parts.forget(known.lineage);
    parts.catalogue.want_collection();
    Ok(entry(parts, lineage))
}

/// Refuses what is not a snapshot of the volume, or of what the volume was before earlier rollbacks: volumes without a name, from whose
/// snapshots it descends.
fn check_own(names: &Names, volume: &Item, name: &Name, snapshot: &Name) -> Outcome<()> {
    let found = names.find(snapshot).ok_or_else(|| not_found(snapshot))?;
    let source = |item: &Item| match item.sources[..] {
        [source] => names.get(source),
        _ => None,
    };
    let of_snapshot = source(found).filter(|_| found.kind == Kind::Snapshot);
    let Some(wanted) = of_snapshot.map(|volume| volume.lineage) else {
        let why = format!("`{snapshot}` is not a snapshot");
        return Err(Failure::new(ErrorCode::Invalid, why));
    };
    let mut before = volume.clone();
    loop {
        if before.lineage == wanted {
            return Ok(());
        }
        let origin = source(&before).and_then(source);
        match origin.filter(|origin| origin.name.is_none()) {
            Some(origin) => before = origin.clone(),
            None => {
                let why = format!("`{snapshot}` is not a snapshot of `{name}`");
                return Err(Failure::new(ErrorCode::Invalid, why));
            }
        }
    }
}
