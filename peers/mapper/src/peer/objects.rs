//! The mapper's object requests on their way through a port, each with a part of the port's arena for its data.
//!
//! Invariants
//! - Requests are sent in the order in which the mapper made them; one that finds no credit or memory holds up the rest.
//! - The memory of a request is released when the request has been answered, never before.
//! - Objects are opened as they are needed ([`ClientHandles`]), for the whole contract: a mapper may ask for all of it.
//! - Nothing is cut here: the mapper's requests are at most [`MapperConfig::io_len_max`] long.
//!
//! [`MapperConfig::io_len_max`]: crate::MapperConfig::io_len_max

use std::collections::VecDeque;

use archipelago_protocol::client_handles::{ClientHandles, Effect, HandleUse};
use archipelago_protocol::handle::{HandleAccess, OpenObject};
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use xseg::{ClientPort, PortError};

use super::arena::{Arena, Extent};
use crate::effect::EffectId;

/// Completions taken in one turn.
const REPLIES_PER_TURN: usize = 256;

/// A request that waits for a credit or memory.
#[derive(Debug)]
struct Queued {
    id: EffectId,
    request: ObjectRequest,
    /// What to write.
    data: Vec<u8>,
}

/// A request that was sent.
#[derive(Debug)]
struct Sent {
    id: EffectId,
    op: ObjectOp,
    len: u32,
    /// `None`: it is about the pool.
    used: Option<HandleUse>,
    extent: Option<Extent>,
}

/// An answered request.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) id: EffectId,
    pub(super) reply: ObjectReply,
    /// What was read.
    pub(super) data: Vec<u8>,
}

/// Object requests of one mapper through one port.
#[derive(Debug)]
pub(super) struct ObjectRequests<C> {
    port: C,
    arena: Arena,
    handles: ClientHandles,
    queue: VecDeque<Queued>,
    /// By cookie.
    sent: Vec<Option<Sent>>,
    /// Cookies that are not in use.
    free: Vec<usize>,
    replies_taken: usize,
}

fn reads(op: ObjectOp) -> bool {
    matches!(op, ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List)
}

fn writes(op: ObjectOp) -> bool {
    matches!(
        op,
        ObjectOp::Write | ObjectOp::Append | ObjectOp::CompareAndSwap
    )
}

impl<C: ClientPort> ObjectRequests<C> {
    pub(super) fn new(port: C) -> Self {
        ObjectRequests {
            arena: Arena::new(port.arena().len()),
            port,
            handles: ClientHandles::default(),
            queue: VecDeque::new(),
            sent: Vec::new(),
            free: Vec::new(),
            replies_taken: 0,
        }
    }

    pub(super) fn port(&self) -> &C {
        &self.port
    }

    pub(super) fn port_mut(&mut self) -> &mut C {
        &mut self.port
    }

