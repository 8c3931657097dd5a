//! What a guest may read: each 512-byte sector is a register, each write a value of its own.
//!
//! A value may be seen while its write was submitted and no write that began after its answer was itself answered before the
//! reader began.

use super::world::{SECTOR, SIZE};

/// A write to a sector.
#[derive(Debug, Clone, Copy)]
struct Version {
    value: u64,
    submitted: u64,
    /// When it was answered, well or not.
    answered: Option<u64>,
    /// Answered well and not lost since: what came before is gone.
    holds: bool,
}

/// All writes to the sectors of a volume.
pub(crate) struct History {
    sectors: Vec<Vec<Version>>,
}

fn index(sector: u64) -> usize {
    usize::try_from(sector).unwrap()
}

impl History {
    /// Sectors that hold `values` from the beginning.
    pub(crate) fn new(values: impl Iterator<Item = u64>) -> Self {
        let first = |value| {
            vec![Version {
                value,
                submitted: 0,
                answered: Some(0),
                holds: true,
            }]
        };
        History {
            sectors: values.map(first).collect(),
        }
    }

    /// A write of `value` was submitted.
    pub(crate) fn submitted(&mut self, sector: u64, value: u64, now: u64) {
        self.sectors[index(sector)].push(Version {
            value,
            submitted: now,
            answered: None,
            holds: false,
        });
    }

    /// The write that was submitted at `submitted` was answered.
    pub(crate) fn answered(&mut self, sector: u64, submitted: u64, now: u64, holds: bool) {
        let version = self.sectors[index(sector)]
            .iter_mut()
            .find(|version| version.submitted == submitted)
            .unwrap();
        version.answered = Some(now);
        version.holds = holds;
    }

    /// Writes that were not answered before `flushed` may be lost, or not.
    pub(crate) fn lose(&mut self, flushed: u64) {
        for version in self.sectors.iter_mut().flatten() {
            version.holds &= version.answered.is_some_and(|end| end < flushed);
        }
    }

    /// Whether `value` may be in `sector` for a reader that began at `begun` and ended at `until`.
    fn may_be(&self, sector: u64, value: u64, begun: u64, until: u64) -> bool {
        let versions = &self.sectors[index(sector)];
        versions
            .iter()
            .filter(|version| version.value == value && version.submitted <= until)
            .any(|version| {
                let Some(answered) = version.answered else {
                    return true;
                };
                !versions.iter().any(|later| {
                    later.holds
                        && later.submitted > answered
                        && later.answered.is_some_and(|end| end < begun)
                })
            })
    }

    /// # Panics
    /// If `bytes` are not what a reader of `sector` may see who began at `begun` and ended at `until`.
    pub(crate) fn check(&self, what: &str, sector: u64, bytes: &[u8], begun: u64, until: u64) {
        let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(
            bytes.chunks(8).all(|word| word == &bytes[..8]),
            "{what}: sector {sector} is torn"
        );
        let versions = &self.sectors[index(sector)];
        assert!(
            self.may_be(sector, value, begun, until),
            "{what}: sector {sector} holds {value}, begun {begun}, until {until}: {versions:?}"
        );
    }

    /// [`History::check`] of every sector of an `image`.
    pub(crate) fn check_image(&self, what: &str, image: &[u8], begun: u64, until: u64) {
        for sector in 0..SIZE / SECTOR {
            let at = index(sector * SECTOR);
            self.check(what, sector, &image[at..at + 512], begun, until);
        }
    }

    /// # Panics
    /// If `sector` of an `image` holds nothing as new as a write submitted at `submitted`, now being `now`.
    pub(crate) fn check_reached(&self, sector: u64, image: &[u8], submitted: u64, now: u64) {
        let at = index(sector * SECTOR);
        let value = u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
        let versions = &self.sectors[index(sector)];
        let reached = versions.iter().any(|version| {
            version.value == value
                && version
                    .answered
                    .is_none_or(|end| end >= submitted && end <= now)
        });
        assert!(
            reached,
            "durable write: sector {sector} holds {value}: {versions:?}"
        );
    }
}
