//! Small objects that compare-and-swap changes: version (8 bytes, little-endian), then the content, written as a whole.
//!
//! A swap is one compound operation: the version must be the expected one, and the object is replaced. So it is atomic in the cluster,
//! whoever else swaps.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest, SWAP_LEN_MAX};
use librados_sys::{Code, Payload, ReadOp, WriteOp};
use xseg::Span;

use crate::calls::Calls;
use crate::errors::code_of;
use crate::index;
use crate::memory::{gather, scatter};
use crate::names::ObjectName;

/// Bytes of the version in front of the content.
const VERSION_LEN: usize = 8;

/// The bytes of a head.
pub(crate) fn encode(version: u64, content: &[u8]) -> Vec<u8> {
    [&version.to_le_bytes()[..], content].concat()
}

/// Version and content in the bytes of a head; `None`: it is none.
pub(crate) fn decode(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (version, content) = bytes.split_first_chunk::<VERSION_LEN>()?;
    Some((u64::from_le_bytes(*version), content))
}

/// What makes `content` the version behind `expected`.
pub(crate) fn swap_op(expected: u64, content: &[u8]) -> WriteOp {
    let record = encode(expected.saturating_add(1), content);
    match expected {
        0 => WriteOp::new().create_exclusive().write_full(record),
        _ => WriteOp::new()
            .assert_exists()
            .compare(0, &expected.to_le_bytes())
            .write_full(record),
    }
}

/// Whether a swap failed because another version is there.
pub(crate) fn is_lost(code: Code) -> bool {
    code.is_mismatch() || code == Code::EXISTS || code == Code::NOT_FOUND
}

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
            // Our own, whose answer was lost.
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

/// The refusal that says what is there.
pub(crate) fn stale(there: u64) -> ObjectReply {
    ObjectReply {
        values: [there, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_its_version_and_its_content() {
        let bytes = encode(258, b"content");
        assert_eq!(bytes[..10], [2, 1, 0, 0, 0, 0, 0, 0, b'c', b'o']);
        assert_eq!(decode(&bytes), Some((258, &b"content"[..])));
        assert_eq!(decode(&bytes[..7]), None);
    }
}
