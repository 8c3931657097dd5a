//! The cells of a connection: the free ones, and lists of those that belong together.
//!
//! Free cells are taken last in, first out: a client with little in flight uses the same few pages again and again.

use archipelago_nbd_protocol::pieces::Range;
use archipelago_nbd_protocol::requests::Held;

use crate::layout::CELLS;

/// No cell.
pub(crate) const NONE: u16 = u16::MAX;
const _: () = assert!(CELLS < NONE);

/// The cells of a read with one reply, in the order of their data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CellList {
    first: u16,
    last: u16,
}

impl Default for CellList {
    fn default() -> Self {
        CellList {
            first: NONE,
            last: NONE,
        }
    }
}

impl Held for CellList {
    fn clear(&mut self) {
        *self = CellList::default();
    }
}

/// All cells of a connection.
#[derive(Debug)]
pub(crate) struct Cells {
    free: Vec<u16>,
    /// The cell behind each cell of a list.
    next: Vec<u16>,
    /// The range of the volume that each cell is for.
    ranges: Vec<Range>,
}

impl Cells {
    pub(crate) fn new() -> Self {
        Cells {
            free: (0..CELLS).rev().collect(),
            next: vec![NONE; usize::from(CELLS)],
            ranges: vec![Range::default(); usize::from(CELLS)],
        }
    }

    /// A cell for `range` of the volume, if fewer than `limit` are taken.
    pub(crate) fn take(&mut self, limit: u16, range: Range) -> Option<u16> {
        let taken = usize::from(CELLS) - self.free.len();
        if taken >= usize::from(limit) {
            return None;
        }
        let cell = self.free.pop()?;
        self.next[usize::from(cell)] = NONE;
        self.ranges[usize::from(cell)] = range;
        Some(cell)
    }

    /// The range of a cell that is taken.
    pub(crate) fn range(&self, cell: u16) -> Range {
        self.ranges[usize::from(cell)]
    }

    /// Returns a cell to the free ones.
    pub(crate) fn put(&mut self, cell: u16) {
        debug_assert!(!self.free.contains(&cell), "given back once");
        self.free.push(cell);
    }

    /// Appends `cell`, which is in no list, to `list`.
    pub(crate) fn append(&mut self, list: &mut CellList, cell: u16) {
        match list.last {
            NONE => list.first = cell,
            last => self.next[usize::from(last)] = cell,
        }
        list.last = cell;
    }

    /// Removes the first cell from `list`; the cell is still taken.
    pub(crate) fn pop(&self, list: &mut CellList) -> Option<u16> {
        let first = list.first;
        if first == NONE {
            return None;
        }
        list.first = self.next[usize::from(first)];
        if list.first == NONE {
            list.last = NONE;
        }
        Some(first)
    }

    #[cfg(test)]
    pub(crate) fn all_free(&self) -> bool {
        self.free.len() == usize::from(CELLS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: Range = Range { offset: 0, len: 0 };

    #[test]
    fn no_more_are_taken_than_the_limit_and_the_last_one_back_is_the_next() {
        let mut cells = Cells::new();
        assert_eq!([cells.take(2, ANY), cells.take(2, ANY)], [Some(0), Some(1)]);
        assert_eq!(cells.take(2, ANY), None);
        assert_eq!(cells.take(3, ANY), Some(2));
        cells.put(1);
        assert_eq!(cells.take(3, ANY), Some(1));
        let rest = std::iter::from_fn(|| cells.take(CELLS, ANY)).count();
        assert_eq!(rest, usize::from(CELLS) - 3);
        (0..CELLS).for_each(|cell| cells.put(cell));
        assert!(cells.all_free());
    }

    #[test]
    fn a_list_keeps_its_order() {
        let mut cells = Cells::new();
        let mut list = CellList::default();
        for _ in 0..2 {
            let taken = [5, 5, 5].map(|limit| cells.take(limit, ANY).unwrap());
            taken.iter().for_each(|cell| cells.append(&mut list, *cell));
            let popped = [(); 3].map(|()| cells.pop(&mut list).unwrap());
            assert_eq!((popped, cells.pop(&mut list)), (taken, None));
            taken.iter().for_each(|cell| cells.put(*cell));
        }
    }
}
