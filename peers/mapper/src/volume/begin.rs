//! What a session writes before it may write itself, at once or when there is room for it.
//!
//! A volume whose pool has no room is opened all the same: it is read, and what its session has to write first stays *due*.
//! Each request that needs more than to read makes another try; without room it fails with a code that passes, and
//! whoever asked waits and asks again.
//!
//! Invariants
//! - A session with something due changes nothing: no place is given for a write, no record is made. So its log, journal
//!   and head are those of the session before, and a recovery finds all that it would have found.
//! - Of several requests that wait for one try each gets its result.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapReply, MapRequest};
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{Epoch, ErrorCode, Lineage};

use super::Volume;
use super::checkpoint::PageSync;
use super::commit::Home;
use super::session::{dispatch, sync_and_commit};
use crate::core::{Core, Session};
use crate::effect::ClientId;
use crate::failure::{Failure, Outcome};
use crate::head::VolumeHead;
use crate::log::Log;

/// What has to be written before a session may write.
#[derive(Debug, Clone, Copy)]
pub(super) enum Due {
    /// The log, and this first head.
    First(VolumeHead),
    /// The tree's pages that are not stored, and this head: it gets their root.
    Next(VolumeHead),
    /// What a client that went had told: the head is this process's own.
    Left,
}

/// A request that waits for a try.
#[derive(Debug)]
pub(super) struct Beginner {
    client: ClientId,
    tag: u64,
    request: MapRequest,
    carried: Carried,
}

impl Volume {
    /// Whether `request` has to wait until what is due was written.
    pub(super) fn waits_for_begin(&self, request: &MapRequest) -> bool {
        let reads = match request.op {
            MapOp::Locate => request.flags & FLAG_WRITE == 0,
            op => matches!(op, MapOp::Lineage | MapOp::Close | MapOp::Abandon),
        };
        !reads && self.live.borrow().due.is_some()
    }

    /// Whether the head and what it leads to are still those of the session before.
    pub(super) fn is_before_head(&self) -> bool {
        let due = self.live.borrow().due;
        matches!(due, Some(Due::First(_) | Due::Next(_)))
    }
}

/// Does `request` when what is due was written; or answers why it cannot be.
pub(super) fn begin_first(
    core: &Rc<Core>,
    session: &Session,
    tag: u64,
    request: MapRequest,
    carried: Carried,
) {
    let volume = Rc::clone(&session.volume);
    let beginner = Beginner {
        client: session.client,
        tag,
        request,
        carried,
    };
    let mut live = volume.live.borrow_mut();
    live.beginning.push(beginner);
    if live.beginning.len() > 1 {
        return;
    }
    drop(live);
    let core = Rc::clone(core);
    core.scheduler.clone().spawn(async move {
        let lineage = volume.lineage;
        let began = {
            let _alone = core.lock(lineage).await;
            // The session may be gone by now: its requests are refused below.
            let is_open = volume.live.borrow().writer.is_some();
            if is_open {
                begin(&core, &volume).await
            } else {
                Ok(())
            }
        };
        if let Err(failure) = &began {
            core.note(lineage, failure);
            log_failure(lineage, failure);
        }
        let beginners = std::mem::take(&mut volume.live.borrow_mut().beginning);
        for of in beginners {
            match &began {
                Ok(()) => dispatch(&core, of.client, of.tag, of.request, of.carried),
                Err(failure) => core.reply(of.client, of.tag, MapReply::failed(failure.code)),
            }
        }
    });
}

fn log_failure(lineage: Lineage, failure: &Failure) {
    if failure.code.passes() {
        // Whoever asks goes on asking, and says so once.
        tracing::debug!("{lineage} cannot be written yet: {}", failure.message);
    } else {
        tracing::warn!("{lineage} cannot be written: {}", failure.message);
    }
}

/// As [`begin`], but no room for it is no failure: what is due stays so.
pub(super) async fn begin_if_room(core: &Rc<Core>, volume: &Rc<Volume>) -> Outcome<()> {
    match begin(core, volume).await {
        Err(failure) if failure.code.passes() => {
            log_failure(volume.lineage, &failure);
            Ok(())
        }
        began => began,
    }
}

/// Writes what is due, if anything is. After a failure it still is. The caller holds the lineage's lock.
pub(super) async fn begin(core: &Rc<Core>, volume: &Rc<Volume>) -> Outcome<()> {
    let due = volume.live.borrow().due;
    volume.check()?;
    match due {
        None => return Ok(()),
        Some(Due::First(head)) => {
            prepare_journal(core, volume.lineage)?;
            let log = ObjectId::log(volume.lineage, head.log_number);
            Log::create(&core.disk, log, head.log_len).await?;
            swap_in(core, volume, head).await?;
        }
        Some(Due::Next(next)) => {
            prepare_journal(core, volume.lineage)?;
            let tree = volume.live.borrow().tree.clone();
            let root = volume.store_tree(core, &tree, PageSync::Pool).await?;
            drop(tree);
            let next = VolumeHead {
                root,
                log_start: volume.log.borrow().position,
                frozen: volume.live.borrow().frozen,
                ..next
            };
            let recovered = !volume.head.get().clean;
            swap_in(core, volume, next).await?;
            core.count(|counters| counters.recoveries += u64::from(recovered));
        }
        Some(Due::Left) => {
            // What the client had written may be in doubt; what it told is not. New writes keep off both.
            sync_and_commit(core, volume, Home::Synced).await?;
            let mut live = volume.live.borrow_mut();
            live.epoch = Epoch(live.epoch.0 + 1);
            live.lineages.restart();
        }
    }
    volume.live.borrow_mut().due = None;
    Ok(())
}

/// Before anything is changed: a session that waits for memory tries again and again.
fn prepare_journal(core: &Core, lineage: Lineage) -> Outcome<()> {
    let prepared = core.journals.borrow_mut().prepare(lineage);
    prepared.map_err(|code| no_journal(lineage, code))
}

fn no_journal(lineage: Lineage, code: ErrorCode) -> Failure {
    let why = format!("there is no memory for the presence journal of {lineage}");
    Failure::new(code, why)
}

/// Makes `head` the volume's: what is written from now on is of its generation.
async fn swap_in(core: &Rc<Core>, volume: &Rc<Volume>, head: VolumeHead) -> Outcome<()> {
    let lineage = volume.lineage;
    volume.swap_head(core, head).await?;
    // What a failed sync could have dropped since the recovery's own is none of this volume's.
    core.lost.borrow_mut().remove(&lineage);
    let journal = core.journals.borrow_mut().open(lineage, head.generation);
    let mut journal = journal.map_err(|code| no_journal(lineage, code))?;
    journal.mark(head.log_start);
    {
        let mut log = volume.log.borrow_mut();
        log.start = head.log_start;
        log.position = head.log_start;
        log.generation = head.generation;
        let mut live = volume.live.borrow_mut();
        (live.epoch, live.frozen, live.sealed) = (head.epoch, head.frozen, head.frozen);
        live.journal = Some(journal);
        // The pages have all of it.
        live.pending.clear();
        (live.next_sequence, live.carried_until) = (1, 0);
        live.tree.release_stored();
    }
    core.damages.borrow_mut().remove(&lineage);
    Ok(())
}
