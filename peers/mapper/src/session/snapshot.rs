//! Snapshots of a volume that is open.
//!
//! Begin raises the epoch and keeps the tree, in memory. Commit logs the old epoch's records and the freeze, stores the
//! frozen tree's pages, and last gives the snapshot its name: in this order, each durable before the next.

use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::MapReply;

use super::checkpoint::{PageSync, store_tree};
use super::commit::{HomeLocations, commit};
use super::owned_again;
use crate::catalogue::FrozenRoot;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::volume::{FrozenMap, Select, Volume};

/// Takes effect at once.
pub(super) fn begin(parts: &Parts, volume: &Volume, token: u64) -> MapReply {
    let mut map = volume.map.borrow_mut();
    if map.has_snapshot() && parts.catalogue.is_prepared(token, volume.lineage) {
        return MapReply::failed(ErrorCode::InUse);
    }
    if let Err(code) = parts.catalogue.begin_prepared(token, volume.lineage) {
        return MapReply::failed(code);
    }
    let epoch = map.begin_snapshot(token);
    let mut reply = MapReply::done(0);
    reply.values[0] = epoch.0;
    reply
}

/// Forgets the snapshot; the raised epoch stays.
pub(super) fn abort(parts: &Rc<Parts>, volume: &Rc<Volume>, token: u64) -> MapReply {
    if let Err(code) = volume.map.borrow_mut().abort_snapshot(token) {
        return MapReply::failed(code);
    }
    parts.catalogue.end_prepared(token);
    owned_again::start_if_due(parts, volume);
    MapReply::done(0)
}

pub(super) async fn commit_snapshot(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    token: u64,
) -> Outcome<()> {
    let frozen = volume.map.borrow_mut().commit_snapshot(token);
    let frozen = frozen.map_err(|code| {
        let why = match code {
            ErrorCode::InUse => format!("the snapshot with token {token} is being made already"),
            _ => format!("there is no snapshot with token {token}"),
        };
        Failure::new(code, why)
    })?;
    let birth = parts.volumes.lock_births(volume.lineage).await;
    if !volume.map.borrow().is_making(token) {
        let why = "the session has ended that was making a snapshot";
        return Err(Failure::new(ErrorCode::NotFound, why));
    }
    let result = make(parts, volume, token, frozen).await;
    parts.catalogue.end_prepared(token);
    {
        let mut map = volume.map.borrow_mut();
        map.end_snapshot(token);
        map.release_stored();
    }
    drop(birth);
    if result.is_err() {
        owned_again::start_if_due(parts, volume);
    }
    result
}

async fn make(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    token: u64,
    frozen: FrozenMap,
) -> Outcome<()> {
    let select = Select::Freeze(frozen.epoch);
    let nothing = JournaledData::default();
    commit(parts, volume, select, &nothing, HomeLocations::Unknown).await?;
    let root = store_tree(parts, volume, &frozen.tree, PageSync::Pack).await?;
    let (size, epoch) = (frozen.size, frozen.epoch);
    let frozen = FrozenRoot { root, epoch };
    parts.catalogue.enter_snapshot(token, size, frozen).await?;
    parts.pool.count(|counters| counters.snapshots += 1);
    Ok(())
}
