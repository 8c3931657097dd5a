//! The lineages in which blocks of a volume are stored: its own and those that it was cloned from.

use archipelago_protocol::{ErrorCode, Lineage};

/// Most lineages in which one volume's blocks can be stored: a clone cannot be deeper than that.
const LINEAGES_MAX: u32 = 1 << 20;

/// Lineages by the mapper's index, as far as they are known.
#[derive(Debug, Default)]
pub(crate) struct Lineages {
    known: Vec<Option<Lineage>>,
}

/// An index that has been checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LineageIndex(u32);

impl LineageIndex {
    /// Checks an index from the mapper.
    ///
    /// # Errors
    /// [`ErrorCode::Internal`]: a clone cannot be that deep.
    pub(crate) fn new(index: u64) -> Result<Self, ErrorCode> {
        let index = u32::try_from(index).map_err(|_too_large| ErrorCode::Internal)?;
        if index >= LINEAGES_MAX {
            return Err(ErrorCode::Internal);
        }
        Ok(LineageIndex(index))
    }
}

impl From<LineageIndex> for u64 {
    fn from(index: LineageIndex) -> u64 {
        index.0.into()
    }
}

impl Lineages {
    /// The lineage of `index`, if it is known.
    pub(crate) fn get(&self, index: LineageIndex) -> Option<Lineage> {
        self.known.get(index.0 as usize).copied().flatten()
    }

    /// The mapper has reported that `index` is `lineage`.
    pub(crate) fn learn(&mut self, index: LineageIndex, lineage: Lineage) {
        let slot = index.0 as usize;
        if self.known.len() <= slot {
            self.known.resize(slot + 1, None);
        }
        self.known[slot] = Some(lineage);
    }

    /// Forgets everything: the indices have no meaning any more.
    pub(crate) fn clear(&mut self) {
        self.known.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_known_after_its_answer_and_bounded() {
        let mut lineages = Lineages::default();
        let index = LineageIndex::new(7).unwrap();
        assert_eq!(lineages.get(index), None);
        lineages.learn(index, Lineage(9));
        assert_eq!(lineages.get(index), Some(Lineage(9)));
        assert_eq!(lineages.get(LineageIndex::new(6).unwrap()), None);
        lineages.clear();
        assert_eq!(lineages.get(index), None);
        assert!(LineageIndex::new(u64::MAX).is_err() && LineageIndex::new(1 << 20).is_err());
    }
}
