//! The mapper's end of the volume peer's channel, with a look at what goes through.
//!
//! Invariants
//! - What passes is not changed. A request of the simulation's own is the mapper's only: its reply goes to nobody.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use archipelago_protocol::ids::Lineage;
use archipelago_protocol::map::{MapOp, MapReply, MapRequest};
use xseg::local::LocalServer;
use xseg::{Completion, RegionTable, ServerPort, Submission};

/// In the tags of the simulation's own requests; a ring's tags are below.
const OWN: u64 = 1 << 63;

/// What the mapper answered.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) request: MapRequest,
    pub(crate) reply: MapReply,
    /// Whose session it was.
    pub(crate) lineage: Option<Lineage>,
}

/// What was seen, since the mapper started.
#[derive(Debug, Default)]
struct Seen {
    /// Requests without a reply, by tag.
    asked: BTreeMap<u64, MapRequest>,
    answered: Vec<Answered>,
    /// Lineages by the mapper's handle.
    sessions: BTreeMap<u32, Lineage>,
    /// Volumes that were asked to close.
    closing: BTreeSet<Lineage>,
    /// Tokens of snapshots whose epoch has begun.
    begun: BTreeSet<u64>,
    /// The simulation's own requests.
    own: VecDeque<Submission>,
    next_own: u64,
}

/// What is known of a mapper's sessions. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    seen: Rc<RefCell<Seen>>,
}

/// The end of the channel.
#[derive(Debug)]
pub(crate) struct Witness {
    port: LocalServer,
    sessions: Sessions,
}

impl Sessions {
    /// The replies since this was asked before.
    pub(crate) fn take_answered(&self) -> Vec<Answered> {
        std::mem::take(&mut self.seen.borrow_mut().answered)
    }

    /// Whether the volume's end may be clean already.
    pub(crate) fn is_closing(&self, lineage: Lineage) -> bool {
        self.seen.borrow().closing.contains(&lineage)
    }

    /// Whether the epoch of the snapshot `token` has begun.
    pub(crate) fn has_begun(&self, token: u64) -> bool {
        self.seen.borrow().begun.contains(&token)
    }

    /// Has the mapper drop what is not durable, of all sessions.
    pub(crate) fn abandon(&self) {
        let seen = &mut *self.seen.borrow_mut();
        for handle in std::mem::take(&mut seen.sessions).into_keys() {
            seen.next_own += 1;
            seen.own.push_back(Submission {
                tag: OWN | seen.next_own,
                ..MapRequest::new(MapOp::Abandon, handle).encode()
            });
        }
    }

    /// The mapper died.
    pub(crate) fn forget(&self) {
        let seen = &mut *self.seen.borrow_mut();
        seen.asked.clear();
        seen.sessions.clear();
        seen.closing.clear();
        seen.own.clear();
    }

    fn note_request(&self, entry: &Submission) {
        let seen = &mut *self.seen.borrow_mut();
        let request = MapRequest::decode(entry).expect("the volume peer speaks the protocol");
        if let (MapOp::Close, Some(lineage)) = (request.op, seen.sessions.get(&request.handle)) {
            seen.closing.insert(*lineage);
        }
        seen.asked.insert(entry.tag, request);
    }

    fn note_reply(&self, completion: &Completion) {
        let seen = &mut *self.seen.borrow_mut();
        let Some(request) = seen.asked.remove(&completion.tag) else {
            return;
        };
        let reply = MapReply::decode(completion);
        let mut lineage = seen.sessions.get(&request.handle).copied();
        if let (MapOp::Close | MapOp::Abandon, Some(lineage)) = (request.op, lineage) {
            seen.closing.remove(&lineage);
        }
        match (request.op, reply.result) {
            (MapOp::Open, Ok(handle)) => {
                let [high, low] = request.operand;
                let opened = Lineage::from_words(high, low);
                lineage = Some(opened);
                seen.sessions.insert(handle, opened);
            }
            (MapOp::Close | MapOp::Abandon, Ok(_)) => drop(seen.sessions.remove(&request.handle)),
            (MapOp::SnapshotBegin, Ok(_)) => drop(seen.begun.insert(request.operand[0])),
            _ => {}
        }
        seen.answered.push(Answered {
            request,
            reply,
            lineage,
        });
    }
}

impl Witness {
    pub(crate) fn new(port: LocalServer, sessions: &Sessions) -> Self {
        Witness {
            port,
            sessions: sessions.clone(),
        }
    }
}

impl ServerPort for Witness {
    fn accept(&mut self) -> Option<Submission> {
        let own = self.sessions.seen.borrow_mut().own.pop_front();
        if own.is_some() {
            return own;
        }
        let entry = self.port.accept()?;
        self.sessions.note_request(&entry);
        Some(entry)
    }

    fn complete(&mut self, completion: Completion) {
        if completion.tag & OWN == 0 {
            self.sessions.note_reply(&completion);
            self.port.complete(completion);
        }
    }

    fn publish(&mut self) {
        self.port.publish();
    }

    fn regions(&self) -> &RegionTable {
        self.port.regions()
    }

    fn break_channel(&mut self, why: &str) {
        self.port.break_channel(why);
    }

    fn is_closed(&self) -> bool {
        self.port.is_closed()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep()
    }

    fn wake(&mut self) {
        self.port.wake();
    }
}
