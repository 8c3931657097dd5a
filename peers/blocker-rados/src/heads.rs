//! Small objects that are changed by compare-and-swap.
//!
//! A swap is one compound operation: it checks that the version is the expected one, and replaces the object. So it is atomic in the
//! cluster, also against swaps of other clients.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest, SWAP_LEN_MAX};
use librados_sys::{Code, Payload, ReadOp};
use xseg::Span;

use crate::calls::Calls;
use crate::errors::code_of;
use crate::head_bytes::{VERSION_LEN, decode, is_lost, swap_op};
use crate::index;
use crate::memory::{gather, scatter};
use crate::names::ObjectName;

/// Carries out a swap.
pub(crate) async fn swap(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let (id, expected) = (request.id, request.offset);
    if request.len > SWAP_LEN_MAX || expected == u64::MAX {
        return Err(ErrorCode::Invalid);
    }
    let content = gather(memory);
    if expected == 0 {
        index::add(calls, id, 0, request.object_size).await?;
    }
    let name = ObjectName::whole(id);
    let swapped = calls.change(&name, swap_op(expected, &content)).await;
    let version = match swapped.result {
        Ok(_) => expected + 1,
        Err(code) if is_lost(code) => match read(calls, id).await? {
            // Our own swap, whose answer was lost.
            Some((version, there)) if version == expected + 1 && there == content => version,
            Some((version, _)) => return Ok(stale(version)),
            None => return Ok(stale(0)),
        },
        Err(code) => return Err(code_of(code)),
    };
    Ok(ObjectReply {
        values: [version, 0],
        ..ObjectReply::done(0)
    })
}

/// Reads version and content.
pub(crate) async fn read_swapped(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let (version, content) = read(calls, request.id).await?.ok_or(ErrorCode::NotFound)?;
    let len = u32::try_from(content.len()).map_err(|_too_long| ErrorCode::Damaged)?;
    if len > request.len {
        return Err(ErrorCode::Invalid);
    }
    scatter(&content, memory);
    Ok(ObjectReply {
        values: [version, 0],
        ..ObjectReply::done(len)
    })
}

/// Version and content of a head, if there is one.
async fn read(calls: &Calls, id: ObjectId) -> Result<Option<(u64, Vec<u8>)>, ErrorCode> {
    let whole = VERSION_LEN + SWAP_LEN_MAX as usize;
    let op = ReadOp::new().read(0, whole);
    let completed = calls.look(&ObjectName::whole(id), op).await;
    match (completed.result, completed.payload) {
        (Ok(_), Payload::Found(found)) => {
            let (version, content) = decode(&found.data).ok_or(ErrorCode::Damaged)?;
            Ok(Some((version, content.to_vec())))
        }
        (Ok(_), _) => Err(ErrorCode::Internal),
        (Err(Code::NOT_FOUND), _) => Ok(None),
        (Err(code), _) => Err(code_of(code)),
    }
}

/// The refusal, with the version that is stored.
pub(crate) fn stale(there: u64) -> ObjectReply {
    ObjectReply {
        values: [there, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    }
}
