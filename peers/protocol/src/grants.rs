//! Volumes that a volume peer may open, if its credentials do not allow it to open all.
//!
//! Control decides; mapper and blocker enforce: the mapper at each open, the blocker at each write. Reads of data are not limited here: a
//! clone's data lies in the lineages that it descends from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ids::Lineage;

/// How a volume may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// To be read.
    Read,
    /// To be read and written.
    Write,
}

/// The granted volumes, with their access; all others must not be opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Grants(BTreeMap<Lineage, Access>);

impl Grants {
    /// Allows `access` to `lineage`, in addition to other grants.
    pub fn allow(&mut self, lineage: Lineage, access: Access) {
        let granted = self.0.entry(lineage).or_insert(access);
        *granted = access.max(*granted);
    }

    /// Whether `access` to `lineage` is granted. A search in a table: no allocation.
    #[must_use]
    pub fn permit(&self, lineage: Lineage, access: Access) -> bool {
        self.0
            .get(&lineage)
            .is_some_and(|granted| *granted >= access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_allowed_is_not_permitted() {
        let (read, written, other) = (Lineage(1), Lineage(2), Lineage(3));
        let mut grants = Grants::default();
        grants.allow(read, Access::Read);
        grants.allow(written, Access::Write);
        // Less than it has already takes nothing away.
        grants.allow(written, Access::Read);
        let permitted =
            |lineage| [Access::Read, Access::Write].map(|access| grants.permit(lineage, access));
        assert_eq!(permitted(read), [true, false]);
        assert_eq!(permitted(written), [true, true]);
        assert_eq!(permitted(other), [false, false]);
    }
}
