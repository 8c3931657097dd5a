//! What may be read: per sector, the values that the promises allow.
//!
//! A value is the stamp of the write that put it there; 0 is zeros. A sector's history since the last acknowledged
//! flush tells all:
//! - live, or after the death of a process: the last acknowledged value, or one that was written after it and not
//!   acknowledged;
//! - after a power cut: the flushed value, or any written since.
//!
//! What is read after a recovery is pinned: it must be read again until a further crash.
//! Snapshots hold what the volume held when they were begun, and are pinned when first read.

use std::collections::BTreeMap;

use archipelago_protocol::ids::{Lineage, Name};

/// Stamp of a write; 0: zeros.
pub type Value = u32;

/// Order of events in one run.
pub type Tick = u64;

/// What ended a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// All processes died; memory shared with the kernel and what was written stay.
    Kill,
    /// Of what was not durable, any part is gone.
    PowerCut,
}

/// A write since the last acknowledged flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Later {
    value: Value,
    acknowledged: Option<Tick>,
}

/// One sector's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sector {
    flushed: Value,
    later: Vec<Later>,
}

impl Sector {
    fn pinned(value: Value) -> Self {
        Sector {
            flushed: value,
            later: Vec::new(),
        }
    }

    /// Values that may be read now.
    fn live(&self) -> Vec<Value> {
        let last = self
            .later
            .iter()
            .rposition(|later| later.acknowledged.is_some());
        let known = last.map_or(self.flushed, |index| self.later[index].value);
        let after = self.later[last.map_or(0, |index| index + 1)..]
            .iter()
            .map(|later| later.value);
        std::iter::once(known).chain(after).collect()
    }

    fn allowed(&self, crash: Crash) -> Vec<Value> {
        match crash {
            Crash::Kill => self.live(),
            Crash::PowerCut => std::iter::once(self.flushed)
                .chain(self.later.iter().map(|later| later.value))
                .collect(),
        }
    }
}

/// What a named thing holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A volume.
    Live(Vec<Sector>),
    /// A snapshot: what each sector may be. One value each once it was read.
    Frozen(Vec<Vec<Value>>),
}

/// A named thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// Its id.
    pub lineage: Lineage,
    /// What it holds.
    pub content: Content,
}

impl Thing {
    /// Sectors of it.
    #[must_use]
    pub fn sectors(&self) -> usize {
        match &self.content {
            Content::Live(sectors) => sectors.len(),
            Content::Frozen(sectors) => sectors.len(),
        }
    }
}

/// A change of names that is under way: afterwards `name` is `after`; `None`: gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Whose.
    pub name: Name,
    /// What it will be.
    pub after: Option<Thing>,
}

/// All that is known of a pool.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    things: BTreeMap<Name, Thing>,
    /// Not acknowledged: may have happened or not.
    changes: Vec<Change>,
    tick: Tick,
}

impl Oracle {
    /// A new moment, later than all before.
    pub fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    /// The things that are there for sure.
    #[must_use]
    pub fn things(&self) -> &BTreeMap<Name, Thing> {
        &self.things
    }

    /// A thing that is there for sure.
    ///
    /// # Panics
    /// If it is not: a mistake of the test.
    #[must_use]
    pub fn thing(&self, name: &Name) -> &Thing {
        self.things.get(name).expect("the plan uses what is there")
    }

    fn live_mut(&mut self, name: &Name) -> &mut Vec<Sector> {
        match self.things.get_mut(name).map(|thing| &mut thing.content) {
            Some(Content::Live(sectors)) => sectors,
            other => panic!("{name} is no volume: {other:?}"),
        }
    }

    /// A write of `value` to `count` sectors at `first` is under way.
    pub fn write_started(&mut self, name: &Name, first: usize, count: usize, value: Value) {
        for sector in &mut self.live_mut(name)[first..first + count] {
            sector.later.push(Later {
                value,
                acknowledged: None,
            });
        }
    }

    /// It was acknowledged.
    pub fn write_acknowledged(&mut self, name: &Name, first: usize, count: usize, value: Value) {
        let now = self.now();
        for sector in &mut self.live_mut(name)[first..first + count] {
            let later = sector
                .later
                .iter_mut()
                .rev()
                .find(|later| later.value == value);
            // A flush cannot have taken away what was not acknowledged.
            later.expect("was started").acknowledged = Some(now);
        }
    }

