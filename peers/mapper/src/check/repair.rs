//! What a repair does: it deletes, and it never writes metadata. Why each deletion is safe: `docs/doctor.md`.

use archipelago_protocol::check::FindingKind;
use archipelago_protocol::object::ObjectKind;

use super::Inspection;
use super::objects::Leaks;
use crate::disk::name_of;
use crate::failure::Outcome;

impl Inspection {
    /// Deletes what `leaks` says, if the whole pool could be read and nothing is in doubt.
    pub(super) async fn repair(&mut self, leaks: &Leaks) -> Outcome<()> {
        // A log whose end is in doubt may have held the entry of what looks leaked.
        let doubt = self
            .report
            .findings
            .iter()
            .any(|finding| finding.kind == FindingKind::Remnant);
        if !self.report.clean || doubt || self.report.more > 0 {
            return Ok(());
        }
        for (lineage, count) in &leaks.lineages {
            self.parts.pool.disk.delete_lineage(*lineage).await?;
            let what = format!("deleted {count} objects of lineage {lineage}");
            self.report.repaired.push(what);
        }
        for id in &leaks.objects {
            debug_assert!(id.kind != ObjectKind::Head);
            self.parts.pool.disk.delete_leaked(*id).await?;
            self.report
                .repaired
                .push(format!("deleted {}", name_of(*id)));
        }
        if !self.report.repaired.is_empty() {
            // Until then a power cut may bring deleted objects back.
            self.parts.pool.disk.sync_pool().await?;
        }
        Ok(())
    }
}
