//! What a channel may ask for, whatever its client asks.
//!
//! A volume peer that is less trusted than the mapper opens only volumes that control has granted it. Whatever else it asks
//! for names a session, and sessions begin with an open.

use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapRequest};
use archipelago_protocol::{Access, Grants, Lineage};

/// What the client of a channel may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Every request: a volume peer of the same user.
    All,
    /// Opens of volumes that are granted, and what follows them: a volume peer of another user.
    Granted,
}

impl Rights {
    /// Whether `request` is within the rights.
    #[must_use]
    pub fn allow(self, request: &MapRequest, grants: &Grants) -> bool {
        if self == Rights::All || request.op != MapOp::Open {
            return true;
        }
        let access = if request.flags & FLAG_WRITE == 0 {
            Access::Read
        } else {
            Access::Write
        };
        let [high, low] = request.operand;
        grants.permit(Lineage::from_words(high, low), access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_needs_a_grant_of_its_access_and_other_requests_need_none() {
        let mut grants = Grants::default();
        grants.allow(Lineage(1), Access::Read);
        grants.allow(Lineage(2), Access::Write);
        for (lineage, write, granted) in [
            (1, false, true),
            (1, true, false),
            (2, false, true),
            (2, true, true),
            (3, false, false),
        ] {
            let request = MapRequest::open(Lineage(lineage), write);
            assert_eq!(Rights::Granted.allow(&request, &grants), granted);
            assert!(Rights::All.allow(&request, &grants));
        }
        let close = MapRequest::new(MapOp::Close, 1);
        assert!(Rights::Granted.allow(&close, &Grants::default()));
    }
}
