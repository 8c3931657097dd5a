//! Sessions: who may ask what, and the answers.

use std::rc::Rc;

use archipelago_protocol::carry::Carried;
use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::map::{
    FLAG_DROP, FLAG_FLUSH_SOON, FLAG_WRITE, LOCATE_LEN_MAX, MapOp, MapReply, MapRequest,
};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};

use super::apply::NotYet;
use super::begin::{Due, begin_first, begin_if_room};
use super::closed::{close_clean, item, leave_in_log, settle};
use super::commit::{Home, Select, commit, flush_commit, make_records_room};
use super::locate::locate;
use super::open::{load_writer, read_only};
use super::{Volume, checkpoint, snapshot, with_pages};
use crate::catalogue::Item;
use crate::core::{Core, Session};
use crate::effect::ClientId;
use crate::failure::{Failure, Outcome};
use crate::tree::Missing;

/// Answers a request, now or later.
pub(crate) fn dispatch(
    core: &Rc<Core>,
    client: ClientId,
    tag: u64,
    request: MapRequest,
    carried: Carried,
) {
    if request.op == MapOp::Open {
        let core = Rc::clone(core);
        core.scheduler.clone().spawn(async move {
            let lineage = Lineage::from_words(request.operand[0], request.operand[1]);
            let opened = open(&core, client, lineage, request.flags).await;
            let reply = opened.unwrap_or_else(|failure| {
                core.note(lineage, &failure);
                if failure.code.passes() {
                    // Whoever asks goes on asking, and says so once.
                    tracing::debug!("open of {lineage} failed: {}", failure.message);
                } else {
                    tracing::warn!("open of {lineage} failed: {}", failure.message);
                }
                MapReply::failed(failure.code)
            });
            core.reply(client, tag, reply);
        });
        return;
    }
    match admit(core, client, &request) {
        Ok(session) if session.volume.waits_for_begin(&request) => {
            begin_first(core, &session, tag, request, carried);
        }
        Ok(session) => serve(core, &session, tag, request, carried),
        Err(code) => core.reply(client, tag, MapReply::failed(code)),
    }
}

/// The session of a request, if it may ask that.
fn admit(core: &Core, client: ClientId, request: &MapRequest) -> Result<Session, ErrorCode> {
    let session = core.sessions.borrow().get(&request.handle).cloned();
    let session = session
        .filter(|session| session.client == client)
        .ok_or(ErrorCode::NotFound)?;
    let poison = session.volume.live.borrow().poison;
    if let Some(code) = poison
        && !matches!(request.op, MapOp::Close | MapOp::Abandon)
    {
        return Err(code);
    }
    let reads = match request.op {
        MapOp::Locate => request.flags & FLAG_WRITE == 0,
        op => matches!(op, MapOp::Close | MapOp::Lineage),
    };
    if session.write || reads {
        Ok(session)
    } else {
        Err(ErrorCode::ReadOnly)
    }
}

fn serve(core: &Rc<Core>, session: &Session, tag: u64, request: MapRequest, carried: Carried) {
    let (client, volume) = (session.client, &session.volume);
    let reply = match request.op {
        MapOp::Locate => {
            core.count(|counters| counters.locates += 1);
            match locate(core, volume, &request) {
                Ok(reply) => reply,
                Err(_missing) => return locate_later(core, session, tag, request),
            }
        }
        MapOp::Lineage => lineage(volume, request.operand[0]),
        MapOp::Written | MapOp::Zero => return change(core, session, tag, request),
        MapOp::FlushBegin => {
            let live = volume.live.borrow();
            let something = !live.pending.is_empty() || volume.carries(&volume.log.borrow());
            let mut reply = MapReply::done(u32::from(something));
            reply.values[0] = live.next_sequence - 1;
            reply
        }
        MapOp::SnapshotBegin => snapshot::begin(core, volume, request.operand[0]),
        MapOp::SnapshotAbort => snapshot::abort(core, volume, request.operand[0]),
        MapOp::FlushCommit | MapOp::SnapshotCommit | MapOp::Close | MapOp::Abandon => {
            return later(core, session, tag, request, carried);
        }
        MapOp::Open => MapReply::failed(ErrorCode::Internal),
    };
    core.reply(client, tag, reply);
}

