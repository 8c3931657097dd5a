//! The catalogue: everything else is found through it.

use archipelago_protocol::Lineage;
use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::ObjectId;

use super::Inspection;
use crate::catalogue::stored;
use crate::failure::Outcome;
use crate::head::CatalogueHead;
use crate::log::Log;

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
        let id = ObjectId::head(Lineage::CATALOGUE);
        let Some((_, bytes)) = self.parts.pool.disk.read_swapped(id).await? else {
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
        let head = CatalogueHead::decode(&bytes)?;
        let log = ObjectId::log(Lineage::CATALOGUE, head.log_number);
        self.named.extend([id, log]);
        self.named.extend(head.packs());
        self.report.checked.logs += 1;
        let (names, log): (_, Log) = stored(&self.parts.pool, &head).await?;
        self.names = names;
        // What replay does not need hides no name.
        if let Err(failure) = self.check_tail(&log, None).await {
            self.failed(failure, None);
        }
        Ok(true)
    }
}
