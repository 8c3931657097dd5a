//! A port whose other end is the test: it sees every submission and completes them when and how it likes.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use archipelago_protocol::handle::{HandleAccess, HandleRequest, OpenObject};
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use xseg::{ClientPort, Completion, PortError, Region, RegionId, RegionTable, Submission};

/// The state of a channel, as both ends see it.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) credits: usize,
    pub(crate) in_flight: usize,
    /// Submitted and not yet answered.
    pub(crate) queue: VecDeque<(u64, Submission)>,
    pub(crate) completions: VecDeque<(u64, Completion)>,
    pub(crate) incarnation: u64,
    pub(crate) connected: bool,
    pub(crate) regions: RegionTable,
    /// What is open, if this is a blocker's.
    pub(crate) handles: BTreeMap<u32, OpenObject>,
}

impl Wire {
    /// The request in an entry that waits for the blocker.
    pub(crate) fn object_request(&self, entry: &Submission) -> ObjectRequest {
        let resolve = |handle, op| {
            let object = &self.handles[&handle];
            assert!(object.access >= HandleAccess::of(op));
            Ok(object)
        };
        ObjectRequest::decode(entry, resolve).unwrap()
    }

    /// A blocker answers opens and closes at once.
    fn change_handles(&mut self, cookie: u64, request: HandleRequest) {
        match request {
            HandleRequest::Open { handle, object, .. } => {
                let before = self.handles.insert(handle, object);
                assert_eq!(before, None, "closed before its number is used again");
            }
            HandleRequest::Close { handle } => drop(self.handles.remove(&handle)),
        }
        let done = ObjectReply::done(0).encode(0);
        self.completions.push_back((cookie, done));
    }

    /// Answers the request at `index`.
    pub(crate) fn answer(&mut self, index: usize, completion: Completion) {
        let (cookie, _) = self.queue.remove(index).unwrap();
        self.completions.push_back((cookie, completion));
    }

    /// The server dies: what it had not answered is never answered.
    pub(crate) fn die(&mut self) {
        self.in_flight -= self.queue.len();
        self.queue.clear();
        self.connected = false;
        self.incarnation += 1;
    }
}

#[derive(Debug, Clone)]
pub(crate) struct TestPort {
    pub(crate) wire: Rc<RefCell<Wire>>,
    arena: Region,
}

impl TestPort {
    pub(crate) fn new(credits: usize, arena_len: usize) -> Self {
        let arena = Region::anonymous(arena_len).unwrap();
        let mut regions = RegionTable::default();
        regions.insert(RegionId::ARENA, arena.clone());
        let wire = Wire {
            credits,
            in_flight: 0,
            queue: VecDeque::new(),
            completions: VecDeque::new(),
            incarnation: 1,
            connected: true,
            regions,
            handles: BTreeMap::new(),
        };
        TestPort {
            wire: Rc::new(RefCell::new(wire)),
            arena,
        }
    }
}

impl ClientPort for TestPort {
    fn credits(&self) -> usize {
        let wire = self.wire.borrow();
        wire.credits - wire.in_flight
    }

    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError> {
        let mut wire = self.wire.borrow_mut();
        if !wire.connected {
            return Err(PortError::Broken);
        }
        if wire.in_flight >= wire.credits {
            return Err(PortError::Full);
        }
        wire.in_flight += 1;
        if let Some(request) = HandleRequest::decode(&submission) {
            wire.change_handles(cookie, request.unwrap());
            return Ok(());
        }
        wire.queue.push_back((cookie, submission));
        Ok(())
    }

    fn publish(&mut self) {}

    fn complete(&mut self) -> Option<(u64, Completion)> {
        let mut wire = self.wire.borrow_mut();
        let completion = wire.completions.pop_front()?;
        wire.in_flight -= 1;
        Some(completion)
    }

    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError> {
        self.wire.borrow_mut().regions.insert(id, region);
        Ok(())
    }

    fn region_ready(&self, id: RegionId) -> bool {
        self.wire.borrow().regions.get(id).is_some()
    }

    fn remove_region(&mut self, id: RegionId) {
        self.wire.borrow_mut().regions.remove(id);
    }

    fn arena(&self) -> &Region {
        &self.arena
    }

    fn incarnation(&self) -> u64 {
        self.wire.borrow().incarnation
    }

    fn is_connected(&self) -> bool {
        self.wire.borrow().connected
    }

    fn prepare_sleep(&mut self) -> bool {
        self.wire.borrow().completions.is_empty()
    }

    fn wake(&mut self) {}
}
