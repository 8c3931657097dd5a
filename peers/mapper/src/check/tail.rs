//! The sectors of a log that no replay needs.
//!
//! - One that is not whole was damaged: it is reported although nobody needs it, as no append leaves such a one.
//! - Whole ones of positions behind the last batch are what an interrupted append has left: a note.

use archipelago_protocol::Name;
use archipelago_protocol::check::FindingKind;

use super::Inspection;
use crate::disk::name_of;
use crate::failure::Outcome;
use crate::log::Log;

impl Inspection {
    /// `log` was replayed: its position is the end that was found.
    pub(super) async fn check_tail(&mut self, log: &Log, needed_by: Option<&Name>) -> Outcome<()> {
        if let Some(found) = log.check_sectors(&self.parts.pool.disk).await? {
            let why = format!(
                "{} ends at position {}, an append was interrupted: something stands at position {found}",
                name_of(log.id),
                log.position
            );
            self.find(FindingKind::Remnant, why, needed_by);
        }
        Ok(())
    }
}
