//! Requests of volume peers, and the answers.

use std::rc::Rc;

use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use archipelago_protocol::{ErrorCode, Lineage};

use super::admission::{admit, waits_for_begin};
use super::begin::{begin, log_failure};
use super::change::{change, release_throttled};
use super::close::{abandon, close};
use super::commit::flush_commit;
use super::locate::locate;
use super::open::open;
use super::pages::with_pages;
use super::status::status;
use super::{checkpoint, snapshot};
use crate::effect::ClientId;
use crate::failure::Failure;
use crate::parts::Parts;
use crate::pool::Pool;
use crate::sessions::Session;
use crate::tree::Missing;
use crate::volume::{Volume, WaitingRequest};

/// Answers a request, now or later; `data` is what a flush has the log keep.
pub(crate) fn dispatch(
    parts: &Rc<Parts>,
    client: ClientId,
    tag: u64,
    request: MapRequest,
    data: JournaledData,
) {
    if request.op == MapOp::Open {
        return open_later(parts, client, tag, request);
    }
    match admit(parts, client, &request) {
        Ok(session) if waits_for_begin(&session.volume, &request) => {
            let request = WaitingRequest {
                client,
                tag,
                request,
                data,
            };
            begin_first(parts, &session.volume, request);
        }
        Ok(session) => serve(parts, &session, tag, request, data),
        Err(code) => parts.reply(client, tag, MapReply::failed(code)),
    }
}

fn open_later(parts: &Rc<Parts>, client: ClientId, tag: u64, request: MapRequest) {
    parts.spawn(|parts| async move {
        let lineage = Lineage::from_words(request.operand[0], request.operand[1]);
        let opened = open(&parts, client, lineage, request.flags).await;
        let reply = opened.unwrap_or_else(|failure| {
            parts.pool.note(lineage, &failure);
            if failure.code.passes() || failure.code == ErrorCode::InUse {
                // Whoever asks goes on asking, and says so once.
                tracing::debug!("open of {lineage} failed: {}", failure.message);
            } else {
                tracing::warn!("open of {lineage} failed: {}", failure.message);
            }
            MapReply::failed(failure.code)
        });
        parts.reply(client, tag, reply);
    });
}

/// Does `request` when what is due was written; or answers why it cannot be. Requests that wait for one try each get its
/// result.
fn begin_first(parts: &Rc<Parts>, volume: &Rc<Volume>, request: WaitingRequest) {
    if !volume.start.wait(request) {
        return;
    }
    let volume = Rc::clone(volume);
    parts.spawn(|parts| async move {
        let lineage = volume.lineage;
        let began = {
            let _alone = parts.volumes.lock(lineage).await;
            // The session may be gone by now: its requests are refused below.
            if volume.access.has_writer() {
                begin(&parts, &volume).await
            } else {
                Ok(())
            }
        };
        if let Err(failure) = &began {
            parts.pool.note(lineage, failure);
            log_failure(lineage, failure);
        }
        for of in volume.start.take_waiting() {
            match &began {
                Ok(()) => dispatch(&parts, of.client, of.tag, of.request, of.data),
                Err(failure) => parts.reply(of.client, of.tag, MapReply::failed(failure.code)),
            }
        }
    });
}

fn serve(parts: &Rc<Parts>, session: &Session, tag: u64, request: MapRequest, data: JournaledData) {
    let (client, volume) = (session.client, &session.volume);
    let reply = match request.op {
        MapOp::Locate => {
            parts.pool.count(|counters| counters.locates += 1);
            match locate(&parts.pool, volume, &request) {
                Ok(reply) => reply,
                Err(_missing) => {
                    parts.pool.count(|counters| counters.locate_misses += 1);
                    return look_later(parts, session, tag, request, locate);
                }
            }
        }
        MapOp::Status => {
            parts.pool.count(|counters| counters.statuses += 1);
            match status(&parts.pool, volume, &request) {
                Ok(reply) => reply,
                Err(_missing) => return look_later(parts, session, tag, request, status),
            }
        }
        MapOp::Lineage => lineage(volume, request.operand[0]),
        MapOp::Written | MapOp::Zero => return change(parts, session, tag, request),
        MapOp::FlushBegin => {
            let mut reply = MapReply::done(u32::from(volume.is_unsynced()));
            reply.values[0] = volume.map.borrow().dirty().last_sequence();
            reply
        }
        MapOp::SnapshotBegin => snapshot::begin(parts, volume, request.operand[0]),
        MapOp::SnapshotAbort => snapshot::abort(parts, volume, request.operand[0]),
        MapOp::FlushCommit | MapOp::SnapshotCommit | MapOp::Close | MapOp::Abandon => {
            return later(parts, session, tag, request, data);
        }
        MapOp::Open => MapReply::failed(ErrorCode::Internal),
    };
    parts.reply(client, tag, reply);
}

/// What takes more than memory.
fn later(parts: &Rc<Parts>, session: &Session, tag: u64, request: MapRequest, data: JournaledData) {
    let session = session.clone();
    parts.spawn(|parts| async move {
        let volume = &session.volume;
        let operand = request.operand[0];
        let done = match request.op {
            MapOp::FlushCommit => flush_commit(&parts, volume, &request, data).await,
            MapOp::SnapshotCommit => snapshot::commit_snapshot(&parts, volume, operand).await,
            MapOp::Close => close(&parts, &session, request.handle).await,
            _ => {
                abandon(&parts, &session, request.handle).await;
                Ok(())
            }
        };
        let reply = match done {
            Ok(()) => MapReply::done(0),
            Err(failure) => {
                tracing::warn!(
                    "{:?} of {} failed: {}",
                    request.op,
                    volume.lineage,
                    failure.message
                );
                MapReply::failed(failure.code)
            }
        };
        parts.reply(session.client, tag, reply);
        checkpoint::start_if_due(&parts, volume);
        release_throttled(&parts, volume);
    });
}

/// A look at the map that may miss a page.
type Look = fn(&Pool, &Volume, &MapRequest) -> Result<MapReply, Missing>;

/// Answers what `look` sees when the pages that it needs are in memory.
fn look_later(parts: &Rc<Parts>, session: &Session, tag: u64, request: MapRequest, look: Look) {
    let session = session.clone();
    parts.spawn(|parts| async move {
        let volume = &session.volume;
        let step = || look(&parts.pool, volume, &request);
        let seen = with_pages(&parts, volume, step).await;
        let reply = match (seen, volume.access.poisoned()) {
            (_, Some(code)) | (Err(Failure { code, .. }), None) => MapReply::failed(code),
            (Ok(reply), None) => reply,
        };
        parts.reply(session.client, tag, reply);
    });
}

fn lineage(volume: &Volume, number: u64) -> MapReply {
    match volume.lineages.borrow().get(number) {
        Some(lineage) => MapReply {
            values: lineage.to_words(),
            ..MapReply::done(0)
        },
        None => MapReply::failed(ErrorCode::NotFound),
    }
}
