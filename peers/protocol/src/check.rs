//! What a check of a pool found, for people and scripts. Asked for by [`crate::catalogue::CatalogueRequest::Check`].

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::ids::Name;

/// Findings that are listed; more are counted only. A damaged page of a parent may be found very often.
pub const FINDINGS_MAX: usize = 1000;

/// What kind of thing was found.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Metadata that cannot be read, fails its checksum or contradicts itself.
    Damaged,
    /// An object that metadata names is not there, or is shorter than it must be.
    Missing,
    /// Metadata of another version of the program, or with features that this one does not know. Whether it is in order, this program
    /// cannot check.
    Unsupported,
    /// Sectors behind the end of a log: what an interrupted append leaves. A note.
    Remnant,
    /// Objects that nothing names: they take space. A note.
    Leaked,
    /// A file of somebody else's, where a directory of the pool belongs. A note.
    Foreign,
}

impl FindingKind {
    /// Whether it is no note: something is wrong, or could not be checked.
    #[must_use]
    pub fn is_fault(self) -> bool {
        self.is_damage() || self == FindingKind::Unsupported
    }

    /// Whether something that was acknowledged may be lost.
    #[must_use]
    pub fn is_damage(self) -> bool {
        matches!(self, FindingKind::Damaged | FindingKind::Missing)
    }
}

/// One thing that was found.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// What and why, naming the object.
    pub message: String,
    /// A volume, snapshot or image that needs it; others may too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_by: Option<Name>,
}

/// How much was looked at.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Volumes, snapshots and images.
    pub entries: u64,
    /// Heads, the catalogue's included.
    pub heads: u64,
    /// Logs, likewise.
    pub logs: u64,
    /// Map pages.
    pub pages: u64,
    /// Objects with data that a map names.
    pub data_objects: u64,
    /// Objects in the pool.
    pub objects: u64,
}

/// What a check found.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whether nothing is damaged, missing or of an unsupported format. Notes do not count.
    pub clean: bool,
    /// What was found, up to [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Findings beyond.
    pub more: u64,
    /// What was looked at.
    pub checked: Checked,
    /// What was repaired, if that was asked for.
    pub repaired: Vec<String>,
}

impl Report {
    /// What the command that made the check ends with: nothing if the pool is clean. Damage counts for more than a format
    /// that is not supported.
    #[must_use]
    pub fn fault(&self) -> Option<ErrorCode> {
        if self.clean {
            return None;
        }
        let unsupported = |finding: &Finding| finding.kind == FindingKind::Unsupported;
        let damaged = |finding: &Finding| finding.kind.is_damage();
        let only_unsupported =
            self.findings.iter().any(unsupported) && !self.findings.iter().any(damaged);
        Some(match only_unsupported {
            true => ErrorCode::UnsupportedFormat,
            false => ErrorCode::Damaged,
        })
    }

    /// Adds a finding.
    pub fn add(&mut self, finding: Finding) {
        self.clean &= !finding.kind.is_fault();
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.more += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_no_damage_and_findings_are_bounded() {
        let finding = |kind| Finding {
            kind,
            message: "log 1 of the catalogue".to_owned(),
            needed_by: None,
        };
        let mut report = Report {
            clean: true,
            ..Report::default()
        };
        for _ in 0..=FINDINGS_MAX {
            report.add(finding(FindingKind::Leaked));
        }
        report.add(finding(FindingKind::Remnant));
        assert!(report.clean);
        assert_eq!((report.findings.len(), report.more), (FINDINGS_MAX, 2));
        assert_eq!(report.fault(), None);
        report.findings.truncate(1);
        report.add(finding(FindingKind::Unsupported));
        assert!(!report.clean);
        assert_eq!(report.fault(), Some(ErrorCode::UnsupportedFormat));
        report.add(finding(FindingKind::Missing));
        assert_eq!(report.fault(), Some(ErrorCode::Damaged));
    }

    #[test]
    fn what_is_damaged_or_missing_is_damage() {
        use FindingKind::{Damaged, Foreign, Leaked, Missing, Remnant, Unsupported};
        let kinds = [Damaged, Missing, Unsupported, Remnant, Leaked, Foreign];
        let damage = kinds.map(FindingKind::is_damage);
        assert_eq!(damage, [true, true, false, false, false, false]);
        let faults = kinds.map(FindingKind::is_fault);
        assert_eq!(faults, [true, true, true, false, false, false]);
    }
}
