//! What an endpoint with a user of its own may open: what is attached, and what is copied in bulk.
//!
//! Invariants
//! - Granted before the endpoint is told to open it, withdrawn after the endpoint has closed it.
//! - Written to a file first, then told to blocker and mapper: an incarnation of theirs that starts in between has read it.
//!   They serve nobody before they know what the endpoint may do.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use archipelago_api::layout::path_error;
use archipelago_api::types::Attachment;
use archipelago_protocol::{Access, Error, Grants, Lineage};

use crate::durable;

/// Exports that are remembered: as many as the endpoint serves at a time. Nobody says when one has ended; one that is
/// forgotten goes on, but not in the mapper's next incarnation.
const EXPORTS_MAX: usize = 64;

/// The volumes that are granted.
#[derive(Debug)]
pub(crate) struct Granted {
    path: PathBuf,
    /// Attached, or being imported.
    held: BTreeMap<Lineage, Access>,
    exports: VecDeque<Lineage>,
}

impl Granted {
    /// What a daemon that starts grants: what is attached.
    pub(crate) fn new<'a>(
        path: PathBuf,
        attachments: impl Iterator<Item = &'a Attachment>,
    ) -> Granted {
        let held = attachments.map(|attachment| {
            let access = if attachment.read_only {
                Access::Read
            } else {
                Access::Write
            };
            (attachment.lineage, access)
        });
        Granted {
            path,
            held: held.collect(),
            exports: VecDeque::new(),
        }
    }

    /// Grants `access` to `lineage` until [`Granted::release`].
    pub(crate) fn hold(&mut self, lineage: Lineage, access: Access) {
        self.held.insert(lineage, access);
    }

    /// Takes back what [`Granted::hold`] gave.
    pub(crate) fn release(&mut self, lineage: Lineage) {
        self.held.remove(&lineage);
    }

    /// Grants reading `lineage` for a while.
    pub(crate) fn export(&mut self, lineage: Lineage) {
        self.exports.retain(|known| *known != lineage);
        if self.exports.len() == EXPORTS_MAX {
            self.exports.pop_front();
        }
        self.exports.push_back(lineage);
    }

    fn grants(&self) -> Grants {
        let mut grants = Grants::default();
        for (lineage, access) in &self.held {
            grants.allow(*lineage, *access);
        }
        for lineage in &self.exports {
            grants.allow(*lineage, Access::Read);
        }
        grants
    }

    /// Writes them to the file, for peers that start.
    pub(crate) fn write(&self) -> Result<Grants, Error> {
        let grants = self.grants();
        let bytes = serde_json::to_vec(&grants).expect("lineages are strings");
        durable::replace(&self.path, &bytes).map_err(|error| path_error(&self.path, &error))?;
        Ok(grants)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_stays_and_the_oldest_export_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut granted = Granted::new(dir.path().join("grants.json"), std::iter::empty());
        let (written, read) = (Lineage(1000), Lineage(1001));
        granted.hold(written, Access::Write);
        granted.hold(read, Access::Read);
        granted.export(written);
        assert!(
            granted.grants().permit(written, Access::Write),
            "exported too"
        );
        let many = EXPORTS_MAX as u128 + 1;
        for lineage in [read].into_iter().chain((1..many).map(Lineage)) {
            granted.export(lineage);
        }
        // The same again is the newest, not another one.
        granted.export(Lineage(1));
        granted.export(Lineage(many));
        let grants = granted.write().unwrap();
        assert!(grants.permit(written, Access::Write));
        assert!(grants.permit(read, Access::Read) && !grants.permit(read, Access::Write));
        assert!(!grants.permit(Lineage(2), Access::Read), "the oldest");
        for kept in [1, 3, many] {
            assert!(grants.permit(Lineage(kept), Access::Read), "{kept}");
        }
        granted.release(written);
        let grants = granted.write().unwrap();
        assert!(!grants.permit(written, Access::Read));
        let bytes = std::fs::read(dir.path().join("grants.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Grants>(&bytes).unwrap(), grants);
    }
}
