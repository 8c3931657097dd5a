//! What a channel may ask for, whatever its client asks.
//!
//! Metadata is the mapper's alone: who could write a head or a log would own every volume of the pool. A volume peer, which
//! shares its process with the driver that guests talk to, moves data and makes it durable. One that is less trusted than
//! the blocker writes only volumes that control has granted it. Why reads are not bound like that: `docs/decisions/`, 7.

use archipelago_protocol::object::{ObjectKind, ObjectOp, ObjectRequest};
use archipelago_protocol::{Access, Grants};

/// What the client of a channel may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The whole contract: a mapper.
    All,
    /// Reads, writes and syncs of data, and a sync of the pool: a volume peer.
    Data,
    /// The same, and no writes but to volumes that are granted: a volume peer of another user.
    Granted,
}

impl Rights {
    /// Whether `request` is within them. Looks at two bytes of it, and for [`Rights::Granted`] a write's volume up.
    #[must_use]
    pub fn allow(self, request: &ObjectRequest, grants: &Grants) -> bool {
        let of_data = request.id.kind == ObjectKind::Data;
        match (self, request.op) {
            (Rights::All, _) | (_, ObjectOp::SyncPool | ObjectOp::Capabilities) => true,
            (Rights::Granted, ObjectOp::Write) => {
                of_data && grants.permit(request.id.lineage, Access::Write)
            }
            (_, ObjectOp::Read | ObjectOp::Write | ObjectOp::Sync) => of_data,
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Lineage;
    use archipelago_protocol::object::ObjectId;

    use super::*;

    #[test]
    fn a_volume_peer_moves_data_and_asks_for_nothing_else() {
        use ObjectOp::{
            Append, Capabilities, CompareAndSwap, Create, Delete, DeleteLineage, List, Punch, Read,
            ReadSwapped, Seal, Stat, StatPool, Sync, SyncPool, Write,
        };
        let kinds = [
            ObjectKind::Data,
            ObjectKind::Head,
            ObjectKind::Log,
            ObjectKind::Pack,
            ObjectKind::Content,
        ];
        let ops = [
            (Read, true),
            (Write, true),
            (Sync, true),
            (CompareAndSwap, false),
            (ReadSwapped, false),
            (Delete, false),
            (DeleteLineage, false),
            (Punch, false),
            (Stat, false),
            (StatPool, false),
            (List, false),
            (Append, false),
            (Seal, false),
            (Create, false),
        ];
        let none = Grants::default();
        let (mut read, mut written) = (Grants::default(), Grants::default());
        read.allow(Lineage(1), Access::Read);
        read.allow(Lineage(2), Access::Write);
        written.allow(Lineage(1), Access::Write);
        for kind in kinds {
            let request = |op| {
                let (lineage, number) = (Lineage(1), 0);
                let id = ObjectId {
                    lineage,
                    kind,
                    number,
                };
                ObjectRequest::new(op, id)
            };
            for (op, of_data) in ops {
                let allowed = of_data && kind == ObjectKind::Data;
                let request = request(op);
                for (rights, grants, allowed) in [
                    (Rights::All, &none, true),
                    (Rights::Data, &none, allowed),
                    (Rights::Granted, &none, allowed && op != Write),
                    (Rights::Granted, &read, allowed && op != Write),
                    (Rights::Granted, &written, allowed),
                ] {
                    assert_eq!(
                        rights.allow(&request, grants),
                        allowed,
                        "{rights:?} for {op:?} of {kind:?} with {grants:?}"
                    );
                }
            }
            // These name no object.
            for op in [SyncPool, Capabilities] {
                assert!(Rights::Granted.allow(&request(op), &none));
            }
        }
    }
}
