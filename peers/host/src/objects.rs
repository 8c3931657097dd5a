//! The mapper's object requests on their way through a port: cut to size, given room in the arena, put together again.
//!
//! Invariants
//! - Requests are sent in the order in which the mapper made them; one that finds no credit or room holds back the rest.
//! - Room is given back when the last part of a request has been answered, never before.

use std::collections::VecDeque;

use archipelago_mapper::EffectId;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use xseg::{ClientPort, PortError};

use crate::arena::{Arena, Room};

/// Longest part: larger reads and writes are cut, so that one page pack does not fill the arena.
const PART_LEN_MAX: u32 = 1 << 20;
/// Completions taken in one poll.
const REPLIES_PER_POLL: usize = 256;

/// A request that waits for credits or room.
#[derive(Debug)]
struct Queued {
    slot: usize,
    request: ObjectRequest,
    /// Of the whole request's bytes.
    start: usize,
}

/// A request of the mapper's.
#[derive(Debug)]
struct Whole {
    id: EffectId,
    op: ObjectOp,
    /// What to write, or what was read so far.
    data: Vec<u8>,
    parts: usize,
    reply: ObjectReply,
}

/// A part in flight.
#[derive(Debug)]
struct Part {
    slot: usize,
    start: usize,
    len: u32,
    room: Option<Room>,
}

/// An answered request.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) id: EffectId,
    pub(crate) reply: ObjectReply,
    pub(crate) data: Vec<u8>,
}

/// Object requests of one mapper through one port.
#[derive(Debug)]
pub(crate) struct Objects<P> {
    port: P,
    arena: Arena,
    wholes: Vec<Option<Whole>>,
    queue: VecDeque<Queued>,
    /// By cookie.
    parts: Vec<Option<Part>>,
}

fn vacancy<T>(slots: &mut Vec<Option<T>>) -> usize {
    match slots.iter().position(Option::is_none) {
        Some(index) => index,
        None => {
            slots.push(None);
            slots.len() - 1
        }
    }
}

fn reads(op: ObjectOp) -> bool {
    matches!(op, ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List)
}

fn writes(op: ObjectOp) -> bool {
    matches!(op, ObjectOp::Write | ObjectOp::CompareAndSwap)
}

impl<P: ClientPort> Objects<P> {
    pub(crate) fn new(port: P) -> Objects<P> {
        let arena = Arena::new(port.arena().len());
        Objects {
            port,
            arena,
            wholes: Vec::new(),
            queue: VecDeque::new(),
            parts: Vec::new(),
        }
    }

    pub(crate) fn port(&self) -> &P {
        &self.port
    }

    pub(crate) fn port_mut(&mut self) -> &mut P {
        &mut self.port
    }

    /// Requests that are not answered yet.
    pub(crate) fn in_flight(&self) -> usize {
        self.wholes.iter().flatten().count()
    }

    /// Takes a request of the mapper's; `data` is what to write.
    pub(crate) fn push(&mut self, id: EffectId, request: ObjectRequest, data: Vec<u8>) {
        let cut =
            matches!(request.op, ObjectOp::Read | ObjectOp::Write) && request.len > PART_LEN_MAX;
        let part_len = if cut { PART_LEN_MAX } else { request.len };
        let parts = if cut {
            request.len.div_ceil(PART_LEN_MAX)
        } else {
            1
        };
        let data = if reads(request.op) {
            vec![0; request.len as usize]
        } else {
            data
        };
        let slot = vacancy(&mut self.wholes);
        self.wholes[slot] = Some(Whole {
            id,
            op: request.op,
            data,
            parts: parts as usize,
            reply: ObjectReply::done(0),
        });
        for part in 0..parts {
            let start = part * part_len;
            let len = part_len.min(request.len - start);
            let offset = request.offset + u64::from(start);
            self.queue.push_back(Queued {
                slot,
                request: ObjectRequest {
                    offset,
                    len,
                    ..request
                },
                start: start as usize,
            });
        }
    }

