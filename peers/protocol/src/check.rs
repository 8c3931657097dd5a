//! The findings of a check of a pool. Requested by [`crate::catalogue::CatalogueRequest::Check`].

use serde::{Deserialize, Serialize};

use crate::error::ErrorCode;
use crate::ids::Name;

/// Findings that are listed; more are counted only. A damaged page of a parent may be found very often.
pub const FINDINGS_MAX: usize = 1000;

/// The kind of a finding.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// Metadata that cannot be read, fails its checksum or contradicts itself.
    Damaged,
    /// An object that metadata names does not exist, or is too short.
    Missing,
    /// Metadata of another version of the program, or with features that this one does not know. Whether it is in order, this program
    /// cannot check.
    Unsupported,
    /// Sectors behind the end of a log, from an interrupted append. A note.
    Remnant,
    /// Objects that no metadata names: they take space. A note.
    Leaked,
    /// A foreign file, where a directory of the pool belongs. A note.
    Foreign,
}

impl FindingKind {
    /// Whether it is more than a note: something is wrong, or could not be checked.
    #[must_use]
    pub fn is_fault(self) -> bool {
        self.is_damage() || self == FindingKind::Unsupported
    }

    /// Whether acknowledged data may be lost.
    #[must_use]
    pub fn is_damage(self) -> bool {
        matches!(self, FindingKind::Damaged | FindingKind::Missing)
    }
}

/// A finding.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Its kind.
    pub kind: FindingKind,
    /// What was found and why it is wrong, naming the object.
    pub message: String,
    /// A volume, snapshot or image that needs the object; others may too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needed_by: Option<Name>,
}

/// How much was checked.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Checked {
    /// Volumes, snapshots and images.
    pub entries: u64,
    /// Heads, the catalogue's included.
    pub heads: u64,
    /// Logs, the catalogue's included.
    pub logs: u64,
    /// Map pages.
    pub pages: u64,
    /// Objects with data that a map names.
    pub data_objects: u64,
    /// Objects in the pool.
    pub objects: u64,
}

/// The result of a check.
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Whether nothing is damaged, missing or of an unsupported format. Notes do not count.
    pub clean: bool,
    /// The findings, up to [`FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Number of further findings.
    pub more: u64,
    /// How much was checked.
    pub checked: Checked,
    /// What was repaired, if that was requested.
    pub repaired: Vec<String>,
}

impl Report {
    /// The error with which the command of the check ends; `None` if the pool is clean. Damage takes precedence over an unsupported format.
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
