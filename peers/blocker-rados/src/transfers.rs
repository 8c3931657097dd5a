//! Reads and writes of one call: directly from and to the memory of the request, if that is one span.
//!
//! Invariant: at most [`BYTES_MAX`] of reads and writes are under way, first writes included, except for a single larger request: librados
//! keeps a copy of the written bytes.

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

/// The place of a request's bytes in the cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) name: ObjectName,
    pub(crate) offset: u64,
    /// The number of the object in its address space.
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

/// A request that waits to be admitted.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) ticket: u64,
    pub(crate) request: ObjectRequest,
    pub(crate) place: Place,
    pub(crate) memory: Vec<Span>,
}

/// The bytes of reads and writes under way, and the requests that wait.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    bytes: u64,
    waiting: VecDeque<Waiting>,
    gathered: u64,
}

impl Transfers {
    /// Requests whose bytes were copied into one buffer.
    pub(crate) fn gathered(&self) -> u64 {
        self.gathered
    }

    fn has_room(&self, len: u32) -> bool {
        self.bytes == 0 || self.bytes + u64::from(len) <= BYTES_MAX
    }

    /// Whether a request may start now; otherwise it waits to be admitted ([`Transfers::next`]).
    pub(crate) fn admit(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        place: &Place,
        memory: &[Span],
    ) -> bool {
        if !self.waiting.is_empty() || !self.has_room(request.len) {
            self.waiting.push_back(Waiting {
                ticket,
                request: *request,
                place: *place,
                memory: memory.to_vec(),
            });
            return false;
        }
        self.bytes += u64::from(request.len);
        true
    }

    /// The next waiting request that may start now.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        let len = self.waiting.front()?.request.len;
        if !self.has_room(len) {
            return None;
        }
        self.bytes += u64::from(len);
        self.waiting.pop_front()
    }

    /// Records that an admitted request of `len` bytes has ended.
    pub(crate) fn release(&mut self, len: u32) {
        self.bytes -= u64::from(len);
    }

    /// Makes the call of an admitted request.
    pub(crate) fn send(
        &mut self,
        calls: &Calls,
        ticket: u64,
        request: &ObjectRequest,
        place: &Place,
        memory: &[Span],
    ) {
        let is_read = request.op == ObjectOp::Read;
        let is_scattered = memory.len() > 1;
        self.gathered += u64::from(is_scattered);
        let transfer = Transfer {
            ticket,
            op: request.op,
            len: request.len,
            scattered: match is_read && is_scattered {
                true => memory.to_vec(),
                false => Vec::new(),
            },
        };
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
                    let op = write_op(request, place, memory);
                    pool.operate(completions, token, object, op);
                }
            }
        });
    }
}

impl Transfer {
    /// The reply to a request whose call has ended.
    pub(crate) fn reply(&self, completed: &Completed) -> ObjectReply {
        let read = match completed.result {
            Ok(read) => read,
            Err(code) => return ObjectReply::failed(code_of(code)),
        };
        match (self.op, &completed.payload) {
            (ObjectOp::Read, Payload::Span(span)) => fill_zeros(span, read),
            (ObjectOp::Read, Payload::Bytes(bytes)) => {
                scatter(&bytes[..read.min(bytes.len())], &self.scattered);
            }
            (ObjectOp::Read, _) => return ObjectReply::failed(ErrorCode::Internal),
            (_, _) => {}
        }
        ObjectReply::done(self.len)
    }
}

/// Whether this process has not written to the object yet: then the cluster gets a hint.
fn is_first(calls: &Calls, id: ObjectId, number: u64) -> bool {
    id.kind == ObjectKind::Data && calls.known.borrow_mut().touch(id, number) == Some(true)
}

/// The operation of a write, with a hint if it is the object's first.
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

/// The reply to a write that has ended.
pub(crate) fn written(result: Result<usize, Code>, len: u32) -> Result<ObjectReply, ErrorCode> {
    match result {
        Ok(_) => Ok(ObjectReply::done(len)),
        Err(code) => Err(code_of(code)),
    }
}