    /// Sends what can be sent. Whether anything was.
    pub(crate) fn send(&mut self) -> bool {
        let mut sent = false;
        while let Some(queued) = self.queue.front() {
            let (slot, start, mut request) = (queued.slot, queued.start, queued.request);
            if self.port.credits() == 0 {
                break;
            }
            let needs_room = (reads(request.op) || writes(request.op)) && request.len > 0;
            let room = if needs_room {
                self.arena.take(request.len)
            } else {
                None
            };
            match room {
                Some(room) => request.memory.offset = room.start,
                None if needs_room => break,
                None => {}
            }
            if let (Some(room), true, Some(whole)) = (room, writes(request.op), &self.wholes[slot])
            {
                let bytes = &whole.data[start..start + request.len as usize];
                self.port
                    .arena()
                    .write(room.start, bytes)
                    .expect("room is inside the arena");
            }
            let cookie = vacancy(&mut self.parts);
            match self.port.submit(cookie as u64, request.encode()) {
                Ok(()) => {
                    self.parts[cookie] = Some(Part {
                        slot,
                        start,
                        len: request.len,
                        room,
                    });
                    self.queue.pop_front();
                    sent = true;
                }
                Err(PortError::Full | PortError::Broken | _) => {
                    if let Some(room) = room {
                        self.arena.give(room);
                    }
                    break;
                }
            }
        }
        if sent {
            self.port.publish();
        }
        sent
    }

    /// The next answered request.
    pub(crate) fn next(&mut self) -> Option<Answered> {
        for _ in 0..REPLIES_PER_POLL {
            let (cookie, completion) = self.port.complete()?;
            let index = usize::try_from(cookie).expect("cookies are indices");
            let part = self.parts[index]
                .take()
                .expect("a port answers each request once");
            if let Some(answered) = self.finish(&part, ObjectReply::decode(&completion)) {
                return Some(answered);
            }
        }
        None
    }

    fn finish(&mut self, part: &Part, reply: ObjectReply) -> Option<Answered> {
        let entry = self.wholes[part.slot]
            .as_mut()
            .expect("a request stays until its last part is answered");
        if let (Some(room), true, Ok(filled)) = (part.room, reads(entry.op), reply.result) {
            let filled = filled.min(part.len) as usize;
            let into = &mut entry.data[part.start..part.start + filled];
            self.port
                .arena()
                .read(room.start, into)
                .expect("room is inside the arena");
        }
        if let Some(room) = part.room {
            self.arena.give(room);
        }
        entry.reply = match (entry.reply.result, reply.result) {
            (Err(_), _) => entry.reply,
            (_, Err(code)) => ObjectReply {
                result: Err(code),
                values: reply.values,
            },
            (Ok(before), Ok(now)) => match before.checked_add(now) {
                Some(result) => ObjectReply {
                    result: Ok(result),
                    values: reply.values,
                },
                None => ObjectReply::failed(ErrorCode::Internal),
            },
        };
        entry.parts -= 1;
        if entry.parts > 0 {
            return None;
        }
        let Whole {
            id,
            op,
            mut data,
            reply,
            ..
        } = self.wholes[part.slot].take()?;
        match reply.result {
            Ok(filled) if reads(op) => data.truncate(filled as usize),
            _ => data.clear(),
        }
        Some(Answered { id, reply, data })
    }

    pub(crate) fn prepare_sleep(&mut self) -> bool {
        self.port.prepare_sleep()
    }

    pub(crate) fn wake(&mut self) {
        self.port.wake();
    }
}

#[cfg(test)]
mod tests {
    use archipelago_blocker::{BlockerPeer, Rights};
    use archipelago_doubles::MemoryBackend;
    use archipelago_protocol::Lineage;
    use archipelago_protocol::object::ObjectId;
    use archipelago_runtime::Peer;

    use super::*;

    #[test]
    fn large_requests_are_cut_and_put_together_again_in_a_small_arena() {
        let (client, server) = xseg::local::channel(4, 2 << 20).unwrap();
        let mut blocker = BlockerPeer::new(MemoryBackend::new());
        blocker.add_channel(xseg::Server::from(server), Rights::All);
        let mut objects = Objects::new(client);
        let data: Vec<u8> = (0..5_000_000_u32)
            .map(|number| (number % 251) as u8)
            .collect();
        let id = ObjectId::pack(Lineage(1), 1);
        let len = u32::try_from(data.len()).unwrap();
        let mut run = |id: EffectId, request: ObjectRequest, data: Vec<u8>| {
            objects.push(id, request, data);
            for _ in 0..1000 {
                objects.send();
                blocker.poll();
                if let Some(answered) = objects.next() {
                    return answered;
                }
            }
            panic!("no answer");
        };
        let write = ObjectRequest {
            len,
            ..ObjectRequest::new(ObjectOp::Write, id)
        };
        assert_eq!(run(EffectId(1), write, data.clone()).reply.result, Ok(len));
        let read = ObjectRequest {
            len,
            ..ObjectRequest::new(ObjectOp::Read, id)
        };
        let answered = run(EffectId(2), read, Vec::new());
        assert_eq!((answered.id, answered.reply.result), (EffectId(2), Ok(len)));
        assert!(answered.data == data);
        assert_eq!(objects.in_flight(), 0);
    }
}
