//! Reads and writes that are one call: straight from and to the memory of the request, if that is in one place.
//!
//! Invariant: at most [`BYTES_MAX`] are under way, but for one request that alone is larger: librados keeps a copy of what is written.

use std::collections::VecDeque;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use librados_sys::{Code, Completed, Hint, Payload, WriteOp};
use xseg::Span;

use crate::calls::{Calls, Transfer};
use crate::errors::code_of;
use crate::known::GROUP_LEN;
use crate::memory::{fill_zeros, gather, scatter};
use crate::names::ObjectName;

/// Bytes of reads and writes under way at a time: sixteen objects, or a thousand requests of 64 KiB.
const BYTES_MAX: u64 = 64 << 20;
/// Longest object of a cluster, unless its administrator has changed it (`osd max object size`).
pub(crate) const OBJECT_LEN_MAX: u64 = 128 << 20;

/// Where the bytes of a request are in the cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) name: ObjectName,
    pub(crate) offset: u64,
    /// Which object of its address space.
    pub(crate) number: u64,
}

impl Place {
    /// The place of a request.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] if it crosses an object, [`ErrorCode::TooLarge`] if an object cannot be so long.
    pub(crate) fn of(request: &ObjectRequest) -> Result<Place, ErrorCode> {
        let (id, len) = (request.id, u64::from(request.len));
        if id.kind == ObjectKind::Data {
            let object_len = request.object_size.bytes();
            let (number, offset) = (request.offset / object_len, request.offset % object_len);
            if offset + len > object_len {
                return Err(ErrorCode::Invalid);
            }
            let name = ObjectName::data(id, number);
            return Ok(Place {
                name,
                offset,
                number,
            });
        }
        let offset = request.offset;
        if request.op == ObjectOp::Write && offset + len > OBJECT_LEN_MAX {
            return Err(ErrorCode::TooLarge);
        }
        let name = ObjectName::whole(id);
        Ok(Place {
            name,
            offset,
            number: 0,
        })
    }

    /// The group of the object in its lineage's index.
    pub(crate) fn group(&self) -> u64 {
        self.number / GROUP_LEN
    }
}

/// A request that waits for its turn.
#[derive(Debug)]
struct Waiting {
    ticket: u64,
    request: ObjectRequest,
    memory: Vec<Span>,
}

/// The transfers under way, and those that wait.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    bytes: u64,
    waiting: VecDeque<Waiting>,
    /// Buffers of requests in several places, used again.
    buffers: u64,
}

impl Transfers {
    /// Requests whose bytes were copied into one place.
    pub(crate) fn gathered(&self) -> u64 {
        self.buffers
    }

    /// Starts a read or write, or has it wait for its turn.
    pub(crate) fn start(
        &mut self,
        calls: &Calls,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
    ) {
        let full = self.bytes > 0 && self.bytes + u64::from(request.len) > BYTES_MAX;
        if full || !self.waiting.is_empty() {
            self.waiting.push_back(Waiting {
                ticket,
                request: *request,
                memory: memory.to_vec(),
            });
            return;
        }
        self.send(calls, ticket, request, memory);
    }

    fn send(&mut self, calls: &Calls, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        self.bytes += u64::from(request.len);
        let Ok(place) = Place::of(request) else {
            debug_assert!(false, "a place was found before");
            return;
        };
        let is_read = request.op == ObjectOp::Read;
        let transfer = Transfer {
            ticket,
            op: request.op,
            len: request.len,
            memory: if is_read { memory.to_vec() } else { Vec::new() },
        };
        if memory.len() > 1 {
            self.buffers += 1;
        }
        let pool = calls.pool_of(request.id);
        let (name, offset) = (place.name, place.offset);
        calls.transfer(transfer, request.id, request.op, |completions, token| {
            let object = name.as_c_str();
            match (is_read, memory) {
                (true, [span]) => pool.read(completions, token, object, offset, span.clone()),
                (true, _) => {
                    let buffer = vec![0; request.len as usize];
                    pool.read_bytes(completions, token, object, offset, buffer);
                }
                (false, [span]) if !is_first(calls, request.id, place.number) => {
                    pool.write(completions, token, object, offset, span.clone());
                }
                (false, _) => {
                    let op = write_op(request, &place, memory);
                    pool.operate(completions, token, object, op);
                }
            }
        });
    }

    /// A call has ended: the reply to its request. Starts what waited.
    pub(crate) fn ended(
        &mut self,
        calls: &Calls,
        transfer: &Transfer,
        completed: &Completed,
    ) -> (u64, ObjectReply) {
        self.bytes -= u64::from(transfer.len);
        while let Some(next) = self.waiting.front() {
            if self.bytes > 0 && self.bytes + u64::from(next.request.len) > BYTES_MAX {
                break;
            }
            if let Some(next) = self.waiting.pop_front() {
                self.send(calls, next.ticket, &next.request, &next.memory);
            }
        }
        (transfer.ticket, transfer.reply(completed))
    }
}

impl Transfer {
    fn reply(&self, completed: &Completed) -> ObjectReply {
        let read = match completed.result {
            Ok(read) => read,
            Err(code) => return ObjectReply::failed(code_of(code)),
        };
        if self.op == ObjectOp::Read {
            match (&completed.payload, self.memory.as_slice()) {
                (Payload::Bytes(bytes), memory) => scatter(&bytes[..read.min(bytes.len())], memory),
                (_, [span]) => fill_zeros(span, read),
                (_, _) => return ObjectReply::failed(ErrorCode::Internal),
            }
        }
        ObjectReply::done(self.len)
    }
}

/// Whether nobody has written to this object since we began: the cluster is given a hint then.
fn is_first(calls: &Calls, id: ObjectId, number: u64) -> bool {
    id.kind == ObjectKind::Data && calls.known.borrow_mut().touch(id, number) == Some(true)
}

/// A write, with what is known of the object.
pub(crate) fn write_op(request: &ObjectRequest, place: &Place, memory: &[Span]) -> WriteOp {
    let op = match request.id.kind {
        ObjectKind::Data => WriteOp::new().hint(Hint {
            object_len: request.object_size.bytes(),
            write_len: u64::from(request.len),
        }),
        _ => WriteOp::new(),
    };
    match memory {
        [span] => op.write_span(place.offset, span.clone()),
        _ => op.write(place.offset, gather(memory)),
    }
}

/// The count of a write that has ended.
pub(crate) fn written(result: Result<usize, Code>, len: u32) -> Result<ObjectReply, ErrorCode> {
    match result {
        Ok(_) => Ok(ObjectReply::done(len)),
        Err(code) => Err(code_of(code)),
    }
}
