//! The end of a session: closed, abandoned, or its client disconnected.

use std::rc::Rc;

use archipelago_protocol::ErrorCode;

use super::settled::{close_clean, leave_in_log};
use crate::effect::ClientId;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::sessions::Session;

/// Ends a session in memory.
pub(super) fn end(parts: &Parts, session: &Session, handle: u32) {
    let volume = &session.volume;
    parts.sessions.remove(handle);
    let was_last_reader = volume.access.remove_session();
    if session.write {
        drop(volume.throttled.take());
        // One that is being committed goes on; it fails if its name is not reserved any more.
        let snapshot = volume.map.borrow_mut().drop_snapshot();
        if let Some(token) = snapshot {
            parts.catalogue.end_prepared(token);
        }
    } else if was_last_reader && volume.access.is_read_only() {
        // What a client that disconnected had left stays.
        parts.volumes.remove(volume.lineage);
    }
}

pub(super) async fn close(parts: &Rc<Parts>, session: &Session, handle: u32) -> Outcome<()> {
    let volume = &session.volume;
    let _alone = parts.volumes.lock(volume.lineage).await;
    if !parts.sessions.contains(handle) {
        return Err(Failure::new(ErrorCode::NotFound, "the session has ended"));
    }
    if !session.write {
        end(parts, session, handle);
        return Ok(());
    }
    let mut closed = close_clean(parts, volume).await;
    if closed.as_ref().is_err_and(|failure| failure.code.passes()) {
        closed = leave_in_log(parts, volume).await;
    }
    // Also after a failure: what is not durable can be recovered by the next open, from memory or the journal.
    end(parts, session, handle);
    if volume.access.poisoned().is_some() {
        parts.forget(volume.lineage);
    }
    parts.catalogue.retry_collection();
    closed
}

/// Drops what is not durable: the next open recovers.
pub(super) async fn abandon(parts: &Rc<Parts>, session: &Session, handle: u32) {
    let volume = &session.volume;
    let _alone = parts.volumes.lock(volume.lineage).await;
    volume.poison();
    // What is in flight ends first, so that the next open reads a log that nobody writes.
    let _still = volume.stand_still().await;
    if parts.sessions.contains(handle) {
        end(parts, session, handle);
        parts.forget(volume.lineage);
    }
}

/// The client's process died: what it reported stays, its sessions end.
pub(crate) fn client_gone(parts: &Parts, client: ClientId) {
    for (handle, session) in parts.sessions.disconnect(client) {
        end(parts, &session, handle);
    }
}
