//! Limits how often an event is written, so that a permanent fault, or a guest that repeats one, does not fill a disk.
//!
//! | events | are written |
//! |---|---|
//! | equal ones | the first at once, then one line per [`QUIET`] with the number of events between |
//! | different ones from one place in the code | [`BURST`] at once, then one per [`REFILL`]; the next line contains the number of suppressed ones |

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use tracing::Level;
use tracing::callsite::Identifier;

/// Time between two lines of equal events: a permanent fault writes 8,640 lines a day, some 1.5 MB.
const QUIET: Duration = Duration::from_secs(10);
/// Number of different texts that are stored: those of some places in the code for each of some dozens of volumes. 128 KiB with texts of
/// [`TEXT_LEN_MAX`].
const TEXTS_MAX: usize = 256;
/// Bytes of a text that are stored for the line with its count.
const TEXT_LEN_MAX: usize = 512;
/// Lines from one place in the code at once: one for each of as many attached volumes.
const BURST: u32 = 1000;
/// Time until another line is allowed.
const REFILL: Duration = Duration::from_secs(1);

/// The recent events.
#[derive(Debug, Default)]
pub(super) struct Limits {
    texts: Vec<Text>,
    places: HashMap<Identifier, Place>,
}

/// A count that must be written.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    pub(super) level: Level,
    pub(super) text: String,
    pub(super) times: u64,
}

#[derive(Debug)]
struct Text {
    hash: u64,
    level: Level,
    text: String,
    written: Duration,
    repeated: u64,
}

#[derive(Debug)]
struct Place {
    left: u32,
    refilled: Duration,
    kept_back: u64,
}

impl Limits {
    /// Whether an event of `place` may be written at `now`. If so, returns how many were suppressed since the last one.
    pub(super) fn admit(
        &mut self,
        now: Duration,
        place: Identifier,
        level: Level,
        text: &str,
    ) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        (&place, text).hash(&mut hasher);
        let hash = hasher.finish();
        if let Some(known) = self.texts.iter_mut().find(|known| known.hash == hash) {
            if now.saturating_sub(known.written) < QUIET {
                known.repeated += 1;
                return None;
            }
            known.written = now;
            return Some(std::mem::take(&mut known.repeated));
        }
        let place = self.places.entry(place).or_insert(Place {
            left: BURST,
            refilled: now,
            kept_back: 0,
        });
        let kept_back = place.take(now)?;
        let mut end = text.len().min(TEXT_LEN_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let fresh = Text {
            hash,
            level,
            text: text[..end].to_owned(),
            written: now,
            repeated: 0,
        };
        if self.texts.len() < TEXTS_MAX {
            self.texts.push(fresh);
        } else if let Some(oldest) = self.texts.iter_mut().min_by_key(|known| known.written) {
            // Its count is lost: that is one line more or less.
            *oldest = fresh;
        }
        Some(kept_back)
    }

    /// The counts of events that were repeated, but not within the last [`QUIET`].
    pub(super) fn due(&mut self, now: Duration) -> Vec<Repeated> {
        let due =
            |known: &&mut Text| known.repeated > 0 && now.saturating_sub(known.written) >= QUIET;
        self.texts
            .iter_mut()
            .filter(due)
            .map(|known| {
                known.written = now;
                Repeated {
                    level: known.level,
                    text: known.text.clone(),
                    times: std::mem::take(&mut known.repeated),
                }
            })
            .collect()
    }
}

impl Place {
    fn take(&mut self, now: Duration) -> Option<u64> {
        let fresh = now.saturating_sub(self.refilled).as_secs() / REFILL.as_secs();
        let fresh = u32::try_from(fresh).unwrap_or(u32::MAX);
        if fresh > 0 {
            self.left = self.left.saturating_add(fresh).min(BURST);
            self.refilled = now;
        }
        if self.left == 0 {
            self.kept_back += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.kept_back))
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::{Callsite, DefaultCallsite};
    use tracing::metadata;

    use super::*;

    fn place() -> Identifier {
        static CALLSITE: DefaultCallsite = DefaultCallsite::new(&METADATA);
        static METADATA: tracing::Metadata<'static> = metadata! {
            name: "test", target: "test", level: Level::WARN, fields: &[],
            callsite: &CALLSITE, kind: tracing::metadata::Kind::EVENT
        };
        CALLSITE.metadata().callsite()
    }

    #[test]
    fn equal_events_are_written_once_and_then_counted() {
        let mut limits = Limits::default();
        let mut admit = |ms: u64, text: &str| {
            limits.admit(Duration::from_millis(ms), place(), Level::WARN, text)
        };
        assert_eq!(admit(0, "a"), Some(0));
        let written = (1..1000).filter(|ms| admit(*ms, "a").is_some()).count();
        assert_eq!(written, 0);
        assert_eq!(admit(1000, "b"), Some(0), "another one");
        assert_eq!(admit(10_000, "a"), Some(999));
        assert_eq!(admit(10_001, "a"), None);
        assert_eq!(limits.due(Duration::from_secs(19)), []);
        let due = Repeated {
            level: Level::WARN,
            text: "a".to_owned(),
            times: 1,
        };
        assert_eq!(limits.due(Duration::from_secs(20)), [due]);
        assert_eq!(limits.due(Duration::from_secs(40)), []);
    }

    #[test]
    fn different_events_of_one_place_have_a_rate() {
        let mut limits = Limits::default();
        let day = 86_400_u64;
        let written = (0..day * 10)
            .filter(|number| {
                let now = Duration::from_millis(number * 100);
                let text = format!("process {number}");
                limits.admit(now, place(), Level::INFO, &text).is_some()
            })
            .count() as u64;
        assert!(written <= u64::from(BURST) + day, "{written}");
        assert_eq!(limits.texts.len(), TEXTS_MAX);
        let next = limits.admit(
            Duration::from_secs(day + 5),
            place(),
            Level::INFO,
            "after that",
        );
        assert!(next.is_some_and(|kept_back| kept_back > 0), "{next:?}");
    }
}
