//! The history of one sector: which of its writes a read may still find.

/// Stamp of a write; 0: zeros.
pub type Value = u32;

/// Order of events in one run.
pub type Tick = u64;

/// What ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Crash {
    /// All processes died; memory shared with the kernel and what was written stay.
    Kill,
    /// Of what was not durable, any part is gone.
    PowerCut,
}

/// What is known of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    InFlight,
    Acknowledged,
    /// Acknowledged, then a sync failed that may have taken it away, and nobody was told yet.
    Doubtful,
    /// It failed, or was reported as lost: may be there or not.
    Failed,
    Flushed,
}

impl Fate {
    pub(super) fn is_certain(self) -> bool {
        matches!(self, Fate::Acknowledged | Fate::Flushed)
    }

    pub(super) fn is_flushed(self) -> bool {
        self == Fate::Flushed
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) value: Value,
    pub(super) started: Tick,
    pub(super) ended: Tick,
    pub(super) fate: Fate,
}

impl Write {
    pub(super) fn settled(value: Value) -> Self {
        Write {
            value,
            started: 0,
            ended: 0,
            fate: Fate::Flushed,
        }
    }

    /// Whether `later` has certainly followed this one.
    pub(super) fn is_before(&self, later: &Write) -> bool {
        self.fate != Fate::InFlight && later.started > self.ended
    }
}

/// One sector's history: the writes that matter still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sector {
    pub(super) first: Write,
    pub(super) rest: Vec<Write>,
}

impl Default for Sector {
    fn default() -> Self {
        Sector::pinned(0)
    }
}

impl Sector {
    pub(super) fn pinned(value: Value) -> Self {
        Sector {
            first: Write::settled(value),
            rest: Vec::new(),
        }
    }

    pub(super) fn writes(&self) -> impl Iterator<Item = &Write> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    pub(super) fn writes_mut(&mut self) -> impl Iterator<Item = &mut Write> {
        std::iter::once(&mut self.first).chain(&mut self.rest)
    }

    /// Writes that no other for which `holds` has followed.
    pub(super) fn last(&self, holds: impl Fn(Fate) -> bool) -> impl Iterator<Item = &Write> {
        self.writes().filter(move |write| {
            !self
                .writes()
                .any(|other| holds(other.fate) && write.is_before(other))
        })
    }

    pub(super) fn live(&self) -> Vec<Value> {
        if self.rest.is_empty() {
            return vec![self.first.value];
        }
        self.last(Fate::is_certain)
            .map(|write| write.value)
            .collect()
    }

    pub(super) fn allowed(&self, crash: Option<Crash>) -> Vec<Value> {
        match crash {
            Some(Crash::PowerCut) => self
                .last(Fate::is_flushed)
                .map(|write| write.value)
                .collect(),
            Some(Crash::Kill) | None => self.live(),
        }
    }

    /// Whether a write was under way at `since` or later.
    pub(super) fn was_written_after(&self, since: Tick) -> bool {
        let mut writes = self.writes();
        writes.any(|write| write.fate == Fate::InFlight || write.ended >= since)
    }

    /// Forgets what a flushed write has followed.
    pub(super) fn forget(&mut self) {
        if self.rest.is_empty() {
            return;
        }
        let mut kept: Vec<Write> = self.last(Fate::is_flushed).copied().collect();
        self.first = kept.remove(0);
        self.rest = kept;
    }

    /// `value` was read at `now` by somebody who began after `since`.
    pub(super) fn read(&mut self, value: Value, crash: Option<Crash>, since: Tick, now: Tick) {
        if self.rest.is_empty() {
            return;
        }
        if crash == Some(Crash::PowerCut) {
            *self = Sector::pinned(value);
            return;
        }
        if crash == Some(Crash::Kill) {
            // The asker is dead: what was in flight has happened or never will.
            for write in self
                .writes_mut()
                .filter(|write| write.fate == Fate::InFlight)
            {
                (write.fate, write.ended) = (Fate::Failed, since);
            }
        }
        // Its place in the order is known now, unless it may change still.
        let open = |write: &Write| {
            matches!(write.fate, Fate::InFlight | Fate::Doubtful) || write.ended >= since
        };
        if crash.is_none() && self.writes().any(open) {
            return;
        }
        let candidates: Vec<Write> = self.last(Fate::is_certain).copied().collect();
        let mut same = candidates.iter().filter(|write| write.value == value);
        let (Some(chosen), None) = (same.next().copied(), same.next()) else {
            return;
        };
        if candidates.len() > 1 {
            for write in self.writes_mut().filter(|write| **write == chosen) {
                (write.started, write.ended) = (now, now);
                if write.fate == Fate::Failed {
                    write.fate = Fate::Acknowledged;
                }
            }
        }
    }
}
