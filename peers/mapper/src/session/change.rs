//! First writes and zeroes: into the map at once, or throttled until something was logged.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::map::{FLAG_FLUSH_SOON, LOCATE_LEN_MAX, MapOp, MapReply, MapRequest};
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
        let mut held = Vec::new();
        loop {
            let volume = &session.volume;
            match parts.pool.load_page(missing, volume.object_size).await {
                Ok(node) => held.push(node),
                Err(failure) => {
                    parts.pool.note(volume.lineage, &failure);
                    return parts.reply(client, tag, MapReply::failed(failure.code));
                }
            }
            // From the beginning: the session may be gone or stopped by now.
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

/// Answers, or sees to it that it is answered; or tells what has to be loaded first.
fn change_now(
    parts: &Rc<Parts>,
    session: &Session,
    tag: u64,
    request: MapRequest,
) -> Option<Missing> {
    let (client, volume) = (session.client, &session.volume);
    if let Err(code) = check(volume, &request) {
        parts.reply(client, tag, MapReply::failed(code));
        return None;
    }
    if !volume.throttled.is_empty() {
        throttle(parts, volume, client, tag, request);
        return None;
    }
    match apply(parts, volume, &request) {
        Ok(()) => changed(parts, volume, client, tag),
        Err(ApplyError::Full) => throttle(parts, volume, client, tag, request),
        Err(ApplyError::Missing(missing)) => return Some(missing),
    }
    None
}

fn check(volume: &Volume, request: &MapRequest) -> Result<(), ErrorCode> {
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
    // What is pending always has room in the log: a close may find none elsewhere.
    let room = volume.log.records_room(config.io_len_max);
    let dirty_max = room.min(config.pending_max);
    let mut map = volume.map.borrow_mut();
    let Ok(range) = map.range(request.offset, request.len) else {
        return Ok(());
    };
    let epoch = (request.op == MapOp::Written).then_some(Epoch(request.operand[0]));
    let before = map.dirty().last_sequence();
    let applied = map.apply(&parts.pool.pages.cache(), range, epoch, dirty_max);
    let records = map.dirty().last_sequence() - before;
    parts
        .pool
        .count(|counters| counters.presence_records += records);
    applied
}

fn changed(parts: &Parts, volume: &Volume, client: ClientId, tag: u64) {
    let dirty = volume.map.borrow().dirty().len();
    let flush_wanted = dirty * 2 >= parts.pool.config.pending_max;
    let reply = MapReply {
        flags: if flush_wanted { FLAG_FLUSH_SOON } else { 0 },
        ..MapReply::done(0)
    };
    parts.reply(client, tag, reply);
}

/// Answers later, when something was logged; and sees to it that something is.
fn throttle(
    parts: &Rc<Parts>,
    volume: &Rc<Volume>,
    client: ClientId,
    tag: u64,
    request: MapRequest,
) {
    parts.pool.count(|counters| counters.held_back += 1);
    let waiting = WaitingRequest {
        client,
        tag,
        request,
        data: Carried::default(),
    };
    if !volume.throttled.push(waiting) {
        return;
    }
    let volume = Rc::clone(volume);
    parts.spawn(|parts| async move {
        // Flushes of the client go on beside: what they journal may be written after this sync.
        let mut relieved = sync_and_commit(&parts, &volume, HomeLocations::Unknown).await;
        if relieved.is_ok() {
            relieved = make_records_room(&parts, &volume).await;
        }
        volume.throttled.relieved();
        if let Err(failure) = relieved {
            for of in volume.throttled.take() {
                parts.reply(of.client, of.tag, MapReply::failed(failure.code));
            }
        }
        release_throttled(&parts, &volume);
        checkpoint::start_if_due(&parts, &volume);
    });
}

/// Tries the throttled changes of `volume` again.
pub(super) fn release_throttled(parts: &Rc<Parts>, volume: &Volume) {
    for of in volume.throttled.take() {
        match admit(parts, of.client, &of.request) {
            Ok(session) => change(parts, &session, of.tag, of.request),
            Err(code) => parts.reply(of.client, of.tag, MapReply::failed(code)),
        }
    }
}
