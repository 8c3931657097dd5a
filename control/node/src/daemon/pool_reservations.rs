//! Which process keeps a volume of a pool while the data process is away: the rules for `reservations`.

use std::path::PathBuf;

use archipelago_protocol::{Access, Error, ErrorCode, Lineage};

use super::local::is_local;
use super::pool::Pool;

impl Pool {
    /// Whether nobody opens `lineage` without the daemon, so that a process can keep it open for `access` while its data process is away.
    fn may_keep(&self, lineage: Lineage, access: Access) -> bool {
        let attachments = self.attachments();
        let mut served = attachments
            .of_volume(&self.name, lineage)
            .filter(|one| !is_local(&one.endpoint));
        served.all(|one| access == Access::Read && one.read_only)
    }

    /// Refuses a process that has had `lineage` open, with the reservation `own`, if others may have had it since.
    ///
    /// # Errors
    /// [`ErrorCode::Stale`].
    pub(crate) fn check_kept(
        &self,
        lineage: Lineage,
        access: Access,
        own: &str,
    ) -> Result<(), Error> {
        let is_kept = self.reservations.is_reservation(own, lineage, access)?;
        if is_kept && self.may_keep(lineage, access) {
            return Ok(());
        }
        let message = "its reservation is gone: others may have had it open since";
        Err(Error::new(ErrorCode::Stale, message).with_hint("open it anew"))
    }

    /// A reservation for the process that has just opened `lineage`; `None` if others may open it without the daemon, or the
    /// run directory has no room: then it is not kept.
    pub(crate) fn reserve(&self, lineage: Lineage, access: Access) -> Option<PathBuf> {
        if !self.may_keep(lineage, access) {
            return None;
        }
        let made = self.reservations.make(lineage, access);
        made.inspect_err(|error| tracing::warn!("{lineage} is not kept for its process: {error}"))
            .ok()
    }
}