    /// Whether every request is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.free.len() == self.sent.len()
    }

    /// Takes a request of the mapper's; `data` is what to write.
    ///
    /// # Panics
    /// If the request never fits the arena.
    pub(super) fn push(&mut self, id: EffectId, request: ObjectRequest, data: Vec<u8>) {
        let moves = reads(request.op) || writes(request.op);
        assert!(
            !moves || u64::from(request.len) <= self.arena.len(),
            "a request of {} bytes never fits an arena of {}",
            request.len,
            self.arena.len()
        );
        self.queue.push_back(Queued { id, request, data });
    }

    /// Sends what can be sent. Whether anything was.
    pub(super) fn send(&mut self) -> bool {
        let opens = self.handles.opens();
        let mut any = false;
        while let Some(queued) = self.queue.pop_front() {
            if !self.send_one(&queued) {
                self.queue.push_front(queued);
                break;
            }
            any = true;
        }
        any |= self.handles.opens() != opens;
        if any {
            self.port.publish();
        }
        any
    }

    /// `false`: there is no credit or no memory now.
    fn send_one(&mut self, queued: &Queued) -> bool {
        let Queued { id, request, data } = queued;
        let mut request = *request;
        let handle = if request.op.is_about_pool() {
            None
        } else {
            let object = OpenObject::of(&request, HandleAccess::Metadata);
            let Some(handle) = self.handles.find(&mut self.port, &object) else {
                return false;
            };
            Some(handle)
        };
        if self.port.credits() == 0 {
            return false;
        }
        let extent = if (reads(request.op) || writes(request.op)) && request.len > 0 {
            let Some(extent) = self.arena.allocate(request.len) else {
                return false;
            };
            request.memory.offset = extent.start();
            Some(extent)
        } else {
            None
        };
        if let (Some(extent), true) = (extent, writes(request.op)) {
            self.port
                .arena()
                .write(extent.start(), data)
                .expect("an extent lies in the arena");
        }
        let cookie = self.free.pop().unwrap_or_else(|| {
            self.sent.push(None);
            self.sent.len() - 1
        });
        let number = handle.unwrap_or_default();
        match self.port.submit(cookie as u64, request.encode(number)) {
            Ok(()) => {
                let effect = Effect::of(request.op, request.flags);
                let used = handle.map(|handle| HandleUse::new(handle, effect));
                if let Some(used) = used {
                    self.handles.sent(used);
                } else if request.op == ObjectOp::SyncPool {
                    self.handles.pool_sync_sent();
                } else if request.op == ObjectOp::DeleteLineage {
                    self.handles.forget(&mut self.port, request.id.lineage);
                }
                self.sent[cookie] = Some(Sent {
                    id: *id,
                    op: request.op,
                    len: request.len,
                    used,
                    extent,
                });
                true
            }
            Err(PortError::Full | PortError::Broken | _) => {
                self.free.push(cookie);
                if let Some(extent) = extent {
                    self.arena.release(extent);
                }
                false
            }
        }
    }

    /// The next answered request; `None`: no more in this turn.
    pub(super) fn next(&mut self) -> Option<Answered> {
        let (cookie, mut reply) = loop {
            let next = if self.replies_taken < REPLIES_PER_TURN {
                self.port.complete()
            } else {
                None
            };
            let Some((cookie, completion)) = next else {
                self.replies_taken = 0;
                return None;
            };
            self.replies_taken += 1;
            let reply = ObjectReply::decode(&completion);
            if !self.handles.take(&mut self.port, cookie, &reply) {
                break (cookie, reply);
            }
        };
        let cookie = usize::try_from(cookie).expect("cookies are indices");
        let sent = self.sent[cookie]
            .take()
            .expect("a port answers each request once");
        self.free.push(cookie);
        if let Some(used) = sent.used {
            self.handles.answered(&mut self.port, used, &mut reply);
        } else if sent.op == ObjectOp::SyncPool {
            self.handles.pool_sync_answered(reply.result.is_ok());
        }
        let mut data = Vec::new();
        if let Some(extent) = sent.extent {
            if let (true, Ok(filled)) = (reads(sent.op), reply.result) {
                data.resize(filled.min(sent.len) as usize, 0);
                self.port
                    .arena()
                    .read(extent.start(), &mut data)
                    .expect("an extent lies in the arena");
            }
            self.arena.release(extent);
        }
        Some(Answered {
            id: sent.id,
            reply,
            data,
        })
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Lineage;
    use archipelago_protocol::handle::HandleRequest;
    use archipelago_protocol::object::ObjectId;
    use xseg::local::{LocalClient, LocalServer, channel};
    use xseg::{RegionId, ServerPort};

    use super::*;

    const LEN: u32 = 256 << 10;

    fn request(op: ObjectOp) -> ObjectRequest {
        ObjectRequest {
            len: LEN,
            ..ObjectRequest::new(op, ObjectId::pack(Lineage(1), 1))
        }
    }

    /// Requests through a port with memory for two of them.
    fn objects() -> (ObjectRequests<LocalClient>, LocalServer) {
        let (client, server) = channel(16, 2 * LEN as usize).unwrap();
        (ObjectRequests::new(client), server)
    }

    /// Serves the next request: a write's bytes are what `content` becomes, a read gets them.
    fn serve(server: &mut LocalServer, content: &mut Vec<u8>) -> bool {
        let Some(mut entry) = server.accept() else {
            return false;
        };
        if HandleRequest::decode(&entry).is_some() {
            server.complete(ObjectReply::done(0).encode(entry.tag));
            entry = server.accept().expect("behind its open");
        }
        let object = OpenObject::of(&request(ObjectOp::Write), HandleAccess::Metadata);
        let request = ObjectRequest::decode(&entry, |_, _| Ok(&object)).unwrap();
        let arena = server.regions().get(RegionId::ARENA).unwrap().clone();
        if request.op == ObjectOp::Write {
            content.resize(request.len as usize, 0);
            arena.read(request.memory.offset, content).unwrap();
        } else {
            arena.write(request.memory.offset, content).unwrap();
        }
        server.complete(ObjectReply::done(request.len).encode(entry.tag));
        server.publish();
        true
    }

    #[test]
    fn requests_wait_for_memory_and_are_sent_in_their_order() {
        let (mut objects, mut server) = objects();
        let mut content = Vec::new();
        for number in 0..6_u8 {
            let write = vec![number; LEN as usize];
            objects.push(EffectId(number.into()), request(ObjectOp::Write), write);
        }
        objects.push(EffectId(6), request(ObjectOp::Read), Vec::new());
        let mut answered = Vec::new();
        while !objects.is_idle() {
            objects.send();
            let mut served = 0;
            while serve(&mut server, &mut content) {
                served += 1;
            }
            assert!((1..=2).contains(&served), "the memory holds two requests");
            while let Some(one) = objects.next() {
                assert_eq!(one.reply.result, Ok(LEN));
                let read = one.id == EffectId(6);
                assert_eq!(one.data, vec![5; if read { LEN as usize } else { 0 }]);
                answered.push(one.id.0);
            }
        }
        assert_eq!(answered, [0, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    #[should_panic(expected = "never fits")]
    fn a_request_that_never_fits_does_not_wait_for_ever() {
        let (mut objects, _server) = objects();
        let len = 3 * LEN;
        let request = ObjectRequest {
            len,
            ..request(ObjectOp::Read)
        };
        objects.push(EffectId(0), request, Vec::new());
    }
}
