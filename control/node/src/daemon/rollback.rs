//! Rollback: the content of a volume becomes that of one of its snapshots.

use archipelago_api::types::{RollbackVolume, VolumeView};
use archipelago_protocol::catalogue::{CatalogueRequest, Kind};
use archipelago_protocol::{Access, Error, ErrorCode, Name};

use super::passing::{Hindrance, wait_while_passing};
use super::pool::Pool;
use crate::fresh::fresh_lineage;

impl Pool {
    /// Rolls the detached volume `name` back to the snapshot; its name, labels and policy stay.
    pub(crate) async fn rollback(
        &self,
        name: &Name,
        request: RollbackVolume,
    ) -> Result<VolumeView, Error> {
        wait_while_passing(|| self.rollback_once(name, &request)).await
    }

    async fn rollback_once(
        &self,
        name: &Name,
        request: &RollbackVolume,
    ) -> Result<VolumeView, Hindrance> {
        let _one_at_a_time = self.lock_changes().await?;
        let entry = self.lookup_whole(name).await?;
        if entry.kind != Kind::Volume {
            let message = format!("`{name}` is frozen: only volumes are rolled back");
            return Err(Error::new(ErrorCode::Invalid, message).into());
        }
        self.check_detached(&entry)?;
        if self
            .reservations
            .exclude(entry.lineage, Access::Write, None)?
        {
            return Err(Hindrance::Passing(self.open_elsewhere(&entry)));
        }
        let rollback = CatalogueRequest::Rollback {
            name: name.clone(),
            snapshot: request.snapshot.clone(),
            lineage: fresh_lineage()?,
        };
        match self.change(rollback, name).await {
            Ok(entry) => Ok(self.view(entry)),
            Err(error) if error.code == ErrorCode::InUse => {
                Err(Hindrance::Passing(self.open_elsewhere(&entry)))
            }
            Err(error) => {
                let what = format!("`{name}` was not rolled back");
                Err(self.explain_full(&what, error).into())
            }
        }
    }
}