    /// A flush that was submitted at `submitted` was acknowledged.
    pub fn flush_acknowledged(&mut self, name: &Name, submitted: Tick) {
        for sector in self.live_mut(name) {
            let covered = |later: &Later| later.acknowledged.is_some_and(|tick| tick < submitted);
            if let Some(last) = sector.later.iter().rposition(covered) {
                sector.flushed = sector.later[last].value;
                sector.later.drain(..=last);
            }
        }
    }

    /// A sync failed, and a flush has told so: what was not flushed before may be lost, and no later flush covers it.
    pub fn flush_failed(&mut self, name: &Name) {
        for sector in self.live_mut(name) {
            for later in &mut sector.later {
                later.acknowledged = None;
            }
        }
    }

    /// What a snapshot of `name` that is begun now may hold.
    #[must_use]
    pub fn frozen(&self, name: &Name) -> Content {
        match &self.thing(name).content {
            Content::Live(sectors) => Content::Frozen(sectors.iter().map(Sector::live).collect()),
            frozen @ Content::Frozen(_) => frozen.clone(),
        }
    }

    /// What a clone of a frozen thing begins with.
    ///
    /// # Panics
    /// If `name` was not read and pinned before: a mistake of the test.
    #[must_use]
    pub fn cloned(&self, name: &Name, sectors: usize) -> Content {
        let Content::Frozen(values) = &self.thing(name).content else {
            panic!("{name} is not frozen")
        };
        let mut content: Vec<Sector> = values
            .iter()
            .map(|values| {
                assert_eq!(values.len(), 1, "a snapshot is read before it is cloned");
                Sector::pinned(values[0])
            })
            .collect();
        content.resize(sectors, Sector::default());
        Content::Live(content)
    }

    /// Names begin to change.
    pub fn change_started(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// What the snapshot that is under way as `name` may hold is known now.
    pub fn change_is(&mut self, name: &Name, content: Content) {
        let change = self
            .changes
            .iter_mut()
            .find(|change| change.name == *name)
            .expect("was started");
        change
            .after
            .as_mut()
            .expect("something will be there")
            .content = content;
    }

    /// The change of `name` has happened.
    pub fn change_acknowledged(&mut self, name: &Name) {
        let index = self
            .changes
            .iter()
            .position(|change| change.name == *name)
            .expect("was started");
        let change = self.changes.remove(index);
        match change.after {
            Some(thing) => drop(self.things.insert(change.name, thing)),
            None => drop(self.things.remove(&change.name)),
        }
    }

    /// The change of `name` was refused and has not happened.
    pub fn change_refused(&mut self, name: &Name) {
        self.changes.retain(|change| change.name != *name);
    }

    /// Takes in what is there after a crash: `found` are all names and sizes in sectors.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn names_after_crash(
        &mut self,
        found: &BTreeMap<Name, (Lineage, usize)>,
    ) -> Result<(), String> {
        for Change { name, after } in std::mem::take(&mut self.changes) {
            let there = found.get(&name).copied();
            let will = after.as_ref().map(|thing| (thing.lineage, thing.sectors()));
            if there == will {
                match after {
                    Some(thing) => drop(self.things.insert(name, thing)),
                    None => drop(self.things.remove(&name)),
                }
            }
        }
        let expected: BTreeMap<Name, (Lineage, usize)> = self
            .things
            .iter()
            .map(|(name, thing)| (name.clone(), (thing.lineage, thing.sectors())))
            .collect();
        if *found == expected {
            return Ok(());
        }
        Err(format!(
            "names and sizes after the crash: found {found:?}, expected {expected:?}"
        ))
    }

