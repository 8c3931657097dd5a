//! Calls made of requests and replies.
//!
//! Invariants
//! - A ticket is used once. A reply to an unknown ticket, or a second one, is a panic.

use std::collections::BTreeMap;

use archipelago_blocker::Backend;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Epoch, Generation, Lineage};
use archipelago_protocol::object::{IO_LEN_MAX, ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use xseg::{Region, Span};

/// Polls without a reply after which a backend counts as hanging. A pump that waits makes few, one that does not makes
/// many.
const POLLS_MAX: u64 = 50_000_000;

/// What a call came to: the count, or the code.
pub type Outcome = Result<u32, ErrorCode>;

/// A backend, driven synchronously or with several requests in flight.
pub struct Driver<'a> {
    backend: Box<dyn Backend>,
    pump: &'a mut dyn FnMut(),
    name: String,
    region: Region,
    next_ticket: u64,
    waiting: BTreeMap<u64, Option<ObjectReply>>,
}

impl std::fmt::Debug for Driver<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("name", &self.name)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl<'a> Driver<'a> {
    /// Drives `backend`; panics say `name`.
    ///
    /// # Panics
    /// If there is no memory for a buffer of the largest request.
    pub fn new(backend: Box<dyn Backend>, pump: &'a mut dyn FnMut(), name: &str) -> Self {
        let region = Region::anonymous(2 * IO_LEN_MAX as usize).expect("memory for a test buffer");
        Driver {
            backend,
            pump,
            name: name.to_owned(),
            region,
            next_ticket: 1,
            waiting: BTreeMap::new(),
        }
    }

