//! What each sector of a volume may hold, when requests can fail.
//!
//! * An acknowledged write is what is read, until a failure is reported to a client.
//! * A reported failure excuses the loss of data that was not flushed, and nothing else.
//! * A write that failed happened or not, sector by sector.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::pattern::{self, SECTOR};

/// In the text of each error that says that a volume holds what it may not hold.
pub const WRONG_DATA: &str = "WRONG DATA";

/// What one sector may hold: numbers of writes, 0 for zeros.
#[derive(Debug, Clone)]
struct Sector {
    durable: BTreeSet<u64>,
    since: BTreeSet<u64>,
    current: BTreeSet<u64>,
}

/// What a volume may hold.
#[derive(Debug, Clone)]
pub struct Oracle {
    /// Numbers of the volumes whose writes may be here.
    volumes: Vec<u64>,
    sectors: Vec<Sector>,
}

impl Oracle {
    /// A volume of zeros.
    #[must_use]
    pub fn new(volume: u64, sectors: usize) -> Oracle {
        let zeros = BTreeSet::from([0]);
        let sector = Sector {
            durable: zeros.clone(),
            since: BTreeSet::new(),
            current: zeros,
        };
        Oracle {
            volumes: vec![volume],
            sectors: vec![sector; sectors],
        }
    }

    /// A volume that begins as this one, frozen, is.
    #[must_use]
    pub fn clone_as(&self, volume: u64) -> Oracle {
        let mut clone = self.clone();
        clone.volumes.insert(0, volume);
        clone
    }

    /// Sectors in all.
    #[must_use]
    pub fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// Fills `data` with write number `write` at `first`.
    pub fn fill(&self, data: &mut [u8], first: usize, write: u64) {
        for (index, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
            pattern::fill(sector, self.volumes[0], (first + index) as u64, write);
        }
    }

    /// A write was acknowledged.
    pub fn written(&mut self, first: usize, sectors: usize, write: u64) {
        for sector in &mut self.sectors[first..first + sectors] {
            sector.since.insert(write);
            sector.current = BTreeSet::from([write]);
        }
    }

    /// A write failed.
    pub fn refused(&mut self, first: usize, sectors: usize, write: u64) {
        for sector in &mut self.sectors[first..first + sectors] {
            sector.since.insert(write);
            sector.current.insert(write);
        }
    }

    /// A flush or snapshot was acknowledged.
    pub fn flushed(&mut self) {
        for sector in &mut self.sectors {
            sector.durable = sector.current.clone();
            sector.since.clear();
        }
    }

    /// Data that was not flushed may be lost: a failure was reported, or the power failed.
    pub fn lose(&mut self) {
        for sector in &mut self.sectors {
            sector.current.extend(&sector.durable);
            sector.current.extend(&sector.since);
        }
    }

    /// Checks what was read at `first`.
    ///
    /// # Errors
    /// Naming the first sector that is wrong.
    pub fn check(&self, data: &[u8], first: usize) -> Result<()> {
        for (index, bytes) in data.chunks_exact(SECTOR).enumerate() {
            let place = first + index;
            let found =
                pattern::identify(bytes, &self.volumes, place as u64).context(WRONG_DATA)?;
            let legal = &self.sectors[place].current;
            ensure!(
                legal.contains(&found),
                "{WRONG_DATA}: sector {place} holds write {found}, may hold {legal:?}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_excused_only_once_somebody_was_told() {
        let mut oracle = Oracle::new(1, 8);
        oracle.written(0, 8, 1);
        oracle.flushed();
        oracle.written(0, 8, 2);
        let mut data = vec![0; 8 * SECTOR];
        oracle.fill(&mut data, 0, 1);
        assert!(oracle.check(&data, 0).is_err());
        oracle.lose();
        assert!(oracle.check(&data, 0).is_ok());
        oracle.fill(&mut data, 0, 0);
        assert!(oracle.check(&data, 0).is_err(), "what was flushed is there");
    }
}
