//! What the client of a channel may request.
//!
//! Only the mapper may access metadata: the writer of a head or a log could control every volume of the pool. A volume peer, which shares
//! its process with the driver that guests talk to, moves data and makes it durable. If it is less trusted than the blocker, it writes only
//! volumes that control has granted it. Why reads are not limited in this way: `docs/decisions/`, 7.
//!
//! Rights are checked when an object is opened; then requests on its handle need no check.

use archipelago_protocol::handle::{HandleAccess, OpenObject};
use archipelago_protocol::object::{ObjectKind, ObjectOp};
use archipelago_protocol::{Access, Grants};

/// What the client of a channel may request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// The whole contract: a mapper.
    All,
    /// Reads, writes and syncs of data, and a sync of the pool: a volume peer.
    Data,
    /// As `Data`, but writes and syncs only of granted volumes: a volume peer of another user.
    Granted,
}

impl Rights {
    /// Whether the client may open `object`, and keep it open.
    #[must_use]
    pub fn allow_open(self, object: &OpenObject, grants: &Grants) -> bool {
        let of_data = object.id.kind == ObjectKind::Data;
        match (self, object.access) {
            (Rights::All, _) => true,
            (_, HandleAccess::Metadata) => false,
            (Rights::Granted, HandleAccess::Write) => {
                of_data && grants.permit(object.id.lineage, Access::Write)
            }
            (_, HandleAccess::Read | HandleAccess::Write) => of_data,
        }
    }

    /// Whether the client may request `op`, which concerns the pool.
    #[must_use]
    pub fn allow_on_pool(self, op: ObjectOp) -> bool {
        self == Rights::All || matches!(op, ObjectOp::SyncPool | ObjectOp::Capabilities)
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::object::ObjectId;
    use archipelago_protocol::{Lineage, ObjectSize};

    use super::*;

    #[test]
    fn a_volume_peer_opens_data_and_nothing_else() {
        let kinds = [
            ObjectKind::Data,
            ObjectKind::Head,
            ObjectKind::Log,
            ObjectKind::Pack,
            ObjectKind::Content,
        ];
        let accesses = [
            (HandleAccess::Read, true),
            (HandleAccess::Write, true),
            (HandleAccess::Metadata, false),
        ];
        let none = Grants::default();
        let (mut read, mut written) = (Grants::default(), Grants::default());
        read.allow(Lineage(1), Access::Read);
        read.allow(Lineage(2), Access::Write);
        written.allow(Lineage(1), Access::Write);
        for kind in kinds {
            for (access, of_data) in accesses {
                let object = OpenObject {
                    id: ObjectId {
                        lineage: Lineage(1),
                        kind,
                        number: 0,
                    },
                    object_size: ObjectSize::DEFAULT,
                    access,
                    token: Default::default(),
                };
                let allowed = of_data && kind == ObjectKind::Data;
                let is_read = access == HandleAccess::Read;
                for (rights, grants, allowed) in [
                    (Rights::All, &none, true),
                    (Rights::Data, &none, allowed),
                    (Rights::Granted, &none, allowed && is_read),
                    (Rights::Granted, &read, allowed && is_read),
                    (Rights::Granted, &written, allowed),
                ] {
                    assert_eq!(
                        rights.allow_open(&object, grants),
                        allowed,
                        "{rights:?} opens {kind:?} for {access:?} with {grants:?}"
                    );
                }
            }
        }
        use ObjectOp::{Capabilities, DeleteLineage, List, StatPool, SyncPool};
        for op in [DeleteLineage, List, StatPool, SyncPool, Capabilities] {
            assert!(Rights::All.allow_on_pool(op));
            for rights in [Rights::Data, Rights::Granted] {
                assert_eq!(
                    rights.allow_on_pool(op),
                    matches!(op, SyncPool | Capabilities),
                    "{rights:?} {op:?}"
                );
            }
        }
    }
}