    /// The buffer: two of the largest requests long.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// Starts `request` with memory at `spans` of the buffer, (offset, length) each; the ticket to wait for.
    ///
    /// # Panics
    /// If a span is outside of the buffer.
    pub fn start(&mut self, request: &ObjectRequest, spans: &[(u64, u64)]) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let spans: Vec<Span> = spans
            .iter()
            .map(|(offset, len)| self.region.span(*offset, *len).expect("inside the buffer"))
            .collect();
        self.waiting.insert(ticket, None);
        self.backend.start(ticket, request, &spans);
        ticket
    }

    /// The reply to `ticket`, taking others as they come.
    ///
    /// # Panics
    /// If the backend replies to an unknown ticket, twice, or not at all.
    pub fn wait(&mut self, ticket: u64) -> ObjectReply {
        for _ in 0..POLLS_MAX {
            while let Some((ticket, reply)) = self.backend.poll() {
                let slot = self.waiting.get_mut(&ticket);
                let slot = slot
                    .unwrap_or_else(|| panic!("{}: a reply to unknown ticket {ticket}", self.name));
                assert!(
                    slot.is_none(),
                    "{}: a second reply to ticket {ticket}",
                    self.name
                );
                *slot = Some(reply);
            }
            if self
                .waiting
                .get(&ticket)
                .expect("a ticket is waited for once")
                .is_some()
            {
                return self
                    .waiting
                    .remove(&ticket)
                    .flatten()
                    .expect("looked at above");
            }
            (self.pump)();
        }
        panic!("{}: no reply to ticket {ticket}", self.name)
    }

    /// Starts and waits.
    pub fn call(&mut self, request: &ObjectRequest, spans: &[(u64, u64)]) -> ObjectReply {
        let ticket = self.start(request, spans);
        self.wait(ticket)
    }

    /// Writes `bytes` at `offset` of `id`.
    ///
    /// # Errors
    /// What the backend says.
    pub fn write(&mut self, id: ObjectId, offset: u64, bytes: &[u8]) -> Outcome {
        self.write_with(id, offset, bytes, 0)
    }

    /// Writes with `flags`.
    ///
    /// # Errors
    /// What the backend says.
    ///
    /// # Panics
    /// If `bytes` are too many for one request, or a success says another count.
    pub fn write_with(&mut self, id: ObjectId, offset: u64, bytes: &[u8], flags: u8) -> Outcome {
        self.region.write(0, bytes).expect("inside the buffer");
        let len = u32::try_from(bytes.len()).expect("a test's bytes");
        let request = ObjectRequest {
            offset,
            len,
            flags,
            ..ObjectRequest::new(ObjectOp::Write, id)
        };
        let result = self.call(&request, &[(0, u64::from(len))]).result;
        assert!(
            result.is_err() || result == Ok(len),
            "{}: a short write: {result:?} of {len}",
            self.name
        );
        result
    }

    /// Reads `len` bytes at `offset` of `id`.
    ///
    /// # Errors
    /// What the backend says.
    ///
    /// # Panics
    /// If a success says another count.
    pub fn read(&mut self, id: ObjectId, offset: u64, len: usize) -> Result<Vec<u8>, ErrorCode> {
        let count = u32::try_from(len).expect("a test's length");
        self.region
            .fill(0, len as u64, 0xee)
            .expect("inside the buffer");
        let request = ObjectRequest {
            offset,
            len: count,
            ..ObjectRequest::new(ObjectOp::Read, id)
        };
        let read = self.call(&request, &[(0, len as u64)]).result?;
        assert_eq!(read, count, "{}: a short read", self.name);
        let mut bytes = vec![0; len];
        self.region.read(0, &mut bytes).expect("inside the buffer");
        Ok(bytes)
    }

    /// An operation without memory.
    pub fn simple(&mut self, op: ObjectOp, id: ObjectId) -> ObjectReply {
        self.call(&ObjectRequest::new(op, id), &[])
    }

    /// Appends a batch of the session `token` to the log `id`.
    ///
    /// # Panics
    /// If `bytes` are too many for the buffer.
    pub fn append(&mut self, id: ObjectId, position: u64, bytes: &[u8], token: u64) -> ObjectReply {
        self.region.write(0, bytes).expect("inside the buffer");
        let len = u32::try_from(bytes.len()).expect("a test's bytes");
        let request = ObjectRequest {
            offset: position,
            len,
            token: Generation(token),
            ..ObjectRequest::new(ObjectOp::Append, id)
        };
        self.call(&request, &[(0, u64::from(len))])
    }

    /// Raises the token of the log `id`.
    pub fn seal(&mut self, id: ObjectId, token: u64) -> ObjectReply {
        let request = ObjectRequest {
            token: Generation(token),
            ..ObjectRequest::new(ObjectOp::Seal, id)
        };
        self.call(&request, &[])
    }

    /// Swaps the content of `id` if its version is `expected`.
    ///
    /// # Panics
    /// If `content` is too long for the buffer.
    pub fn swap(&mut self, id: ObjectId, expected: u64, content: &[u8]) -> ObjectReply {
        self.region.write(0, content).expect("inside the buffer");
        let len = u32::try_from(content.len()).expect("a test's bytes");
        let request = ObjectRequest {
            offset: expected,
            len,
            ..ObjectRequest::new(ObjectOp::CompareAndSwap, id)
        };
        self.call(&request, &[(0, u64::from(len))])
    }

    /// Version and content of a small object.
    ///
    /// # Errors
    /// What the backend says.
    ///
    /// # Panics
    /// If the reply has more than there was room for.
    pub fn read_swapped(&mut self, id: ObjectId) -> Result<(u64, Vec<u8>), ErrorCode> {
        const ROOM: u32 = 4096;
        let request = ObjectRequest {
            len: ROOM,
            ..ObjectRequest::new(ObjectOp::ReadSwapped, id)
        };
        let reply = self.call(&request, &[(0, u64::from(ROOM))]);
        let len = reply.result?;
        assert!(len <= ROOM, "{}: {len} bytes in room for {ROOM}", self.name);
        let mut bytes = vec![0; len as usize];
        self.region.read(0, &mut bytes).expect("inside the buffer");
        Ok((reply.values[0], bytes))
    }

    /// All ids above `id`, in pages of `room` ids.
    ///
    /// # Panics
    /// If the backend fails, or lists what is no id.
    pub fn list(&mut self, mut id: ObjectId, room: u32) -> Vec<ObjectId> {
        const ID: usize = archipelago_protocol::object::OBJECT_ID_LEN;
        let mut all = Vec::new();
        loop {
            let len = room * u32::try_from(ID).expect("small");
            let request = ObjectRequest {
                len,
                ..ObjectRequest::new(ObjectOp::List, id)
            };
            let filled = self
                .call(&request, &[(0, u64::from(len))])
                .result
                .expect("a listing");
            assert!(
                filled <= len && (filled as usize).is_multiple_of(ID),
                "{}: {filled} of {len} filled",
                self.name
            );
            if filled == 0 {
                return all;
            }
            let mut bytes = vec![0; filled as usize];
            self.region.read(0, &mut bytes).expect("inside the buffer");
            for entry in bytes.chunks_exact(ID) {
                let entry = entry.try_into().expect("chunks of this size");
                id = ObjectId::from_bytes(&entry).expect("a listing holds ids");
                all.push(id);
            }
        }
    }

    /// Ends the run: every ticket has been answered.
    ///
    /// # Panics
    /// If there are replies that nobody waited for, or none to what was started.
    pub fn finish(mut self) {
        assert!(
            self.backend.poll().is_none(),
            "{}: a reply that nobody asked for",
            self.name
        );
        assert!(
            self.waiting.is_empty(),
            "{}: {} tickets left",
            self.name,
            self.waiting.len()
        );
    }
}

/// A data space for tests.
pub(super) fn data(lineage: u128, epoch: u64) -> ObjectId {
    ObjectId::data(Lineage(lineage), Epoch(epoch))
}

/// Bytes that say their place and their `seed`.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let word = |index: u64| {
        (seed.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15)
            ^ index.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    (0..len.div_ceil(8) as u64)
        .flat_map(|index| word(index).to_le_bytes())
        .take(len)
        .collect()
}
