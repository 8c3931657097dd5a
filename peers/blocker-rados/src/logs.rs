//! Logs: the object's bytes are the circle; its end and its token are in attributes beside them.
//!
//! | attribute | content |
//! |---|---|
//! | `end` | position behind the last append, 16 hexadecimal digits; missing: there was no append, and plain writes make the log |
//! | `token` | the generation whose session may append, 16 hexadecimal digits; missing: 0 |
//!
//! An append is one compound operation: it checks that its token is not below the attribute and that the end is its position, writes the
//! bytes and moves the end. So the cluster itself refuses a stale writer, and an append is never torn.

use std::ffi::CStr;

use archipelago_blocker::logs::{Landing, LogState};
use archipelago_protocol::log_sector::is_batch;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Generation};
use librados_sys::{Code, Comparison, Found, Payload, ReadOp, WriteOp};
use xseg::Span;

use crate::calls::Calls;
use crate::errors::code_of;
use crate::heads::stale;
use crate::index;
use crate::memory::gather;
use crate::names::ObjectName;
use crate::transfers::{Place, written};

const END: &CStr = c"end";
const TOKEN: &CStr = c"token";
/// Tries of an append whose log has changed between the attempt and the check after it.
const TRIES: u32 = 4;

/// A number in an attribute: the texts sort as the numbers do.
fn digits(number: u64) -> String {
    format!("{number:016x}")
}

/// The number in an attribute; 0 if it is missing.
fn number(attribute: &[u8]) -> Result<u64, ErrorCode> {
    if attribute.is_empty() {
        return Ok(0);
    }
    let text = std::str::from_utf8(attribute).map_err(|_bytes| ErrorCode::Damaged)?;
    u64::from_str_radix(text, 16).map_err(|_text| ErrorCode::Damaged)
}

fn state_of(found: &Found) -> Result<LogState, ErrorCode> {
    Ok(LogState {
        token: Generation(number(found.attribute(TOKEN))?),
        end: number(found.attribute(END))?,
    })
}

/// Reads the state of a log; `op` may read more.
async fn look(calls: &Calls, id: ObjectId, op: ReadOp) -> Result<Found, ErrorCode> {
    let op = op.attributes().len();
    let completed = calls.look(&ObjectName::whole(id), op).await;
    match (completed.result, completed.payload) {
        (Ok(_), Payload::Found(found)) => Ok(found),
        (Ok(_), _) => Err(ErrorCode::Internal),
        (Err(code), _) => Err(code_of(code)),
    }
}

/// Carries out an append.
pub(crate) async fn append(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let ObjectRequest {
        id,
        offset: position,
        len,
        token,
        ..
    } = *request;
    let known = calls.known.borrow().log_len(id);
    let mut log_len = match known {
        Some(len) => len,
        None => look(calls, id, ReadOp::new()).await?.len,
    };
    for _ in 0..TRIES {
        // One copy: the checked bytes are the written ones.
        let bytes = gather(memory);
        if !is_batch(&bytes, len, id.lineage, position, token) {
            return Err(ErrorCode::Invalid);
        }
        let expected = LogState {
            token,
            end: position,
        };
        let Landing::At(place) = expected.append(log_len, position, len, token) else {
            return Err(ErrorCode::Invalid);
        };
        let op = append_op(position, token, place, bytes);
        match calls.change(&ObjectName::whole(id), op).await.result {
            Ok(_) => {
                calls.known.borrow_mut().set_log_len(id, log_len);
                return Ok(ObjectReply::done(len));
            }
            Err(Code::CANCELED) => {}
            Err(code) => {
                calls.known.borrow_mut().forget_log(id);
                return Err(code_of(code));
            }
        }
        let there = look(calls, id, ReadOp::new().read(place, len as usize)).await?;
        log_len = there.len;
        let state = state_of(&there)?;
        match state.append(log_len, position, len, token) {
            // The log was changed in between.
            Landing::At(_) => {}
            Landing::IfRepeated(at) if at == place && there.data == gather(memory) => {
                return Ok(ObjectReply::done(len));
            }
            Landing::IfRepeated(_) | Landing::Stale => return Ok(stale(state.end)),
            Landing::Invalid => return Err(ErrorCode::Invalid),
        }
    }
    Err(ErrorCode::Io)
}

fn append_op(position: u64, token: Generation, place: u64, bytes: Vec<u8>) -> WriteOp {
    let behind = digits(position + bytes.len() as u64);
    let end = match position {
        0 => String::new(),
        _ => digits(position),
    };
    WriteOp::new()
        .compare_attribute(TOKEN, Comparison::AtLeast, digits(token.0).as_bytes())
        .compare_attribute(END, Comparison::Equal, end.as_bytes())
        .write(place, bytes)
        .set_attribute(END, behind.as_bytes())
}

/// Raises the token of a log.
pub(crate) async fn seal(calls: &Calls, request: &ObjectRequest) -> Result<ObjectReply, ErrorCode> {
    let token = digits(request.token.0);
    let op = WriteOp::new()
        .assert_exists()
        .compare_attribute(TOKEN, Comparison::AtLeast, token.as_bytes())
        .set_attribute(TOKEN, token.as_bytes());
    let sealed = calls.change(&ObjectName::whole(request.id), op).await;
    match sealed.result {
        Ok(_) => Ok(ObjectReply::done(0)),
        Err(Code::CANCELED) => {
            let there = look(calls, request.id, ReadOp::new()).await?;
            Ok(stale(state_of(&there)?.token.0))
        }
        Err(code) => Err(code_of(code)),
    }
}

/// Writes plainly to a log that was not appended to yet.
pub(crate) async fn write(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let place = Place::of(request)?;
    index::add(calls, request.id, 0, request.object_size).await?;
    calls.known.borrow_mut().forget_log(request.id);
    for _ in 0..TRIES {
        let op = WriteOp::new()
            .compare_attribute(END, Comparison::Equal, b"")
            .write(place.offset, gather(memory));
        match calls.change(&place.name, op).await.result {
            Err(Code::CANCELED) => {
                let there = look(calls, request.id, ReadOp::new()).await?;
                return Ok(stale(state_of(&there)?.end));
            }
            Err(Code::NOT_FOUND) => {}
            result => return written(result, request.len),
        }
        // The log may have been removed meanwhile, with its key.
        index::add(calls, request.id, 0, request.object_size).await?;
        let op = WriteOp::new()
            .create_exclusive()
            .write(place.offset, gather(memory));
        match calls.change(&place.name, op).await.result {
            Err(Code::EXISTS) => {}
            result => return written(result, request.len),
        }
    }
    Err(ErrorCode::Io)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_sort_as_numbers_and_a_damaged_one_is_noticed() {
        let numbers = [0, 9, 10, 255, 256, u64::MAX];
        assert!(numbers.map(digits).is_sorted());
        assert_eq!(
            numbers.map(|of| number(digits(of).as_bytes())),
            numbers.map(Ok)
        );
        assert_eq!(number(b""), Ok(0));
        assert_eq!(number(b"x"), Err(ErrorCode::Damaged));
        assert_eq!(number(&[0xff]), Err(ErrorCode::Damaged));
    }
}
