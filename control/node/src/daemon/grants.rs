//! Volumes that an endpoint with its own user may open: attached volumes, imports, and volumes that processes have open over segment
//! channels.
//!
//! Invariants
//! - A grant is made before the endpoint is asked to open the volume, and withdrawn after the endpoint has closed it.
//! - A grant is written to a file first, then sent to blocker and mapper, so that an incarnation of theirs that starts in between reads it
//!   from the file. They accept no client before they have read the grants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use archipelago_api::durable;
use archipelago_api::layout::path_error;
use archipelago_api::types::Attachment;
use archipelago_protocol::{Access, Error, Grants, Lineage};

/// The granted volumes.
#[derive(Debug)]
pub(crate) struct Granted {
    path: PathBuf,
    /// Attached, or being imported.
    held: BTreeMap<Lineage, Access>,
    /// Volumes open over segment channels according to the endpoint's last report, and those opened since. The end of a channel is not
    /// reported.
    opened: Vec<(Lineage, Access)>,
}

impl Granted {
    /// The grants of a daemon that starts: one for each attached volume.
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
            opened: Vec::new(),
        }
    }

    /// Grants `access` to `lineage` until [`Granted::release`].
    pub(crate) fn hold(&mut self, lineage: Lineage, access: Access) {
        self.held.insert(lineage, access);
    }

    /// Withdraws the grant of [`Granted::hold`].
    pub(crate) fn release(&mut self, lineage: Lineage) {
        self.held.remove(&lineage);
    }

    /// Grants `access` to `lineage` until the endpoint reports it as closed. `still_open` is the endpoint's current list.
    pub(crate) fn open(&mut self, lineage: Lineage, access: Access, still_open: &[Lineage]) {
        self.opened.retain(|(known, _)| still_open.contains(known));
        // A reader, which will be refused, must not reduce the writer's access.
        if !self.opened.contains(&(lineage, access)) {
            self.opened.push((lineage, access));
        }
    }

    fn grants(&self) -> Grants {
        let mut grants = Grants::default();
        for (lineage, access) in &self.held {
            grants.allow(*lineage, *access);
        }
        for (lineage, access) in &self.opened {
            grants.allow(*lineage, *access);
        }
        grants
    }

    /// Writes the grants to the file, for peers that start.
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
    fn what_is_held_stays_and_what_is_not_open_any_more_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let mut granted = Granted::new(dir.path().join("grants.json"), std::iter::empty());
        let (written, read, opened) = (Lineage(1000), Lineage(1001), Lineage(1002));
        granted.hold(written, Access::Write);
        granted.hold(read, Access::Read);
        granted.open(written, Access::Read, &[]);
        assert!(
            granted.grants().permit(written, Access::Write),
            "exported too"
        );
        granted.open(opened, Access::Write, &[written]);
        granted.open(opened, Access::Read, &[written, opened]);
        granted.open(Lineage(1), Access::Read, &[written, opened]);
        let grants = granted.write().unwrap();
        assert!(grants.permit(opened, Access::Write), "still open");
        assert!(grants.permit(Lineage(1), Access::Read));
        assert!(!grants.permit(Lineage(1), Access::Write));
        granted.release(written);
        granted.open(Lineage(2), Access::Read, &[Lineage(1)]);
        let grants = granted.write().unwrap();
        assert!(!grants.permit(opened, Access::Read), "closed");
        assert!(!grants.permit(written, Access::Read), "released and closed");
        assert!(grants.permit(read, Access::Read) && !grants.permit(read, Access::Write));
        let bytes = std::fs::read(dir.path().join("grants.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Grants>(&bytes).unwrap(), grants);
    }
}
