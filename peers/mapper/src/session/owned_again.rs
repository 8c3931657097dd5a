//! What only removed snapshots of a volume had is owned by the volume again: its frozen epoch falls to that of the newest snapshot that is
//! still there.
//!
//! A snapshot that is there and is not known here would be overwritten in place. None is missed:
//! - A snapshot is frozen by the incarnation that owns the volume, and enters the catalogue while that incarnation owns it: until then the
//!   head is not clean ([`close_clean`](super::settled::close_clean), [`Frozen`](super::settled::Frozen)). This incarnation owns the
//!   volume now. So the entry of each snapshot of another one was appended before, or never will be, and the catalogue is read to its end.
//! - A snapshot of this incarnation is either in progress in the map, or holds the lock of births until it has entered the catalogue.
//!
//! A snapshot without a name and without descendants cannot be opened or cloned any more: whether its space was given back already makes
//! no difference.

use std::rc::Rc;

use archipelago_protocol::Epoch;

use crate::catalogue::{Item, Names};
use crate::failure::Outcome;
use crate::parts::Parts;
use crate::volume::Volume;

/// The epoch of the newest snapshot that is there; `None`: unknown.
fn newest(names: &Names, volume: &Volume) -> Option<Epoch> {
    let is_there = |snapshot: &Item| !names.is_orphan(snapshot.lineage);
    names.newest_snapshot(volume.lineage, is_there)
}

/// Whether the volume may own more than it does, as far as is known.
fn is_due(parts: &Parts, volume: &Volume) -> bool {
    let newest = newest(&parts.catalogue.names(), volume);
    newest.is_some_and(|newest| newest < volume.map.borrow().frozen())
}

/// Lowers the frozen epoch of a volume whose session has begun, if a newer snapshot was removed. The caller holds the lineage's lock.
pub(super) async fn own_again(parts: &Parts, volume: &Volume) -> Outcome<()> {
    let _no_birth = parts.volumes.lock_births(volume.lineage).await;
    if !is_due(parts, volume) {
        return Ok(());
    }
    // Also if nobody else serves the pool: after a change that failed it is not known what is durable.
    parts.catalogue.ready().await?;
    volume.check()?;
    let newest = newest(&parts.catalogue.names(), volume);
    if let (Some(newest), None) = (newest, volume.start.due()) {
        volume.map.borrow_mut().lower_frozen(newest);
    }
    Ok(())
}

/// As [`own_again`], if there is reason to; the next session tries again.
pub(super) async fn own_again_if_due(parts: &Parts, volume: &Volume) {
    if !is_due(parts, volume) {
        return;
    }
    if let Err(failure) = own_again(parts, volume).await {
        tracing::debug!(
            "{} does not own what it shares with removed snapshots: {}",
            volume.lineage,
            failure.message
        );
    }
}

/// The same in the background: a snapshot was not made.
pub(super) fn start_if_due(parts: &Rc<Parts>, volume: &Rc<Volume>) {
    if !is_due(parts, volume) {
        return;
    }
    let volume = Rc::clone(volume);
    parts.spawn(|parts| async move {
        let _alone = parts.volumes.lock(volume.lineage).await;
        let open = parts.volumes.get(volume.lineage);
        if open.is_some_and(|open| Rc::ptr_eq(&open, &volume)) && volume.access.has_writer() {
            own_again_if_due(&parts, &volume).await;
        }
    });
}
