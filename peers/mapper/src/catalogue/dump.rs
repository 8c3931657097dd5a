//! The catalogue as it was at one position of the log, taken in parts while changes go on.
//!
//! Invariants
//! - What was taken and what is still to come are together what was there at the beginning: each lineage once, in their order.
//! - It keeps what changes before it is taken, no more. The log has no room for more changes than one circle, until the dump is
//!   stored.

use std::collections::{BTreeMap, VecDeque};

use archipelago_protocol::Lineage;

use super::incarnations::Incarnation;
use super::record::Change;

/// A dump under way.
#[derive(Debug)]
pub(super) struct Dump {
    /// The last lineage that was taken.
    last: Option<Lineage>,
    /// What was there of lineages behind it that have changed since; `None`: nothing.
    before: BTreeMap<Lineage, Option<Change>>,
    /// Come last.
    incarnations: VecDeque<Incarnation>,
}

impl Dump {
    pub(super) fn new(incarnations: VecDeque<Incarnation>) -> Self {
        Dump {
            last: None,
            before: BTreeMap::new(),
            incarnations,
        }
    }

    /// `lineage`, of which there is what `now` says, is about to change.
    pub(super) fn keep(&mut self, lineage: Lineage, now: impl FnOnce() -> Option<Change>) {
        if self.last < Some(lineage) {
            self.before.entry(lineage).or_insert_with(now);
        }
    }

    /// The next part; `None`: that was all. `behind` finds the first lineage behind another one of which there is something now, `now` what
    /// there is of it.
    pub(super) fn next(
        &mut self,
        behind: impl Fn(Option<Lineage>) -> Option<Lineage>,
        now: impl Fn(Lineage) -> Option<Change>,
    ) -> Option<Change> {
        loop {
            let changed = self.before.first_key_value().map(|(lineage, _)| *lineage);
            let Some(next) = [changed, behind(self.last)].into_iter().flatten().min() else {
                return self.incarnations.pop_front().map(Change::Begin);
            };
            self.last = Some(next);
            let found = self.before.remove(&next).unwrap_or_else(|| now(next));
            if found.is_some() {
                return found;
            }
        }
    }
}
