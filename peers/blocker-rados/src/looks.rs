//! Creates, inspects and punches objects.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectReply, ObjectRequest};
use librados_sys::{Code, Payload, ReadOp, WriteOp};
use xseg::Span;

use crate::calls::Calls;
use crate::errors::code_of;
use crate::index;
use crate::known::GROUP_LEN;
use crate::names::{ObjectName, before_data_key};
use crate::removal::names_of;
use crate::transfers::{Place, write_op, written};

/// Makes an empty object, exclusively.
pub(crate) async fn create(
    calls: &Calls,
    request: &ObjectRequest,
) -> Result<ObjectReply, ErrorCode> {
    let id = request.id;
    index::add(calls, id, 0, request.object_size).await?;
    let op = WriteOp::new().create_exclusive();
    let made = calls.change(&ObjectName::whole(id), op).await;
    written(made.result, 0)
}

/// Writes to an object whose group is not known to be in the index.
pub(crate) async fn first_write(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let place = Place::of(request)?;
    index::add(calls, request.id, place.group(), request.object_size).await?;
    if request.id.kind == ObjectKind::Data {
        calls.known.borrow_mut().touch(request.id, place.number);
    }
    let pool = calls.pool_of(request.id);
    let op = write_op(request, &place, memory);
    let done = calls.change_in(pool, &place.name, op).await;
    written(done.result, request.len)
}

/// The length of a RADOS object, if it exists.
async fn len_of(calls: &Calls, id: ObjectId, name: &ObjectName) -> Result<Option<u64>, ErrorCode> {
    let completed = calls.look_in(calls.pool_of(id), name, ReadOp::new().len());
    length(completed.await)
}

fn length(completed: librados_sys::Completed) -> Result<Option<u64>, ErrorCode> {
    match (completed.result, completed.payload) {
        (Ok(_), Payload::Found(found)) => Ok(Some(found.len)),
        (Ok(_), _) => Err(ErrorCode::Internal),
        (Err(Code::NOT_FOUND), _) => Ok(None),
        (Err(code), _) => Err(code_of(code)),
    }
}

/// Bytes that an object occupies, and its length. A cluster does not report which bytes of an object are holes, so they count.
pub(crate) async fn stat(calls: &Calls, id: ObjectId) -> Result<ObjectReply, ErrorCode> {
    if id.kind != ObjectKind::Data {
        let len = len_of(calls, id, &ObjectName::whole(id)).await?;
        return len.map(|len| stated(len, len)).ok_or(ErrorCode::NotFound);
    }
    let (mut occupied, mut end) = (0_u64, None);
    let mut after = Some(before_data_key(id));
    while let Some(from) = after.take() {
        let (found, next) = index::objects(calls, id.lineage, &from).await?;
        let mut beyond = false;
        for indexed in found {
            if indexed.id != id {
                beyond = true;
                break;
            }
            let looks: Vec<_> = names_of(&indexed)
                .into_iter()
                .map(|(id, name)| calls.look_in(calls.pool_of(id), &name, ReadOp::new().len()))
                .collect();
            let first = indexed.group.saturating_mul(GROUP_LEN);
            for (number, look) in (first..).zip(looks) {
                if let Some(len) = length(look.await)? {
                    occupied = occupied.saturating_add(len);
                    let start = number.saturating_mul(indexed.object_size.bytes());
                    end = end.max(Some(start.saturating_add(len)));
                }
            }
        }
        after = next.filter(|_| !beyond);
    }
    end.map(|end| stated(occupied, end))
        .ok_or(ErrorCode::NotFound)
}

fn stated(occupied: u64, len: u64) -> ObjectReply {
    ObjectReply {
        values: [occupied, len],
        ..ObjectReply::done(0)
    }
}

/// Frees a range. Nothing is done behind an object's end: it would grow.
pub(crate) async fn punch(
    calls: &Calls,
    request: &ObjectRequest,
) -> Result<ObjectReply, ErrorCode> {
    let (id, end) = (request.id, request.offset + u64::from(request.len));
    let mut at = request.offset;
    while at < end {
        let (name, offset, len) = match id.kind {
            ObjectKind::Data => {
                let object_len = request.object_size.bytes();
                let offset = at % object_len;
                let len = (end - at).min(object_len - offset);
                (ObjectName::data(id, at / object_len), offset, len)
            }
            _ => (ObjectName::whole(id), at, end - at),
        };
        at += len;
        let there = len_of(calls, id, &name).await?.unwrap_or(0);
        let len = len.min(there.saturating_sub(offset));
        if len == 0 {
            continue;
        }
        let op = WriteOp::new().zero(offset, len);
        let done = calls.change_in(calls.pool_of(id), &name, op).await;
        done.result.map_err(code_of)?;
    }
    Ok(ObjectReply::done(0))
}
