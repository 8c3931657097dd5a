//! The begin of a session: the volume comes into memory, and is the client's.

use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::map::{FLAG_DROP, FLAG_WRITE, MapReply};
use archipelago_protocol::{ErrorCode, Lineage};

use super::begin::begin_if_room;
use super::close::end;
use super::load::{load_writer, read_only};
use super::settled::{item, settle};
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
    let frozen = matches!(item.kind, Kind::Snapshot | Kind::Image);
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
        parts.forget(lineage);
    }
    let volume = match (frozen, write) {
        (true, _) => read_only(parts, &item, item.root),
        (false, true) => writable(parts, &item).await?,
        (false, false) => readable(parts, &item).await?,
    };
    parts.volumes.insert(Rc::clone(&volume));
    // It may have been grown while it was opened.
    if let Some(now) = parts.catalogue.names().get(lineage) {
        volume.set_size(now.size);
    }
    add(parts, client, volume, write)
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

/// A volume for writing, as soon as there is room for what its session writes first: the one that a vanished client left
/// in memory, or from the pool.
async fn writable(parts: &Rc<Parts>, item: &Item) -> Outcome<Rc<Volume>> {
    let left = parts.volumes.get(item.lineage);
    if let Some(volume) = left {
        if volume.check().is_ok() {
            volume.start.set_left();
            let begun = begin_if_room(parts, &volume).await;
            if volume.check().is_err() {
                // A failed sync is final: the next open has what is durable and nothing else.
                parts.forget(item.lineage);
            }
            begun?;
            return Ok(volume);
        }
        parts.forget(item.lineage);
    }
    let volume = load_writer(parts, item).await?;
    begin_if_room(parts, &volume).await?;
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
