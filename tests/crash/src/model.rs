//! What each sector must hold.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::pattern::{self, SECTOR};

/// The writes that made the sectors of a volume, snapshot or clone.
#[derive(Debug, Clone)]
pub struct Model {
    /// Numbers of the volumes whose writes may be here: this one and its ancestors.
    volumes: Vec<u64>,
    writes: Vec<u64>,
}

impl Model {
    /// A volume of `sectors` that reads as zeros.
    #[must_use]
    pub fn new(volume: u64, sectors: usize) -> Self {
        Model {
            volumes: vec![volume],
            writes: vec![0; sectors],
        }
    }

    /// A clone: what `self` holds now, written to under another number from now on.
    #[must_use]
    pub fn clone_as(&self, volume: u64) -> Self {
        let mut clone = self.clone();
        clone.volumes.insert(0, volume);
        clone
    }

    /// The volume that new writes belong to.
    #[must_use]
    pub fn volume(&self) -> u64 {
        self.volumes[0]
    }

    /// Sectors in all.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.writes.len()
    }

    /// Another size: cut, or longer by zeros.
    pub fn resize(&mut self, sectors: usize) {
        self.writes.resize(sectors, 0);
    }

    /// Notes that write number `write` (0: zeros) made `sectors` sectors from `first` on.
    pub fn note(&mut self, first: usize, sectors: usize, write: u64) {
        self.writes[first..first + sectors].fill(write);
    }

    /// Fills `data` with what write number `write` puts at `first`.
    pub fn fill(&self, data: &mut [u8], first: usize, write: u64) {
        for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
            pattern::fill(sector, self.volume(), (first + index) as u64, write);
        }
    }

    /// Checks data that was read at sector `first`.
    ///
    /// # Errors
    /// Naming the first sector that is wrong.
    pub fn check(&self, data: &[u8], first: usize) -> Result<()> {
        for (index, sector) in data.chunks_exact(SECTOR).enumerate() {
            let place = first + index;
            let found = pattern::identify(sector, &self.volumes, place as u64)?;
            let expected = self.writes[place];
            ensure!(
                found == expected,
                "sector {place} holds write {found}, expected write {expected}"
            );
        }
        Ok(())
    }
}

/// What a snapshot taken under load may hold: the value when it was asked for, or any written until it was there.
#[derive(Debug, Clone)]
pub struct Window {
    start: Model,
    since: BTreeMap<usize, Vec<u64>>,
}

impl Window {
    /// The window opens.
    #[must_use]
    pub fn open(model: &Model) -> Self {
        Window {
            start: model.clone(),
            since: BTreeMap::new(),
        }
    }

    /// A write was submitted while the window is open.
    pub fn note(&mut self, first: usize, sectors: usize, write: u64) {
        for place in first..first + sectors {
            self.since.entry(place).or_default().push(write);
        }
    }

    /// Takes the snapshot's content, read in full by `read` in pieces of `step` sectors, as the model from now on.
    ///
    /// # Errors
    /// Naming the first sector that holds what it never could have.
    pub fn settle(
        mut self,
        step: usize,
        mut read: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<Model> {
        let mut data = vec![0; step * SECTOR];
        for first in (0..self.start.sectors()).step_by(step) {
            let sectors = step.min(self.start.sectors() - first);
            let data = &mut data[..sectors * SECTOR];
            read(first, data)?;
            for (index, sector) in data.chunks_exact(SECTOR).enumerate() {
                let place = first + index;
                let found = pattern::identify(sector, &self.start.volumes, place as u64)?;
                let legal = found == self.start.writes[place]
                    || self
                        .since
                        .get(&place)
                        .is_some_and(|writes| writes.contains(&found));
                ensure!(
                    legal,
                    "sector {place} of the snapshot holds write {found}, which it never held in its window"
                );
                self.start.writes[place] = found;
            }
        }
        Ok(self.start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_old_and_new_but_nothing_else() {
        let mut model = Model::new(1, 8);
        model.note(0, 8, 5);
        let read = |write: u64| {
            let model = model.clone();
            move |first: usize, data: &mut [u8]| {
                model.fill(data, first, write);
                Ok(())
            }
        };
        let mut window = Window::open(&model);
        window.note(0, 8, 6);
        assert!(window.clone().settle(4, read(5)).is_ok());
        assert!(window.clone().settle(4, read(6)).is_ok());
        assert!(window.settle(4, read(4)).is_err());
    }
}