/// What takes more than memory.
fn later(core: &Rc<Core>, session: &Session, tag: u64, request: MapRequest, carried: Carried) {
    let (core, session) = (Rc::clone(core), session.clone());
    core.scheduler.clone().spawn(async move {
        let volume = &session.volume;
        let operand = request.operand[0];
        let done = match request.op {
            MapOp::FlushCommit => flush_commit(&core, volume, &request, carried).await,
            MapOp::SnapshotCommit => snapshot::commit_snapshot(&core, volume, operand).await,
            MapOp::Close => close(&core, &session, request.handle).await,
            _ => {
                abandon(&core, &session, request.handle).await;
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
        core.reply(session.client, tag, reply);
        checkpoint::when_due(&core, volume);
        release_held(&core, volume);
    });
}

fn locate_later(core: &Rc<Core>, session: &Session, tag: u64, request: MapRequest) {
    core.count(|counters| counters.locate_misses += 1);
    let (core, session) = (Rc::clone(core), session.clone());
    core.scheduler.clone().spawn(async move {
        let volume = &session.volume;
        let located = with_pages(&core, volume, || locate(&core, volume, &request)).await;
        let poison = volume.live.borrow().poison;
        let reply = match (located, poison) {
            (_, Some(code)) | (Err(Failure { code, .. }), None) => MapReply::failed(code),
            (Ok(reply), None) => reply,
        };
        core.reply(session.client, tag, reply);
    });
}

fn lineage(volume: &Volume, index: u64) -> MapReply {
    match volume.live.borrow().lineages.get(index) {
        Some(lineage) => MapReply {
            values: lineage.to_words(),
            ..MapReply::done(0)
        },
        None => MapReply::failed(ErrorCode::NotFound),
    }
}

/// [`MapOp::Written`] and [`MapOp::Zero`].
fn change(core: &Rc<Core>, session: &Session, tag: u64, request: MapRequest) {
    let Some(mut missing) = change_now(core, session, tag, request) else {
        return;
    };
    let (core, session) = (Rc::clone(core), session.clone());
    core.scheduler.clone().spawn(async move {
        let client = session.client;
        let mut held = Vec::new();
        loop {
            match core.load(missing, session.volume.object_size).await {
                Ok(node) => held.push(node),
                Err(failure) => {
                    core.note(session.volume.lineage, &failure);
                    return core.reply(client, tag, MapReply::failed(failure.code));
                }
            }
            // From the beginning: the session may be gone or stopped by now.
            if let Err(code) = admit(&core, client, &request) {
                return core.reply(client, tag, MapReply::failed(code));
            }
            match change_now(&core, &session, tag, request) {
                Some(next) => missing = next,
                None => return,
            }
        }
    });
}

/// Answers, or sees to it that it is answered; or tells what has to be loaded first.
fn change_now(
    core: &Rc<Core>,
    session: &Session,
    tag: u64,
    request: MapRequest,
) -> Option<Missing> {
    let (client, volume) = (session.client, &session.volume);
    if let Err(code) = judge(volume, &request) {
        core.reply(client, tag, MapReply::failed(code));
        return None;
    }
    let waits = !volume.live.borrow().held.is_empty();
    if waits {
        hold(core, volume, client, tag, request);
        return None;
    }
    match apply(core, volume, &request) {
        Ok(()) => changed(core, volume, client, tag),
        Err(NotYet::Full) => hold(core, volume, client, tag, request),
        Err(NotYet::Missing(missing)) => return Some(missing),
    }
    None
}

fn judge(volume: &Volume, request: &MapRequest) -> Result<(), ErrorCode> {
    let live = volume.live.borrow();
    live.range(request.offset, request.len)?;
    if request.op == MapOp::Written {
        let epoch = Epoch(request.operand[0]);
        // What belongs to a snapshot that exists never changes.
        if request.len > LOCATE_LEN_MAX || epoch > live.epoch || epoch <= live.sealed {
            return Err(ErrorCode::Invalid);
        }
    }
    Ok(())
}

fn apply(core: &Core, volume: &Volume, request: &MapRequest) -> Result<(), NotYet> {
    let range = volume.live.borrow().range(request.offset, request.len);
    let Ok(range) = range else {
        return Ok(());
    };
    let epoch = (request.op == MapOp::Written).then_some(Epoch(request.operand[0]));
    volume.apply(core, range, epoch)
}

fn changed(core: &Core, volume: &Volume, client: ClientId, tag: u64) {
    let soon = volume.live.borrow().pending.len() * 2 >= core.config.pending_max;
    let flags = if soon { FLAG_FLUSH_SOON } else { 0 };
    core.reply(
        client,
        tag,
        MapReply {
            flags,
            ..MapReply::done(0)
        },
    );
}

/// Answers later, when something was logged; and sees to it that something is.
fn hold(core: &Rc<Core>, volume: &Rc<Volume>, client: ClientId, tag: u64, request: MapRequest) {
    core.count(|counters| counters.held_back += 1);
    let mut live = volume.live.borrow_mut();
    live.held.push_back((client, tag, request));
    if live.relieving {
        return;
    }
    live.relieving = true;
    let (core, volume) = (Rc::clone(core), Rc::clone(volume));
    core.scheduler.clone().spawn(async move {
        // Flushes of the client go on beside: what they carry may be written after this sync.
        let mut relieved = sync_and_commit(&core, &volume, Home::Unknown).await;
        if relieved.is_ok() {
            relieved = make_records_room(&core, &volume).await;
        }
        volume.live.borrow_mut().relieving = false;
        if let Err(failure) = relieved {
            let held = std::mem::take(&mut volume.live.borrow_mut().held);
            for (client, tag, _) in held {
                core.reply(client, tag, MapReply::failed(failure.code));
            }
        }
        release_held(&core, &volume);
        checkpoint::when_due(&core, &volume);
    });
}

/// Logs all that is pending, after a sync of the pool.
pub(super) async fn sync_and_commit(
    core: &Rc<Core>,
    volume: &Rc<Volume>,
    home: Home,
) -> Outcome<()> {
    let cut = volume.live.borrow().next_sequence - 1;
    let synced = core.sync_pool().await;
    volume.judge(core, synced)?;
    commit(core, volume, Select::UpTo(cut), &Carried::default(), home).await
}

fn release_held(core: &Rc<Core>, volume: &Rc<Volume>) {
    let held = std::mem::take(&mut volume.live.borrow_mut().held);
    for (client, tag, request) in held {
        // Only reports of writes and zeroes are held.
        dispatch(core, client, tag, request, Carried::default());
    }
}

async fn open(core: &Rc<Core>, client: ClientId, lineage: Lineage, flags: u8) -> Outcome<MapReply> {
    let write = flags & FLAG_WRITE != 0;
    core.catalogue.ready(core).await?;
    let _alone = core.lock(lineage).await;
    let item = item(core, lineage)?;
    let frozen = matches!(item.kind, Kind::Snapshot | Kind::Image);
    if frozen && write {
        return Err(Failure::new(
            ErrorCode::ReadOnly,
            format!("{lineage} is frozen: clone it to write"),
        ));
    }
    if let Some(volume) = core.volume(lineage).filter(|_| core.is_open(lineage)) {
        let (written, read) = (
            volume.live.borrow().writer.is_some(),
            volume.live.borrow().readers > 0,
        );
        if written || write && read {
            return Err(Failure::new(ErrorCode::InUse, format!("{lineage} is open")));
        }
        return Ok(add(core, client, volume, write));
    }
    if write && flags & FLAG_DROP != 0 {
        core.forget(lineage);
    }
    let volume = match (frozen, write) {
        (true, _) => read_only(core, &item, item.root),
        (false, true) => writable(core, &item).await?,
        (false, false) => readable(core, &item).await?,
    };
    core.volumes
        .borrow_mut()
        .insert(lineage, Rc::clone(&volume));
    // It may have been grown while it was opened.
    if let Some(now) = core.catalogue.names.borrow().get(lineage) {
        volume.live.borrow_mut().size = now.size;
    }
    Ok(add(core, client, volume, write))
}

/// A volume for reading, as it is. Without room for what its last session has to write still, it is read from memory.
async fn readable(core: &Rc<Core>, item: &Item) -> Outcome<Rc<Volume>> {
    match settle(core, item).await {
        Ok(found) => {
            let root = found.map_or(item.root, |head| head.get().root);
            Ok(read_only(core, item, root))
        }
        Err(failure) if failure.code.passes() => {
            tracing::debug!("{} is read as it is: {}", item.lineage, failure.message);
            if let Some(left) = core.volume(item.lineage) {
                return Ok(left);
            }
            let volume = load_writer(core, item).await?;
            volume.live.borrow_mut().read_only = true;
            Ok(volume)
        }
        Err(failure) => Err(failure),
    }
}

/// A volume for writing, as soon as there is room for what its session writes first: the one that a vanished client left
/// in memory, or from the pool.
async fn writable(core: &Rc<Core>, item: &Item) -> Outcome<Rc<Volume>> {
    let left = core.volume(item.lineage);
    if let Some(volume) = left {
        if volume.check().is_ok() {
            volume.live.borrow_mut().due.get_or_insert(Due::Left);
            let begun = begin_if_room(core, &volume).await;
            if volume.check().is_err() {
                // A failed sync is final: the next open has what is durable and nothing else.
                core.forget(item.lineage);
            }
            begun?;
            return Ok(volume);
        }
        core.forget(item.lineage);
    }
    let volume = load_writer(core, item).await?;
    begin_if_room(core, &volume).await?;
    Ok(volume)
}

fn add(core: &Core, client: ClientId, volume: Rc<Volume>, write: bool) -> MapReply {
    let handle = core.add_session(Session {
        client,
        volume: Rc::clone(&volume),
        write,
    });
    let mut live = volume.live.borrow_mut();
    if write {
        live.writer = Some(handle);
    } else {
        live.readers += 1;
    }
    let size = live.size;
    drop(live);
    if core.gone.borrow().contains(&client) {
        // It died while it waited for this.
        let session = Session {
            client,
            volume: Rc::clone(&volume),
            write,
        };
        end(core, &session, handle);
    }
    MapReply {
        result: Ok(handle),
        flags: 0,
        values: [size, u64::from(volume.object_size.log2())],
    }
}

/// Ends a session in memory.
fn end(core: &Core, session: &Session, handle: u32) {
    core.sessions.borrow_mut().remove(&handle);
    let mut live = session.volume.live.borrow_mut();
    if session.write {
        live.writer = None;
        live.held.clear();
        if let Some(snapshot) = live.snapshot.take() {
            // One that is being committed goes on; it fails if its name is not reserved any more.
            drop(live);
            core.end_prepared(snapshot.token);
        }
        return;
    }
    live.readers -= 1;
    // What a client that went had left stays.
    let last = live.readers == 0 && live.read_only;
    drop(live);
    if last {
        core.volumes.borrow_mut().remove(&session.volume.lineage);
    }
}

async fn close(core: &Rc<Core>, session: &Session, handle: u32) -> Outcome<()> {
    let volume = &session.volume;
    let _alone = core.lock(volume.lineage).await;
    if core.sessions.borrow().get(&handle).is_none() {
        return Err(Failure::new(ErrorCode::NotFound, "the session has ended"));
    }
    if !session.write {
        end(core, session, handle);
        return Ok(());
    }
    let mut closed = close_clean(core, volume).await;
    if closed.as_ref().is_err_and(|failure| failure.code.passes()) {
        closed = leave_in_log(core, volume).await;
    }
    // Also after a failure: what is not durable can be recovered by the next open, from memory or the journal.
    end(core, session, handle);
    if volume.live.borrow().poison.is_some() {
        core.forget(volume.lineage);
    }
    closed
}

/// Drops what is not durable: the next open recovers.
async fn abandon(core: &Rc<Core>, session: &Session, handle: u32) {
    let volume = &session.volume;
    let _alone = core.lock(volume.lineage).await;
    volume
        .live
        .borrow_mut()
        .poison
        .get_or_insert(ErrorCode::SyncFailed);
    // What is in flight ends first, so that the next open reads a log that nobody writes.
    let _commit = volume.commit.acquire().await;
    let _checkpoint = volume.checkpoint.acquire().await;
    if core.sessions.borrow().get(&handle).is_some() {
        end(core, session, handle);
        core.forget(volume.lineage);
    }
}

/// The client's process died: what it told stays, its sessions end.
pub(crate) fn client_gone(core: &Rc<Core>, client: ClientId) {
    core.gone.borrow_mut().insert(client);
    let gone: Vec<(u32, Session)> = {
        let sessions = core.sessions.borrow();
        let of_client = sessions
            .iter()
            .filter(|(_, session)| session.client == client);
        of_client
            .map(|(handle, session)| (*handle, session.clone()))
            .collect()
    };
    for (handle, session) in gone {
        end(core, &session, handle);
    }
}
