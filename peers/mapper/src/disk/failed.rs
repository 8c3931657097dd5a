//! Failures of object requests, in words.

use archipelago_protocol::object::{ObjectId, ObjectKind, ObjectOp};
use archipelago_protocol::{ErrorCode, Lineage};

use crate::failure::Failure;

/// A sync or durable write that failed leaves unknown what is durable; lack of space, or of a descriptor, is found out before.
pub(crate) fn final_sync(failure: Failure) -> Failure {
    match failure.code {
        ErrorCode::NoSpace | ErrorCode::NoDescriptors | ErrorCode::Stale => failure,
        _ => Failure {
            code: ErrorCode::SyncFailed,
            ..failure
        },
    }
}

/// An object's id for people.
pub(crate) fn name_of(id: ObjectId) -> String {
    let owner = if id.lineage == Lineage::CATALOGUE {
        "the catalogue".to_owned()
    } else {
        id.lineage.to_string()
    };
    match id.kind {
        ObjectKind::Data => format!("data of epoch {} of {owner}", id.number),
        ObjectKind::Head => format!("head of {owner}"),
        ObjectKind::Log => format!("log {} of {owner}", id.number),
        ObjectKind::Pack => format!("pack {} of {owner}", id.number),
        ObjectKind::Content => format!("content object {} of {owner}", id.number),
    }
}

pub(super) fn failed(op: ObjectOp, id: ObjectId, code: ErrorCode) -> Failure {
    if code == ErrorCode::Damaged {
        return Failure::damaged(format!("{} is damaged", name_of(id)));
    }
    if code == ErrorCode::UnsupportedFormat {
        return Failure::new(code, format!("{} has an unsupported format", name_of(id)));
    }
    let what = match op {
        ObjectOp::Read | ObjectOp::ReadSwapped => "reading",
        ObjectOp::Write => "writing",
        ObjectOp::Append => "appending to",
        ObjectOp::Seal => "sealing",
        ObjectOp::Create => "making",
        ObjectOp::Sync | ObjectOp::SyncPool => "syncing",
        ObjectOp::CompareAndSwap => "replacing",
        ObjectOp::Delete | ObjectOp::DeleteLineage | ObjectOp::Punch => "deleting",
        ObjectOp::Stat | ObjectOp::StatPool | ObjectOp::Capabilities => "looking up",
        ObjectOp::List => "listing the objects up to",
    };
    Failure::new(code, format!("{what} {} failed: {code}", name_of(id)))
}
