//! What may be read: per sector, the values that the promises allow.
//!
//! A value is the stamp of the write that put it there; 0 is zeros. Each write of a sector has a beginning and an end, so
//! writes that were in flight together may have happened in either order:
//! - live, or after the death of a process: any write that no acknowledged one has followed;
//! - after a power cut: any write that no flushed one has followed.
//!
//! What is read is pinned: that order, if there was a choice, is the order from then on; after a crash it is all there is.
//! Snapshots hold what the volume held when they were begun, and are pinned when first read.

mod sector;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use archipelago_protocol::ids::{Lineage, Name};

pub use sector::{Crash, Sector, Tick, Value};
use sector::{Fate, Write};

/// What a named thing holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A volume.
    Live(Rc<Vec<Sector>>),
    /// A snapshot: what each sector may be. One value each once it was read.
    Frozen(Rc<Vec<Vec<Value>>>),
}

impl Content {
    /// A new volume's.
    #[must_use]
    pub fn zeros(sectors: usize) -> Self {
        Content::Live(Rc::new(vec![Sector::default(); sectors]))
    }

    fn sectors(&self) -> usize {
        match self {
            Content::Live(sectors) => sectors.len(),
            Content::Frozen(sectors) => sectors.len(),
        }
    }
}

/// A named thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// Its name.
    pub name: Name,
    /// What it was cloned from, or is a snapshot of.
    pub parent: Option<Lineage>,
    /// What it holds.
    pub content: Content,
    /// The worst that has happened since it was read.
    crashed: Option<Crash>,
}

impl Thing {
    /// One that nothing has happened to.
    #[must_use]
    pub fn new(name: Name, parent: Option<Lineage>, content: Content) -> Self {
        Thing {
            name,
            parent,
            content,
            crashed: None,
        }
    }

    /// Sectors of it.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.content.sectors()
    }

    /// Whether it can be written.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.content, Content::Live(_))
    }
}

/// What a change that is under way makes of a thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum After {
    /// It is there.
    Is(Thing),
    /// It is gone.
    Gone,
    /// It has another name.
    Named(Name),
    /// It has another size, in sectors.
    Sized(usize),
}

