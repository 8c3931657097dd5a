//! Snapshots of a volume that is open.
//!
//! Begin raises the epoch and keeps the tree, in memory. Commit logs the old epoch's records and the freeze, stores the
//! frozen tree's pages, and last gives the snapshot its name: in this order, each durable before the next.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::map::MapReply;
use archipelago_protocol::{Epoch, ErrorCode};

use super::checkpoint::PageSync;
use super::commit::{Home, Select, commit};
use super::{Snapshotting, Volume};
use crate::catalogue;
use crate::core::Core;
use crate::failure::{Failure, Outcome};

/// Takes effect at once.
pub(super) fn begin(core: &Core, volume: &Volume, token: u64) -> MapReply {
    let mut prepared = core.prepared.borrow_mut();
    let Some(prepared) = prepared
        .get_mut(&token)
        .filter(|prepared| prepared.volume == volume.lineage)
    else {
        return MapReply::failed(ErrorCode::NotFound);
    };
    let mut live = volume.live.borrow_mut();
    if live.snapshot.is_some() || prepared.begun {
        return MapReply::failed(ErrorCode::InUse);
    }
    prepared.begun = true;
    let old = live.epoch;
    live.snapshot = Some(Snapshotting {
        token,
        tree: live.tree.clone(),
        epoch: old,
        size: live.size,
        zeroed: Vec::new(),
        committing: false,
    });
    live.frozen = old;
    live.epoch = Epoch(old.0 + 1);
    let mut reply = MapReply::done(0);
    reply.values[0] = live.epoch.0;
    reply
}

/// Forgets the snapshot; the raised epoch stays.
pub(super) fn abort(core: &Core, volume: &Volume, token: u64) -> MapReply {
    let mut live = volume.live.borrow_mut();
    match &live.snapshot {
        Some(snapshot) if snapshot.token == token && !snapshot.committing => live.snapshot = None,
        Some(snapshot) if snapshot.token == token => return MapReply::failed(ErrorCode::InUse),
        _ => {}
    }
    core.end_prepared(token);
    MapReply::done(0)
}

pub(super) async fn commit_snapshot(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    token: u64,
) -> Outcome<()> {
    let (tree, epoch, size) = {
        let mut live = volume.live.borrow_mut();
        let live = &mut *live;
        let unknown = || {
            Failure::new(
                ErrorCode::NotFound,
                format!("there is no snapshot with token {token}"),
            )
        };
        let snapshot = live
            .snapshot
            .as_mut()
            .filter(|snapshot| snapshot.token == token);
        let snapshot = snapshot.ok_or_else(unknown)?;
        if snapshot.committing {
            return Err(Failure::new(
                ErrorCode::InUse,
                "the snapshot is being made already",
            ));
        }
        snapshot.committing = true;
        live.sealed = snapshot.epoch;
        (snapshot.tree.clone(), snapshot.epoch, snapshot.size)
    };
    let result = make(core, volume, token, &tree, epoch, size).await;
    volume.live.borrow_mut().snapshot = None;
    core.end_prepared(token);
    volume.live.borrow_mut().tree.release_stored();
    result
}

async fn make(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    token: u64,
    tree: &crate::tree::Tree,
    epoch: Epoch,
    size: u64,
) -> Outcome<()> {
    let nothing = Carried::default();
    commit(core, volume, Select::Freeze(epoch), &nothing, Home::Unknown).await?;
    let root = volume.store_tree(core, tree, PageSync::Pack).await?;
    // The session may have ended meanwhile, and with it the reservation of the name.
    let prepared = core.prepared.borrow().get(&token).cloned();
    let prepared = prepared.ok_or_else(|| {
        Failure::new(
            ErrorCode::NotFound,
            format!("there is no snapshot with token {token}"),
        )
    })?;
    catalogue::enter_snapshot(core, &prepared, size, root).await?;
    core.count(|counters| counters.snapshots += 1);
    Ok(())
}
