//! The indexes: the list of lineages, and the objects of each lineage.
//!
//! Invariants
//! - Before an object is made, it is entered into the index of its lineage, and the lineage into the index of lineages.
//! - An entry's object may not exist: after a crash in between, or between a removal and the change of the index.

use std::ffi::CString;

use archipelago_protocol::object::{OBJECT_ID_LEN, ObjectId, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Lineage, ObjectSize};
use librados_sys::{Code, Found, Payload, ReadOp, WriteOp};
use xseg::Span;

use crate::calls::Calls;
use crate::errors::code_of;
use crate::memory::{gather, scatter};
use crate::names::{
    LINEAGE_PARTS, ObjectName, behind_key, index_key, lineage_key, parse_index_key,
    parse_lineage_key, part_of,
};

/// Keys that are read at once.
const PAGE: u64 = 512;

/// Enters a group of objects into the index of its lineage, and the lineage into that of lineages. The caller makes the object at once
/// afterwards, before the next removal.
///
/// # Errors
/// [`ErrorCode::NotFound`]: the object is being removed.
pub(crate) async fn add(
    calls: &Calls,
    id: ObjectId,
    group: u64,
    object_size: ObjectSize,
) -> Result<(), ErrorCode> {
    let has_lineage = {
        let known = calls.known.borrow();
        if known.is_being_removed(id) {
            return Err(ErrorCode::NotFound);
        }
        if known.has_group(id, group) {
            return Ok(());
        }
        known.has_lineage(id.lineage)
    };
    let lineage = (!has_lineage).then(|| {
        let op = WriteOp::new().set_key(lineage_key(id.lineage).as_bytes(), b"");
        calls.change(&ObjectName::lineages(id.lineage), op)
    });
    let op = WriteOp::new().set_key(index_key(id, group).as_bytes(), &[object_size.log2()]);
    let object = calls.change(&ObjectName::index(id.lineage), op);
    let object = object.await.result;
    if let Some(lineage) = lineage {
        lineage.await.result.map_err(code_of)?;
    }
    object.map_err(code_of)?;
    let mut known = calls.known.borrow_mut();
    if known.is_being_removed(id) {
        return Err(ErrorCode::NotFound);
    }
    known.add(id, group);
    Ok(())
}

/// At most `max` keys of a sorted map above `after`; none if the object is missing.
async fn page(calls: &Calls, name: &ObjectName, after: &str, max: u64) -> Result<Found, ErrorCode> {
    let after = CString::new(after).map_err(|_zero| ErrorCode::Internal)?;
    let op = ReadOp::new().keys_above(&after, max);
    let completed = calls.look(name, op).await;
    match (completed.result, completed.payload) {
        (Ok(_), Payload::Found(found)) => Ok(found),
        (Ok(_), _) => Err(ErrorCode::Internal),
        (Err(Code::NOT_FOUND), _) => Ok(Found::default()),
        (Err(code), _) => Err(code_of(code)),
    }
}

/// A key of the index, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Indexed {
    pub(crate) id: ObjectId,
    pub(crate) group: u64,
    pub(crate) object_size: ObjectSize,
}

/// The keys of a lineage above `after`, one page: with the last key, if there are more.
pub(crate) async fn objects(
    calls: &Calls,
    lineage: Lineage,
    after: &str,
) -> Result<(Vec<Indexed>, Option<String>), ErrorCode> {
    let found = page(calls, &ObjectName::index(lineage), after, PAGE).await?;
    let entries = found.keys.iter().zip(&found.values);
    let parsed = entries.map(|(key, value)| {
        let (id, group) = parse_index_key(lineage, key)?;
        let object_size = ObjectSize::from_log2(*value.first()?)?;
        Some(Indexed {
            id,
            group,
            object_size,
        })
    });
    let parsed: Option<Vec<Indexed>> = parsed.collect();
    let last = found.keys.last().filter(|_| found.more);
    let next = last.map(|key| String::from_utf8_lossy(key).into_owned());
    Ok((parsed.ok_or(ErrorCode::Damaged)?, next))
}

/// Lists ids above that of the request.
pub(crate) async fn list(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let room = request.len as usize / OBJECT_ID_LEN;
    if room == 0 {
        return Err(ErrorCode::Invalid);
    }
    let mut ids: Vec<ObjectId> = Vec::new();
    let mut after = behind_key(request.id);
    let mut lineage = Some(request.id.lineage);
    while let Some(current) = lineage {
        add_ids(calls, current, &after, room, &mut ids).await?;
        if ids.len() >= room {
            break;
        }
        after.clear();
        lineage = next_lineage(calls, current).await?;
    }
    let bytes: Vec<u8> = ids.into_iter().flat_map(ObjectId::to_bytes).collect();
    let count = u32::try_from(bytes.len()).map_err(|_too_long| ErrorCode::Internal)?;
    // The memory behind the last id is unchanged.
    let mut whole = gather(memory);
    whole[..bytes.len()].copy_from_slice(&bytes);
    scatter(&whole, memory);
    Ok(ObjectReply::done(count))
}

/// Adds the ids of a lineage whose keys are above `after`, until `room` ids are listed.
async fn add_ids(
    calls: &Calls,
    lineage: Lineage,
    after: &str,
    room: usize,
    ids: &mut Vec<ObjectId>,
) -> Result<(), ErrorCode> {
    let mut after = Some(after.to_owned());
    while let Some(from) = after {
        let (found, next) = objects(calls, lineage, &from).await?;
        for Indexed { id, .. } in found {
            if ids.last() == Some(&id) {
                continue;
            }
            if ids.len() >= room {
                return Ok(());
            }
            ids.push(id);
        }
        // An epoch may have many groups, but its id is listed once.
        after = next.map(|next| ids.last().map_or(next, |last| behind_key(*last)));
    }
    Ok(())
}

/// The lineage above `lineage`, if there is one.
async fn next_lineage(calls: &Calls, lineage: Lineage) -> Result<Option<Lineage>, ErrorCode> {
    let mut after = lineage_key(lineage);
    for part in part_of(lineage)..LINEAGE_PARTS {
        let found = page(calls, &ObjectName::lineages_part(part), &after, 1).await?;
        if let Some(key) = found.keys.first() {
            return parse_lineage_key(key).map(Some).ok_or(ErrorCode::Damaged);
        }
        after.clear();
    }
    Ok(None)
}
