//! First writes and zeroes: applied to the map at once, or throttled until a log append makes room.
//!
//! Invariants
//! - Each request gets one reply.
//! - Throttled changes are tried again in their order. A change that has to load a page may be overtaken: the volume peer has no
//!   overlapping changes in flight.
//! - The log has room for all dirty records.

use std::rc::Rc;

use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{
    FLAG_FLUSH_REQUESTED, LOCATE_LEN_MAX, MapOp, MapReply, MapRequest,
};
use archipelago_protocol::{Epoch, ErrorCode};

use super::admission::admit;
use super::checkpoint;
use super::commit::{HomeLocations, make_records_room, sync_and_commit};
use crate::effect::ClientId;
use crate::parts::Parts;
use crate::sessions::Session;
use crate::tree::Missing;
use crate::volume::{ApplyError, Volume, WaitingRequest};

/// [`MapOp::Written`] and [`MapOp::Zero`].
pub(super) fn change(parts: &Rc<Parts>, session: &Session, tag: u64, request: MapRequest) {
    let Some(mut missing) = change_now(parts, session, tag, request) else {
        return;
    };
    let session = session.clone();
    parts.spawn(|parts| async move {
        let client = session.client;
        // Keeps the loaded pages in the cache until the change is applied.
        let mut pinned_pages = Vec::new();
        loop {
            let volume = &session.volume;
            match parts.pool.load_page(missing, volume.object_size).await {
                Ok(node) => pinned_pages.push(node),
                Err(failure) => {
                    parts.pool.note(volume.lineage, &failure);
                    return parts.reply(client, tag, MapReply::failed(failure.code));
                }
            }
            // Check admission again: the session may have ended while the page was loaded.
            if let Err(code) = admit(&parts, client, &request) {
                return parts.reply(client, tag, MapReply::failed(code));
            }
            match change_now(&parts, &session, tag, request) {
                Some(next) => missing = next,
                None => return,
            }
        }
    });
}

/// Replies, or queues the request for a later reply; returns the page to load first if the map needs one.
fn change_now(
    parts: &Rc<Parts>,
    session: &Session,
    tag: u64,
    request: MapRequest,
) -> Option<Missing> {
    let (client, volume) = (session.client, &session.volume);
    if let Err(code) = validate(volume, &request) {
        parts.reply(client, tag, MapReply::failed(code));
        return None;
    }
    if !volume.throttled.is_empty() {
        throttle(parts, volume, client, tag, request);
        return None;
    }
    match apply(parts, volume, &request) {
        Ok(()) => reply_done(parts, volume, client, tag),
        Err(ApplyError::Full) => throttle(parts, volume, client, tag, request),
        Err(ApplyError::Missing(missing)) => return Some(missing),
    }
    None
}

fn validate(volume: &Volume, request: &MapRequest) -> Result<(), ErrorCode> {
    let map = volume.map.borrow();
    map.range(request.offset, request.len)?;
    if request.op == MapOp::Written {
        let epoch = Epoch(request.operand[0]);
        if request.len > LOCATE_LEN_MAX || !map.may_be_written(epoch) {
            return Err(ErrorCode::Invalid);
        }
    }
    Ok(())
}

fn apply(parts: &Parts, volume: &Volume, request: &MapRequest) -> Result<(), ApplyError> {
    let config = &parts.pool.config;
    // Dirty records are limited to what the log can still hold: a close of a full pool can write them nowhere else.
    let room = volume.log.records_room(config.io_len_max);
    let dirty_max = room.min(config.pending_max);
    let mut map = volume.map.borrow_mut();
    let range = map
        .range(request.offset, request.len)
        .expect("checked by `validate`");
    let epoch = (request.op == MapOp::Written).then_some(Epoch(request.operand[0]));
    let before = map.dirty().last_sequence();
    let applied = map.apply(&parts.pool.pages.cache(), range, epoch, dirty_max);
    let records = map.dirty().last_sequence() - before;
    parts
        .pool
        .count(|counters| counters.presence_records += records);
    applied
}

/// Replies, and requests a flush once half of the records that may be dirty are.
fn reply_done(parts: &Parts, volume: &Volume, client: ClientId, tag: u64) {
    let dirty = volume.map.borrow().dirty().len();
    let flush_wanted = dirty * 2 >= parts.pool.config.pending_max;
    let reply = MapReply {
        flags: if flush_wanted {
            FLAG_FLUSH_REQUESTED
        } else {
            0
        },
        ..MapReply::done(0)
    };
    parts.reply(client, tag, reply);
}

/// Queues the request until a log append makes room, and starts that append if none is running.
fn throttle(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    client: ClientId,
    tag: u64,
    request: MapRequest,
) {
    parts.pool.count(|counters| counters.throttled += 1);
    let waiting = WaitingRequest {
        client,
        tag,
        request,
        data: JournaledData::default(),
    };
    if !volume.throttled.push(waiting) {
        return;
    }
    let volume = Rc::clone(volume);
    parts.spawn(|parts| async move {
        // Flushes continue concurrently and may journal data after this sync.
        let mut appended = sync_and_commit(&parts, &volume, HomeLocations::Unknown).await;
        if appended.is_ok() {
            appended = make_records_room(&parts, &volume).await;
        }
        volume.throttled.append_ended();
        if let Err(failure) = appended {
            for waiting in volume.throttled.take() {
                parts.reply(waiting.client, waiting.tag, MapReply::failed(failure.code));
            }
        }
        release_throttled(&parts, &volume);
        checkpoint::start_if_due(&parts, &volume);
    });
}

/// Tries the throttled changes of `volume` again.
pub(super) fn release_throttled(parts: &Rc<Parts>, volume: &Volume) {
    for waiting in volume.throttled.take() {
        match admit(parts, waiting.client, &waiting.request) {
            Ok(session) => change(parts, &session, waiting.tag, waiting.request),
            Err(code) => parts.reply(waiting.client, waiting.tag, MapReply::failed(code)),
        }
    }
}