    /// Judges what was read of `name` after `crash` (`None`: live), and pins it if it was a crash or is frozen.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn judge(
        &mut self,
        name: &Name,
        read: &[Value],
        crash: Option<Crash>,
    ) -> Result<(), String> {
        let thing = self
            .things
            .get_mut(name)
            .ok_or_else(|| format!("{name} is not known"))?;
        if read.len() != thing.sectors() {
            return Err(format!(
                "{name}: {} sectors instead of {}",
                read.len(),
                thing.sectors()
            ));
        }
        for (index, value) in read.iter().enumerate() {
            let allowed = match &thing.content {
                Content::Live(sectors) => crash.map_or_else(
                    || sectors[index].live(),
                    |crash| sectors[index].allowed(crash),
                ),
                Content::Frozen(sectors) => sectors[index].clone(),
            };
            if !allowed.contains(value) {
                return Err(format!(
                    "{name}, sector {index}: read {value}, allowed {allowed:?} ({crash:?})"
                ));
            }
        }
        match &mut thing.content {
            Content::Frozen(sectors) => *sectors = read.iter().map(|value| vec![*value]).collect(),
            // Not yet durable for sure: what was read after a kill may be lost by a power cut, unless it was flushed.
            Content::Live(sectors) => {
                for (sector, value) in sectors.iter_mut().zip(read) {
                    match crash {
                        Some(Crash::PowerCut) => *sector = Sector::pinned(*value),
                        Some(Crash::Kill) => sector.survived(*value),
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }
}

impl Sector {
    /// `value` was read after the death of the processes: it stays until a power cut, which may still take it back.
    fn survived(&mut self, value: Value) {
        if self.later.is_empty() {
            return;
        }
        self.later.retain(|later| later.value != value);
        self.later.push(Later {
            value,
            acknowledged: Some(0),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> (Oracle, Name) {
        let name: Name = "v".parse().unwrap();
        let content = Content::Live(vec![Sector::default(); 2]);
        let mut oracle = Oracle::default();
        oracle.change_started(Change {
            name: name.clone(),
            after: Some(Thing {
                lineage: Lineage(1),
                content,
            }),
        });
        oracle.change_acknowledged(&name);
        (oracle, name)
    }

    fn check(oracle: &Oracle, name: &Name, crash: Option<Crash>, good: &[Value], bad: &[Value]) {
        for value in good {
            assert_eq!(
                oracle.clone().judge(name, &[*value, 0], crash),
                Ok(()),
                "{value} {crash:?}"
            );
        }
        for value in bad {
            assert!(
                oracle.clone().judge(name, &[*value, 0], crash).is_err(),
                "{value} {crash:?}"
            );
        }
    }

    #[test]
    fn acknowledged_writes_survive_kills_and_flushed_ones_power_cuts() {
        let (mut oracle, name) = volume();
        oracle.write_started(&name, 0, 1, 7);
        check(&oracle, &name, None, &[0, 7], &[8]);
        oracle.write_acknowledged(&name, 0, 1, 7);
        check(&oracle, &name, Some(Crash::Kill), &[7], &[0]);
        check(&oracle, &name, Some(Crash::PowerCut), &[0, 7], &[8]);
        let submitted = oracle.now();
        oracle.write_started(&name, 0, 1, 8);
        oracle.write_acknowledged(&name, 0, 1, 8);
        oracle.flush_acknowledged(&name, submitted);
        check(&oracle, &name, None, &[8], &[7, 0]);
        check(&oracle, &name, Some(Crash::PowerCut), &[7, 8], &[0]);
    }

    #[test]
    fn what_was_read_after_a_crash_stays() {
        let (mut oracle, name) = volume();
        oracle.write_started(&name, 0, 1, 7);
        let mut kept = oracle.clone();
        assert_eq!(kept.judge(&name, &[7, 0], Some(Crash::PowerCut)), Ok(()));
        check(&kept, &name, Some(Crash::PowerCut), &[7], &[0]);
        assert_eq!(oracle.judge(&name, &[0, 0], Some(Crash::PowerCut)), Ok(()));
        check(&oracle, &name, None, &[0], &[7]);
    }

    #[test]
    fn a_change_under_way_has_happened_or_not_and_others_have() {
        let (mut oracle, name) = volume();
        oracle.change_started(Change {
            name: name.clone(),
            after: None,
        });
        assert_eq!(oracle.clone().names_after_crash(&BTreeMap::new()), Ok(()));
        let there = BTreeMap::from([(name.clone(), (Lineage(1), 2))]);
        assert_eq!(oracle.clone().names_after_crash(&there), Ok(()));
        oracle.change_acknowledged(&name);
        assert!(oracle.names_after_crash(&there).is_err());
    }
}
