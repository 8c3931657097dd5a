//! The catalogue: everything else is found through it.

use archipelago_protocol::Lineage;
use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::ObjectId;

use super::Inspection;
use crate::catalogue::{Loaded, SyncLog, load};
use crate::failure::Outcome;

impl Inspection {
    /// Reads the catalogue as it is stored. `false`: it cannot be used, and what was found says so.
    pub(super) async fn read_catalogue(&mut self) -> bool {
        let parts = std::rc::Rc::clone(&self.parts);
        let _alone = parts.catalogue.stand_still().await;
        let read = self.read_stored().await;
        match read {
            Ok(usable) => usable,
            Err(failure) => {
                self.failed(failure, None);
                false
            }
        }
    }

    async fn read_stored(&mut self) -> Outcome<bool> {
        let Some(Loaded {
            head, names, log, ..
        }) = load(&self.parts.pool, SyncLog::No).await?
        else {
            let holds_volumes = self
                .listed
                .iter()
                .any(|object| object.lineage != Lineage::CATALOGUE);
            if holds_volumes {
                let why = "the head of the catalogue is missing, but the pool holds volumes";
                self.find(FindingKind::Missing, why, None);
            }
            // A pool that was never served, or whose first start was interrupted: there is nothing to check.
            return Ok(false);
        };
        self.report.checked.heads += 1;
        self.named
            .extend([ObjectId::head(Lineage::CATALOGUE), log.id]);
        self.named.extend(head.packs());
        self.report.checked.logs += 1;
        self.names = names;
        // What replay does not need hides no name.
        if let Err(failure) = self.check_tail(&log, None).await {
            self.failed(failure, None);
        }
        Ok(true)
    }
}
