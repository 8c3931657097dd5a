//! The begin of a session: the volume comes into memory, and is the client's.

use std::rc::Rc;

use archipelago_protocol::map::{FLAG_DROP, FLAG_DURABLE_POOL, FLAG_WRITE, MapReply};
use archipelago_protocol::{ErrorCode, Lineage};

use super::begin::begin_if_room;
use super::close::end;
use super::load::{load_writer, read_only};
use super::ownership::{lost_race, unless_removed};
use super::settled::{close_clean, item, settle};
use crate::catalogue::Item;
use crate::effect::ClientId;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::sessions::Session;
use crate::volume::Volume;

pub(super) async fn open(
    parts: &Rc<Parts>,
    client: ClientId,
    lineage: Lineage,
    flags: u8,
) -> Outcome<MapReply> {
    let write = flags & FLAG_WRITE != 0;
    parts.catalogue.ready().await?;
    let _alone = parts.volumes.lock(lineage).await;
    let item = item(parts, lineage)?;
    let frozen = item.is_frozen();
    if frozen && write {
        return Err(Failure::new(
            ErrorCode::ReadOnly,
            format!("{lineage} is frozen: clone it to write"),
        ));
    }
    let open = parts.volumes.get(lineage);
    if let Some(volume) = open.filter(|volume| volume.access.is_open()) {
        return add(parts, client, volume, write);
    }
    if write && flags & FLAG_DROP != 0 {
        // It knows that what is not durable is lost, by whatever.
        parts.forget(lineage);
        parts.pool.journals.take_lost(lineage);
    }
    let volume = match (frozen, write) {
        (true, _) => Ok(read_only(parts, &item, item.root)),
        (false, true) => writable(parts, &item).await,
        (false, false) => readable(parts, &item).await,
    };
    let volume = unless_removed(parts, lineage, volume).await?;
    if write && parts.catalogue.has_others() {
        check_still_there(parts, &volume).await?;
    }
    parts.volumes.insert(Rc::clone(&volume));
    // It may have been grown while it was opened.
    if let Some(now) = parts.catalogue.names().get(lineage) {
        volume.set_size(now.size);
    }
    add(parts, client, volume, write)
}

/// Another node may have removed the volume while it was opened: who removes it looks for an owner when nobody finds it any more, so
/// whoever has become the owner looks whether it can be found.
async fn check_still_there(parts: &Rc<Parts>, volume: &Rc<Volume>) -> Outcome<()> {
    parts.catalogue.ready().await?;
    let found = item(parts, volume.lineage);
    if found.is_err() && !volume.start.is_before_head() {
        close_clean(parts, volume).await?;
        parts.catalogue.want_collection();
    }
    found.map(drop)
}

/// A volume for reading, as it is. Without room for what its last session has to write still, it is read from memory.
async fn readable(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    match settle(parts, item).await {
        Ok(found) => {
            let root = found.map_or(item.root, |head| head.get().root);
            Ok(read_only(parts, item, root))
        }
        Err(failure) if failure.code.passes() => {
            tracing::debug!("{} is read as it is: {}", item.lineage, failure.message);
            if let Some(left) = parts.volumes.get(item.lineage) {
                return Ok(left);
            }
            let volume = load_writer(parts, item).await?;
            volume.access.make_read_only();
            Ok(volume)
        }
        Err(failure) => Err(failure),
    }
}

/// A volume for writing, as soon as there is room for what its session writes first. What the writer before it had not
/// flushed and may be lost since is reported once, as [`ErrorCode::SyncFailed`], also if others have seen that.
async fn writable(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    let lineage = item.lineage;
    if parts.pool.journals.take_lost(lineage) {
        parts.forget(lineage);
        return Err(Failure::lost(lineage));
    }
    let opened = match parts.volumes.get(lineage) {
        Some(left) => left_writable(parts, item, left).await,
        None => loaded_writable(parts, item).await,
    };
    opened.inspect_err(|failure| {
        if failure.code == ErrorCode::SyncFailed {
            parts.pool.journals.take_lost(lineage);
        }
    })
}

/// The volume that a vanished client left in memory.
async fn left_writable(parts: &Rc<Parts>, item: &Item, left: Rc<Volume>) -> Outcome<Rc<Volume>> {
    let mut begun = left.check();
    if begun.is_ok() {
        left.start.set_left();
        begun = begin_if_room(parts, &left).await;
    }
    if left.check().is_ok() {
        return begun.map(|()| left);
    }
    // A failed sync is final: the next open has what is durable and nothing else.
    parts.forget(item.lineage);
    match begun.and_then(|()| left.check()) {
        // Another node has had it: what is durable is the volume.
        Err(failure) if failure.code == ErrorCode::Stale => loaded_writable(parts, item).await,
        ended => ended.map(|()| left),
    }
}

/// A volume from the pool.
async fn loaded_writable(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    let volume = load_writer(parts, item).await?;
    let begun = begin_if_room(parts, &volume).await;
    lost_race(parts, item, begun).await?;
    Ok(volume)
}

/// Adds a session of `client`.
fn add(parts: &Parts, client: ClientId, volume: Rc<Volume>, write: bool) -> Outcome<MapReply> {
    let added = if write {
        volume.access.add_writer()
    } else {
        volume.access.add_reader()
    };
    let lineage = volume.lineage;
    added.map_err(|code| Failure::new(code, format!("{lineage} is open")))?;
    let reply = MapReply {
        flags: match parts.pool.disk.is_durable() {
            true => FLAG_DURABLE_POOL,
            false => 0,
        },
        values: [
            volume.map.borrow().size(),
            u64::from(volume.object_size.log2()),
        ],
        ..MapReply::done(0)
    };
    let session = Session {
        client,
        volume,
        write,
    };
    let handle = parts.sessions.add(session.clone());
    if parts.sessions.is_disconnected(client) {
        // It died while it waited for this.
        end(parts, &session, handle);
    }
    Ok(MapReply {
        result: Ok(handle),
        ..reply
    })
}
