//! Removes objects: first the objects, then their index entries.
//!
//! Invariant: from the beginning of a removal to its end, none of its objects is made. A write that was sent before reaches its object
//! before the removal does: the cluster keeps the order of one client's operations on an object.

use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectReply};
use archipelago_protocol::{ErrorCode, Lineage};
use librados_sys::{Code, WriteOp};

use crate::calls::Calls;
use crate::errors::code_of;
use crate::index::{self, Indexed};
use crate::known::{GROUP_LEN, Removal};
use crate::names::{ObjectName, before_data_key, index_key, lineage_key};

/// Removals under way at a time: few enough not to delay requests of guests.
const AT_ONCE: usize = 64;

/// Removes an object, whatever its content.
pub(crate) async fn delete(calls: &Calls, id: ObjectId) -> Result<ObjectReply, ErrorCode> {
    alone(calls, Removal::Object(id), delete_object(calls, id)).await
}

/// Removes all objects of a lineage, its head last.
pub(crate) async fn delete_lineage(
    calls: &Calls,
    lineage: Lineage,
) -> Result<ObjectReply, ErrorCode> {
    let removing = delete_objects(calls, lineage);
    alone(calls, Removal::Lineage(lineage), removing).await
}

/// Carries out a removal: meanwhile its objects enter no index.
async fn alone(
    calls: &Calls,
    removal: Removal,
    removing: impl Future<Output = Result<(), ErrorCode>>,
) -> Result<ObjectReply, ErrorCode> {
    calls.known.borrow_mut().begin_removal(removal);
    let removed = removing.await;
    calls.known.borrow_mut().end_removal(removal);
    removed.map(|()| ObjectReply::done(0))
}

async fn delete_object(calls: &Calls, id: ObjectId) -> Result<(), ErrorCode> {
    if id.kind != ObjectKind::Data {
        remove(calls, &[(id, ObjectName::whole(id))]).await?;
        remove_keys(calls, id.lineage, &[index_key(id, 0)]).await?;
    } else {
        let mut after = Some(before_data_key(id));
        while let Some(from) = after.take() {
            let (found, next) = index::objects(calls, id.lineage, &from).await?;
            let (ours, others): (Vec<_>, Vec<_>) =
                found.into_iter().partition(|found| found.id == id);
            remove_indexed(calls, id.lineage, &ours).await?;
            after = next.filter(|_| others.is_empty());
        }
    }
    Ok(())
}

async fn delete_objects(calls: &Calls, lineage: Lineage) -> Result<(), ErrorCode> {
    let (mut after, mut has_head) = (Some(String::new()), false);
    while let Some(from) = after {
        let (mut found, next) = index::objects(calls, lineage, &from).await?;
        let count = found.len();
        found.retain(|found| found.id.kind != ObjectKind::Head);
        has_head |= found.len() < count;
        remove_indexed(calls, lineage, &found).await?;
        after = next;
    }
    if has_head {
        let head = ObjectId::head(lineage);
        remove(calls, &[(head, ObjectName::whole(head))]).await?;
    }
    let index = ObjectName::index(lineage);
    unless_missing(calls.change(&index, WriteOp::new().remove()).await.result)?;
    let key = lineage_key(lineage).into_bytes();
    let forget = WriteOp::new().remove_keys(&[key]);
    let part = ObjectName::lineages(lineage);
    unless_missing(calls.change(&part, forget).await.result)
}

/// Removes the objects of an index, and their keys.
async fn remove_indexed(
    calls: &Calls,
    lineage: Lineage,
    found: &[Indexed],
) -> Result<(), ErrorCode> {
    for found in found.chunks(AT_ONCE) {
        let names: Vec<(ObjectId, ObjectName)> = found.iter().flat_map(names_of).collect();
        remove(calls, &names).await?;
        let keys: Vec<String> = found
            .iter()
            .map(|found| index_key(found.id, found.group))
            .collect();
        remove_keys(calls, lineage, &keys).await?;
    }
    Ok(())
}

/// The RADOS objects that a key of the index covers.
pub(crate) fn names_of(found: &Indexed) -> Vec<(ObjectId, ObjectName)> {
    let Indexed { id, group, .. } = *found;
    if id.kind != ObjectKind::Data {
        return vec![(id, ObjectName::whole(id))];
    }
    let first = group.saturating_mul(GROUP_LEN);
    (first..first.saturating_add(GROUP_LEN))
        .map(|number| (id, ObjectName::data(id, number)))
        .collect()
}

/// Removes RADOS objects; missing ones are not an error.
async fn remove(calls: &Calls, names: &[(ObjectId, ObjectName)]) -> Result<(), ErrorCode> {
    for names in names.chunks(AT_ONCE) {
        let removed: Vec<_> = names
            .iter()
            .map(|(id, name)| calls.change_in(calls.pool_of(*id), name, WriteOp::new().remove()))
            .collect();
        let mut result = Ok(());
        for removed in removed {
            // All removals end, whatever the first failure was.
            result = result.and(unless_missing(removed.await.result));
        }
        result?;
    }
    Ok(())
}

async fn remove_keys(calls: &Calls, lineage: Lineage, keys: &[String]) -> Result<(), ErrorCode> {
    if keys.is_empty() {
        return Ok(());
    }
    let keys: Vec<Vec<u8>> = keys.iter().map(|key| key.clone().into_bytes()).collect();
    // The index may be missing; this does not make it.
    let op = WriteOp::new().assert_exists().remove_keys(&keys);
    unless_missing(calls.change(&ObjectName::index(lineage), op).await.result)
}

/// Success, also if the object was missing.
fn unless_missing(result: Result<usize, Code>) -> Result<(), ErrorCode> {
    match result {
        Ok(_) | Err(Code::NOT_FOUND) => Ok(()),
        Err(code) => Err(code_of(code)),
    }
}
