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

    /// The access for which a process has had `lineage` open without a break, with the reservation `own`. It may ask for more.
    ///
    /// # Errors
    /// [`ErrorCode::Stale`] if others may have had it since.
    pub(crate) fn access_kept(&self, lineage: Lineage, own: &str) -> Result<Access, Error> {
        let kept = self.reservations.access_kept(own, lineage)?;
        kept.filter(|access| self.may_keep(lineage, *access))
            .ok_or_else(|| {
                let message = "its reservation is gone: others may have had it open since";
                Error::new(ErrorCode::Stale, message).with_hint("open it anew")
            })
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
