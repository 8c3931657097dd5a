//! The space that a removed snapshot, or a removed volume with snapshots, had alone.
//!
//! A block's place is (lineage, epoch, block). A volume and its snapshots are a row in the order of their epochs. A place is made in one
//! epoch, and a map that has given it up never gets it again, so the maps that have it are neighbours in the row. A snapshot has alone
//! what is younger than the next older map that is still there, and not in the next newer one. What it has of other lineages is
//! theirs.
//!
//! Invariants
//! - Only what no map has, and none will have after any crash, is given back: [`stored_root`] says that of a volume that is written.
//! - A snapshot whose space is being given back has no name and no descendants, and its entry stays until that is durable. A crash
//!   anywhere is followed by the same again.
//! - Of a row that has something of an unknown order, nothing is given back.

use std::collections::BTreeSet;
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::object::{ObjectId, ObjectKind};
use archipelago_protocol::{BLOCK_SIZE, Epoch, ErrorCode, Lineage};

use crate::catalogue::{Item, Names};
use crate::failure::Outcome;
use crate::parts::Parts;
use crate::session::{check_owner, stored_root};
use crate::tree::{Layer, Nodes, Root, Unshared};

/// The maps between which a snapshot of `volume` stands.
#[derive(Debug)]
struct Neighbours {
    volume: Item,
    older: Option<(Root, Epoch)>,
    newer: Newer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Newer {
    Snapshot(Root),
    /// The volume itself.
    Volume,
    /// The volume has been removed.
    Nothing,
}

/// Gives back what the removed `snapshot` had alone; not yet durably. Whether there was anything. Snapshots in `gone` are there no more,
/// though they have entries.
///
/// # Errors
/// [`ErrorCode::InUse`], [`ErrorCode::Unavailable`] and what passes: not now.
pub(super) async fn reclaim(
    parts: &Rc<Parts>,
    snapshot: &Item,
    gone: &BTreeSet<Lineage>,
) -> Outcome<bool> {
    let neighbours = neighbours(&parts.catalogue.names(), snapshot, gone);
    let Some(Neighbours {
        volume,
        older,
        newer,
    }) = neighbours
    else {
        return Ok(false);
    };
    let newer = match newer {
        Newer::Snapshot(root) => Some(root),
        Newer::Volume => Some(stored_root(parts, &volume, snapshot.epoch).await?),
        Newer::Nothing => None,
    };
    let since = older.map(|(_, epoch)| epoch);
    let is_own = |layer: &Layer| {
        layer.lineage == volume.lineage && since.is_none_or(|since| layer.epoch > since)
    };
    let mut bytes = 0;
    let mut walk = Unshared::new(snapshot.root, older.map(|(root, _)| root), newer);
    while let Some(part) = walk.next_part() {
        parts.check_running()?;
        let mut loaded = [None, None, None];
        for (node, page) in loaded
            .iter_mut()
            .zip([part.removed(), part.older(), part.newer()])
        {
            if let Some(page) = page {
                *node = Some(parts.pool.read_page(page, snapshot.object_size).await?);
            }
        }
        let [removed, older, newer] = loaded.each_ref().map(Option::as_deref);
        let nodes = Nodes {
            removed,
            older,
            newer,
        };
        if !part.is_leaf() {
            walk.descend(&part, nodes);
            continue;
        }
        for (layer, blocks) in part.blocks(nodes, snapshot.object_size, is_own) {
            parts.check_running()?;
            let id = ObjectId::data(layer.lineage, layer.epoch);
            let (offset, len) = (
                blocks.start * BLOCK_SIZE,
                (blocks.end - blocks.start) * BLOCK_SIZE,
            );
            let disk = &parts.pool.disk;
            disk.punch_data(id, snapshot.object_size, offset, len)
                .await?;
            bytes += len;
        }
    }
    parts
        .pool
        .count(|counters| counters.reclaimed_bytes += bytes);
    Ok(bytes > 0)
}

/// `None`: it has nothing alone, or nobody knows.
fn neighbours(names: &Names, snapshot: &Item, gone: &BTreeSet<Lineage>) -> Option<Neighbours> {
    let [volume] = snapshot.sources[..] else {
        return None;
    };
    let volume = names.get(volume).filter(|item| item.kind == Kind::Volume)?;
    if snapshot.kind != Kind::Snapshot || snapshot.epoch == Epoch(0) {
        return None;
    }
    let (mut older, mut newer): (Option<&Item>, Option<&Item>) = (None, None);
    for other in names.children(volume.lineage) {
        if other.lineage == snapshot.lineage || gone.contains(&other.lineage) {
            continue;
        }
        if other.kind != Kind::Snapshot || other.sources != snapshot.sources {
            return None;
        }
        if other.epoch > snapshot.epoch {
            newer = newer
                .filter(|known| known.epoch <= other.epoch)
                .or(Some(other));
        } else {
            older = older
                .filter(|known| known.epoch >= other.epoch)
                .or(Some(other));
        }
    }
    let newer = match newer {
        Some(newer) => Newer::Snapshot(newer.root),
        None if volume.name.is_some() => Newer::Volume,
        // Everything goes with the volume.
        None if older.is_none() => return None,
        None => Newer::Nothing,
    };
    Some(Neighbours {
        volume: volume.clone(),
        older: older.map(|older| (older.root, older.epoch)),
        newer,
    })
}

/// Deletes what removed volumes had alone whose snapshots are still there: all that is younger than the newest of these.
pub(super) async fn empty_removed_volumes(parts: &Rc<Parts>) -> Outcome<()> {
    let next = || parts.catalogue.volume_to_empty();
    while let Some(volume) = next() {
        parts.catalogue.volume_emptied(volume.lineage);
        if check_owner(parts, &volume).await.is_err() {
            // Another node is just closing it. Its blocks stay until its last snapshot is removed, or until the next start.
            continue;
        }
        let newest = {
            let names = parts.catalogue.names();
            names.newest_snapshot(volume.lineage, |_| true)
        };
        let Some(newest) = newest else {
            continue;
        };
        let mut last = ObjectId::data(volume.lineage, newest);
        loop {
            parts.check_running()?;
            let listed = parts.pool.disk.list_above(last).await?;
            let alone = listed
                .iter()
                .take_while(|id| id.lineage == volume.lineage && id.kind == ObjectKind::Data);
            let alone: Vec<ObjectId> = alone.copied().collect();
            for id in &alone {
                parts.pool.disk.delete(*id).await?;
            }
            match alone.last() {
                Some(id) if alone.len() == listed.len() => last = *id,
                _ => break,
            }
        }
    }
    Ok(())
}

/// Gives back what removed snapshots among `items` had alone, durably, and returns those whose entries may be removed: all but those
/// for which it is too early.
pub(super) async fn reclaim_all(parts: &Rc<Parts>, items: Vec<Item>) -> Outcome<Vec<Lineage>> {
    let (mut snapshots, others): (Vec<Item>, Vec<Item>) = items
        .into_iter()
        .partition(|item| item.kind == Kind::Snapshot);
    snapshots.sort_by_key(|item| item.epoch);
    let mut gone = BTreeSet::new();
    let mut any = false;
    for snapshot in snapshots {
        match reclaim(parts, &snapshot, &gone).await {
            Ok(found) => {
                any |= found;
                gone.insert(snapshot.lineage);
            }
            // Nothing says what it had alone.
            Err(failure) if failure.code.is_of_stored() => {
                parts.pool.note(snapshot.lineage, &failure);
                tracing::warn!("space of a removed snapshot is lost: {}", failure.message);
                gone.insert(snapshot.lineage);
            }
            Err(failure) if is_later(failure.code) => {
                tracing::debug!("a removed snapshot still takes space: {}", failure.message);
            }
            Err(failure) => {
                tracing::warn!("a removed snapshot still takes space: {}", failure.message);
            }
        }
    }
    if any {
        parts.sync_pool().await?;
    }
    gone.extend(others.iter().map(|item| item.lineage));
    Ok(gone.into_iter().collect())
}

/// Whether it is only too early.
fn is_later(code: ErrorCode) -> bool {
    code.passes() || matches!(code, ErrorCode::InUse | ErrorCode::Unavailable)
}
