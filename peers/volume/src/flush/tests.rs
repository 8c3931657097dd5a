//! Rounds without a peer around them.

use archipelago_protocol::journaled::AREA_LEN;
use archipelago_protocol::object::ObjectOp;

use super::*;

struct Rig {
    flush: Flush,
    areas: Areas,
    arena: Region,
}

impl Rig {
    fn new() -> Self {
        Rig {
            flush: Flush::default(),
            areas: Areas::new(AREA_LEN),
            arena: Region::anonymous(usize::try_from(AREA_LEN).unwrap()).unwrap(),
        }
    }

    /// Sends what is next.
    fn send(&mut self) -> Option<FlushRequest> {
        let request = self.flush.next_request(7);
        if request.is_some() {
            self.flush.sent();
        }
        request
    }

    fn map_op(&mut self) -> Option<(MapOp, u8, u64)> {
        match self.send() {
            Some(FlushRequest::ToMap(request)) => Some((request.op, request.flags, request.len)),
            _ => None,
        }
    }

    fn answer(&mut self, something: u32) -> FlushEvent {
        let reply = MapReply::done(something);
        self.flush.map_reply(&reply, &mut self.areas, &self.arena)
    }

    /// A first write that has a copy, or a write in place.
    fn write(&mut self, first: bool) {
        let copy = first.then(|| {
            let slots = self.flush.copies().reserve(4096).unwrap();
            self.flush.copies().room(slots).fill(9);
            slots
        });
        self.flush.mark_dirty(Place::default(), 0, copy);
        if first {
            self.flush.note_report(0);
        }
    }

    fn wait(&mut self) {
        let mut requests = Slab::new(1);
        let request = Request::new(0, 0, 0, archipelago_protocol::volume::VolumeOp::Flush, 0, 0);
        let r = requests.insert(request).unwrap();
        self.flush.join(&mut requests, r);
    }
}

#[test]
fn a_round_that_writes_back_syncs_between_cut_and_commit() {
    let mut rig = Rig::new();
    rig.write(true);
    rig.write(false);
    rig.wait();
    assert!(matches!(
        rig.flush.start(false),
        Some(FlushEvent::Continues)
    ));
    assert_eq!(rig.map_op(), Some((MapOp::FlushBegin, 0, 0)));
    assert_eq!(rig.send(), None);
    assert!(matches!(rig.answer(1), FlushEvent::Continues));
    let Some(FlushRequest::ToBlocker(sync)) = rig.send() else {
        panic!("a sync comes next");
    };
    assert_eq!((sync.op, rig.send()), (ObjectOp::Sync, None));
    assert!(matches!(rig.flush.sync_reply(Ok(0)), FlushEvent::Continues));
    assert_eq!(rig.map_op(), Some((MapOp::FlushCommit, FLAG_HOME, 0)));
    assert!(matches!(
        rig.answer(0),
        FlushEvent::Ended { result: Ok(()), .. }
    ));
    assert!(rig.flush.is_clean());
}

#[test]
fn journaled_data_stays_dirty_until_a_round_writes_back() {
    let mut rig = Rig::new();
    rig.write(true);
    rig.wait();
    let _ = rig.flush.start(false);
    rig.send();
    assert!(matches!(rig.answer(1), FlushEvent::Continues));
    assert_eq!(rig.map_op(), Some((MapOp::FlushCommit, 0, 8192)));
    assert!(matches!(
        rig.answer(0),
        FlushEvent::Ended { result: Ok(()), .. }
    ));
    assert!(!rig.flush.is_clean());
    assert!(rig.areas.acquire().is_some(), "the area was released");
    let _ = rig.flush.start(true);
    assert_eq!(rig.map_op(), Some((MapOp::FlushBegin, 0, 0)));
    let _ = rig.answer(1);
    assert!(matches!(rig.send(), Some(FlushRequest::ToBlocker(_))));
    let _ = rig.flush.sync_reply(Ok(0));
    assert_eq!(rig.map_op(), Some((MapOp::FlushCommit, FLAG_HOME, 0)));
    let _ = rig.answer(0);
    assert!(rig.flush.is_clean());
}

#[test]
fn what_a_forgotten_round_did_not_sync_is_dirty_again() {
    let mut rig = Rig::new();
    rig.write(false);
    let _ = rig.flush.start(true);
    assert!(matches!(rig.send(), Some(FlushRequest::ToBlocker(_))));
    rig.flush.forget_round(&mut rig.areas, false);
    assert!(rig.flush.is_idle() && !rig.flush.is_clean());
    let _ = rig.flush.start(true);
    assert!(matches!(rig.send(), Some(FlushRequest::ToBlocker(_))));
}

#[test]
fn a_loss_fails_one_flush_and_no_round_in_which_nobody_waits() {
    let mut rig = Rig::new();
    rig.flush.abandon(&mut rig.areas, true);
    let _ = rig.flush.start(true);
    assert_eq!(rig.map_op(), Some((MapOp::FlushBegin, 0, 0)));
    let _ = rig.answer(0);
    assert!(rig.flush.has_unreported_loss());
    rig.wait();
    let failed = rig.flush.start(false);
    assert!(matches!(
        failed,
        Some(FlushEvent::Ended {
            result: Err(ErrorCode::SyncFailed),
            ..
        })
    ));
    assert!(!rig.flush.has_unreported_loss());
}