/// All that is known of a pool.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    things: BTreeMap<Lineage, Thing>,
    /// Not acknowledged: may have happened or not.
    changes: Vec<(Lineage, After)>,
    parents: BTreeMap<Lineage, Lineage>,
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
    pub fn things(&self) -> &BTreeMap<Lineage, Thing> {
        &self.things
    }

    /// A thing that is there for sure.
    ///
    /// # Panics
    /// If it is not: a mistake of the test.
    #[must_use]
    pub fn thing(&self, lineage: Lineage) -> &Thing {
        self.things
            .get(&lineage)
            .expect("the plan uses what is there")
    }

    fn live_mut(&mut self, lineage: Lineage) -> &mut Vec<Sector> {
        match self
            .things
            .get_mut(&lineage)
            .map(|thing| &mut thing.content)
        {
            Some(Content::Live(sectors)) => Rc::make_mut(sectors),
            other => panic!("{lineage} is no volume: {other:?}"),
        }
    }

    /// A write of `value` to the sectors `range` is under way.
    pub fn write_started(&mut self, lineage: Lineage, range: Range<usize>, value: Value) -> Tick {
        let started = self.now();
        let write = Write {
            value,
            started,
            ended: 0,
            fate: Fate::InFlight,
        };
        for sector in &mut self.live_mut(lineage)[range] {
            sector.rest.push(write);
        }
        started
    }

    /// The write that was `started` then has ended, well or not.
    pub fn write_ended(
        &mut self,
        lineage: Lineage,
        range: Range<usize>,
        started: Tick,
        well: bool,
    ) {
        let now = self.now();
        for sector in &mut self.live_mut(lineage)[range] {
            let mut all = sector.writes_mut();
            let write = all.find(|write| write.started == started && write.fate == Fate::InFlight);
            let write = write.expect("what is in flight is not forgotten");
            write.ended = now;
            write.fate = if well {
                Fate::Acknowledged
            } else {
                Fate::Failed
            };
        }
    }

    /// A durable write that was `started` then was acknowledged: as if a flush of its own had followed it.
    pub fn write_is_durable(&mut self, lineage: Lineage, range: Range<usize>, started: Tick) {
        self.write_ended(lineage, range.clone(), started, true);
        for sector in &mut self.live_mut(lineage)[range] {
            for write in sector.writes_mut().filter(|write| write.started == started) {
                write.fate = Fate::Flushed;
            }
            sector.forget();
        }
    }

    /// A flush that was submitted at `submitted` was acknowledged.
    pub fn flush_acknowledged(&mut self, lineage: Lineage, submitted: Tick) {
        for sector in self.live_mut(lineage).iter_mut() {
            if sector.rest.is_empty() {
                continue;
            }
            for write in sector.writes_mut() {
                if write.ended < submitted
                    && matches!(write.fate, Fate::Acknowledged | Fate::Doubtful)
                {
                    write.fate = Fate::Flushed;
                }
            }
            sector.forget();
        }
    }

    /// A sync failed, and the guest was told: what was not flushed before may be lost, and no later flush covers it.
    pub fn sync_failed(&mut self, lineage: Lineage) {
        for write in self
            .live_mut(lineage)
            .iter_mut()
            .flat_map(Sector::writes_mut)
        {
            if matches!(write.fate, Fate::Acknowledged | Fate::Doubtful) {
                write.fate = Fate::Failed;
            }
        }
    }

    /// A sync has failed that may have covered `lineage`; `None`: any volume.
    pub fn sync_in_doubt(&mut self, lineage: Option<Lineage>) {
        let concerned: Vec<Lineage> = self
            .things
            .iter()
            .filter(|(known, thing)| thing.is_live() && lineage.is_none_or(|one| one == **known))
            .map(|(known, _)| *known)
            .collect();
        for known in concerned {
            for write in self.live_mut(known).iter_mut().flat_map(Sector::writes_mut) {
                if write.fate == Fate::Acknowledged {
                    write.fate = Fate::Doubtful;
                }
            }
        }
    }

    /// What a snapshot of `lineage` that is begun now may hold.
    #[must_use]
    pub fn frozen(&self, lineage: Lineage) -> Content {
        match &self.thing(lineage).content {
            Content::Live(sectors) => {
                Content::Frozen(Rc::new(sectors.iter().map(Sector::live).collect()))
            }
            frozen @ Content::Frozen(_) => frozen.clone(),
        }
    }

    /// What a clone of a frozen thing begins with.
    ///
    /// # Panics
    /// If it was not read and pinned before: a mistake of the test.
    #[must_use]
    pub fn cloned(&self, lineage: Lineage, sectors: usize) -> Content {
        let Content::Frozen(values) = &self.thing(lineage).content else {
            panic!("{lineage} is not frozen")
        };
        let mut content: Vec<Sector> = values
            .iter()
            .map(|values| {
                assert_eq!(values.len(), 1, "a snapshot is read before it is cloned");
                Sector::pinned(values[0])
            })
            .collect();
        content.resize(sectors, Sector::default());
        Content::Live(Rc::new(content))
    }

    /// A thing begins to change.
    pub fn change_started(&mut self, lineage: Lineage, after: After) {
        if let After::Is(Thing {
            parent: Some(parent),
            ..
        }) = &after
        {
            self.parents.insert(lineage, *parent);
        }
        self.changes.push((lineage, after));
    }

    /// What the snapshot that is under way as `lineage` may hold is known now.
    pub fn change_is(&mut self, lineage: Lineage, known: Content) {
        let change = self.changes.iter_mut().find(|(whose, _)| *whose == lineage);
        if let Some((_, After::Is(thing))) = change {
            thing.content = known;
        }
    }

    /// The change of `lineage` has happened.
    pub fn change_acknowledged(&mut self, lineage: Lineage) {
        let index = self.changes.iter().position(|(whose, _)| *whose == lineage);
        if let Some(index) = index {
            let (_, after) = self.changes.remove(index);
            self.apply(lineage, after);
        }
    }

    /// The change of `lineage` was refused and has not happened.
    pub fn change_refused(&mut self, lineage: Lineage) {
        self.changes.retain(|(whose, _)| *whose != lineage);
    }

    fn apply(&mut self, lineage: Lineage, after: After) {
        match after {
            After::Is(thing) => drop(self.things.insert(lineage, thing)),
            After::Gone => drop(self.things.remove(&lineage)),
            After::Named(name) => {
                if let Some(thing) = self.things.get_mut(&lineage) {
                    thing.name = name;
                }
            }
            After::Sized(sectors) => self.live_mut(lineage).resize(sectors, Sector::default()),
        }
    }

    /// Something ended all processes, or the node that had the volumes.
    pub fn crash(&mut self, crash: Crash) {
        let things = self.things.values_mut();
        let changing = self
            .changes
            .iter_mut()
            .filter_map(|(_, after)| match after {
                After::Is(thing) => Some(thing),
                _ => None,
            });
        for thing in things.chain(changing) {
            thing.crashed = thing.crashed.max(Some(crash));
        }
    }

    /// Takes in what is there after a crash or a refusal: `found` are all names and sizes in sectors.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn names_are(&mut self, found: &BTreeMap<Lineage, (Name, usize)>) -> Result<(), String> {
        for (lineage, after) in std::mem::take(&mut self.changes) {
            let there = found.get(&lineage);
            let happened = match &after {
                After::Is(thing) => there == Some(&(thing.name.clone(), thing.sectors())),
                After::Gone => there.is_none(),
                After::Named(name) => there.is_some_and(|(found, _)| found == name),
                After::Sized(sectors) => there.is_some_and(|(_, found)| found == sectors),
            };
            if happened {
                self.apply(lineage, after);
            }
        }
        let expected: BTreeMap<Lineage, (Name, usize)> = self
            .things
            .iter()
            .map(|(lineage, thing)| (*lineage, (thing.name.clone(), thing.sectors())))
            .collect();
        if *found == expected {
            return Ok(());
        }
        Err(format!(
            "names and sizes: found {found:?}, expected {expected:?}"
        ))
    }

    /// Lineages that may have objects: what is there, and what that descends from.
    #[must_use]
    pub fn needed(&self) -> BTreeSet<Lineage> {
        let mut needed = BTreeSet::new();
        let there = self.things.keys().copied();
        for lineage in there.chain(self.changes.iter().map(|(whose, _)| *whose)) {
            let mut next = Some(lineage);
            while let Some(lineage) = next.filter(|lineage| needed.insert(*lineage)) {
                next = self.parents.get(&lineage).copied();
            }
        }
        needed
    }

    /// Checks which sectors of `lineage` were called holes by somebody who began at `since` and then read `read`: a hole reads
    /// as zeros, unless a write came in between.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn check_holes(
        &self,
        lineage: Lineage,
        holes: &[bool],
        read: &[Value],
        since: Tick,
    ) -> Result<(), String> {
        let thing = self.thing(lineage);
        let wrong = holes
            .iter()
            .zip(read)
            .enumerate()
            .find(|(index, (is_hole, value))| {
                let excused = match &thing.content {
                    // Nobody writes before what is there after a crash was read.
                    Content::Live(_) if thing.crashed.is_some() => false,
                    Content::Live(sectors) => sectors[*index].was_written_after(since),
                    Content::Frozen(_) => false,
                };
                **is_hole && **value != 0 && !excused
            });
        match wrong {
            None => Ok(()),
            Some((index, (_, value))) => {
                let name = &thing.name;
                Err(format!("{name}, sector {index}: a hole, and holds {value}"))
            }
        }
    }

    /// Judges what was read of `lineage` by somebody who began at `since`, and pins it.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn check(&mut self, lineage: Lineage, read: &[Value], since: Tick) -> Result<(), String> {
        let now = self.now();
        let thing = self
            .things
            .get_mut(&lineage)
            .ok_or_else(|| format!("{lineage} is not known"))?;
        if read.len() != thing.sectors() {
            let (name, sectors) = (&thing.name, thing.sectors());
            return Err(format!(
                "{name}: {} sectors instead of {sectors}",
                read.len()
            ));
        }
        let crash = thing.crashed.take();
        for (index, value) in read.iter().enumerate() {
            let allowed = match &thing.content {
                Content::Live(sectors) => {
                    let sector = &sectors[index];
                    if sector.rest.is_empty() && sector.first.value == *value {
                        continue;
                    }
                    sector.allowed(crash)
                }
                Content::Frozen(sectors) if sectors[index].contains(value) => continue,
                Content::Frozen(sectors) => sectors[index].clone(),
            };
            if !allowed.contains(value) {
                let name = &thing.name;
                return Err(format!(
                    "{name}, sector {index}: read {value}, allowed {allowed:?} ({crash:?})"
                ));
            }
        }
        match &mut thing.content {
            Content::Frozen(sectors) => {
                if sectors.iter().any(|values| values.len() > 1) {
                    *sectors = Rc::new(read.iter().map(|value| vec![*value]).collect());
                }
            }
            Content::Live(sectors) if sectors.iter().all(|sector| sector.rest.is_empty()) => {}
            Content::Live(sectors) => {
                for (sector, value) in Rc::make_mut(sectors).iter_mut().zip(read) {
                    sector.read(*value, crash, since, now);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
