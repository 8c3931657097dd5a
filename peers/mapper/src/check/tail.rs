//! What stands behind the last batch of a log.
//!
//! An interrupted append and a last batch that was damaged look alike: replay takes both for the end, because nothing
//! says that the append was acknowledged. Here the two are told apart where that is possible:
//! - one bit away from a whole batch: damage;
//! - a log in its first round holds zeros behind its end: anything else is a note, since either may be.

use archipelago_protocol::Name;
use archipelago_protocol::check::FindingKind;

use super::Inspection;
use crate::disk::name_of;
use crate::log::{BATCH_MAX, Log, is_one_bit_off};

impl Inspection {
    /// `log` was replayed: its position is the end that was found.
    pub(super) async fn judge_tail(&mut self, log: &Log, needed_by: Option<&Name>) {
        if log.used() == log.len {
            return;
        }
        let at = log.position % log.len;
        let first_round = log.position < log.len;
        let rest = usize::try_from(log.len - at).expect("a log that was replayed fits into memory");
        let len = if first_round {
            rest
        } else {
            rest.min(BATCH_MAX)
        };
        let bytes = match self.core.disk.read(log.id, at, len).await {
            Ok(bytes) => bytes,
            Err(failure) => return self.failed(failure, needed_by),
        };
        let name = name_of(log.id);
        let batch = &bytes[..len.min(BATCH_MAX)];
        if is_one_bit_off(batch, log.id.lineage, log.position) {
            let why = format!(
                "{name} is damaged: its last batch, at position {}, is whole but for one bit",
                log.position
            );
            self.find(FindingKind::Damaged, why, needed_by);
        } else if first_round && let Some(found) = bytes.iter().position(|byte| *byte != 0) {
            let why = format!(
                "{name} ends at position {}, but is not empty at {}: an append was interrupted, or its last batch is damaged",
                log.position,
                at + found as u64
            );
            self.find(FindingKind::Remnant, why, needed_by);
        }
    }
}
