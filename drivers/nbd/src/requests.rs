//! The requests of a connection that are not answered, and how they are cut into pieces.
//!
//! A request of data has a piece for each cell of its data; a range of zeros has one for each [`RANGE_MAX`] of it; a flush has
//! one, and so has a question for block status, which may be answered for less than it asks. A request is answered when all its pieces are done.

use crate::cells::{CellList, Range};
use crate::layout::{CELL_LEN, REQUESTS};
use crate::request::{Command, Header};
use crate::wire::Errno;

/// Bytes of a range that are given to the volume at once, so that one request is a bounded amount of work for the mapper.
const RANGE_MAX: u32 = 1 << 30;

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// What the client names it by.
    pub(crate) cookie: u64,
    offset: u64,
    len: u32,
    /// Bytes that pieces cover; for a flush, 0.
    cut: u32,
    /// Whether every piece is made.
    is_cut: bool,
    /// Pieces that are not done.
    open: u32,
    failed: Option<Errno>,
    /// Of a read that is answered whole.
    pub(crate) cells: CellList,
}

impl Request {
    fn new(command: Command, header: &Header) -> Self {
        Request {
            command,
            cookie: header.cookie,
            offset: header.offset,
            len: header.len,
            cut: 0,
            is_cut: false,
            open: 0,
            failed: None,
            cells: CellList::default(),
        }
    }

    /// Bytes that it is about.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// The range of the piece that is made next; `None`: all are.
    pub(crate) fn next_range(&self) -> Option<Range> {
        let max = match self.command {
            _ if self.is_cut => return None,
            Command::Flush => return Some(Range { offset: 0, len: 0 }),
            Command::Read | Command::Write { .. } => CELL_LEN,
            Command::BlockStatus { .. } => u32::MAX,
            _ => RANGE_MAX,
        };
        Some(Range {
            offset: self.offset + u64::from(self.cut),
            len: (self.len - self.cut).min(max),
        })
    }

    /// The piece of [`Request::next_range`] is made.
    pub(crate) fn cut(&mut self) {
        let Some(range) = self.next_range() else {
            debug_assert!(false, "a piece more than there are");
            return;
        };
        self.open += 1;
        self.cut += range.len;
        self.is_cut = self.cut == self.len || self.command == Command::Flush;
    }

    /// A piece is done.
    pub(crate) fn piece_done(&mut self, result: Result<(), Errno>) {
        self.open -= 1;
        // The first error is the one that the client gets.
        self.failed = self.failed.or(result.err());
    }

    /// Whether every piece is made and done.
    pub(crate) fn is_done(&self) -> bool {
        self.is_cut && self.open == 0
    }

    /// What it is answered.
    pub(crate) fn result(&self) -> Result<(), Errno> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// The requests of a connection.
#[derive(Debug)]
pub(crate) struct Requests {
    slots: Vec<Option<Request>>,
    free: Vec<u16>,
}

impl Requests {
    pub(crate) fn new() -> Self {
        Requests {
            slots: (0..REQUESTS).map(|_| None).collect(),
            free: (0..REQUESTS).rev().collect(),
        }
    }

    /// Whether there is no place for another one.
    pub(crate) fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Places `header`, which asks for `command`.
    pub(crate) fn insert(&mut self, command: Command, header: &Header) -> Option<u16> {
        let index = self.free.pop()?;
        self.slots[usize::from(index)] = Some(Request::new(command, header));
        Some(index)
    }

    pub(crate) fn get(&mut self, index: u16) -> Option<&mut Request> {
        self.slots.get_mut(usize::from(index))?.as_mut()
    }

    /// A request that has a piece to be made, and the piece's range.
    pub(crate) fn next_piece(&mut self, index: u16) -> Option<(&mut Request, Range)> {
        let request = self.get(index)?;
        let range = request.next_range()?;
        Some((request, range))
    }

    pub(crate) fn remove(&mut self, index: u16) {
        if self.slots[usize::from(index)].take().is_some() {
            self.free.push(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(command: Command, len: u32) -> Vec<Range> {
        let header = Header {
            flags: 0,
            command: 0,
            cookie: 1,
            offset: 4096,
            len,
        };
        let mut request = Request::new(command, &header);
        let ranges = std::iter::from_fn(|| {
            let range = request.next_range()?;
            request.cut();
            assert!(!request.is_done());
            Some(range)
        });
        let ranges: Vec<Range> = ranges.collect();
        for piece in 0..ranges.len() {
            let result = if piece == 0 {
                Err(Errno::NoSpc)
            } else {
                Ok(())
            };
            request.piece_done(result);
        }
        assert!(request.is_done());
        assert_eq!(request.result(), Err(Errno::NoSpc));
        ranges
    }

    #[test]
    fn pieces_cover_the_range_and_a_flush_has_one() {
        let range = |offset, len| Range { offset, len };
        let cell = u64::from(CELL_LEN);
        assert_eq!(
            ranges(Command::Read, 2 * CELL_LEN + 512),
            [
                range(4096, CELL_LEN),
                range(4096 + cell, CELL_LEN),
                range(4096 + 2 * cell, 512)
            ]
        );
        assert_eq!(
            ranges(Command::Write { durable: true }, 512),
            [range(4096, 512)]
        );
        assert_eq!(ranges(Command::Flush, 0), [range(0, 0)]);
        let trim = ranges(Command::Trim { durable: false }, u32::MAX - 511);
        assert_eq!(trim.len(), 4);
        let sum: u64 = trim.iter().map(|range| u64::from(range.len)).sum();
        assert_eq!(sum, u64::from(u32::MAX - 511));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut requests = Requests::new();
        let header = Header::decode(
            &Header {
                flags: 0,
                command: 3,
                cookie: 1,
                offset: 0,
                len: 0,
            }
            .encode(),
        );
        let header = header.unwrap();
        let all = std::iter::from_fn(|| requests.insert(Command::Flush, &header)).count();
        assert_eq!(all, usize::from(REQUESTS));
        assert!(requests.is_full());
        requests.remove(7);
        requests.remove(7);
        assert_eq!(requests.insert(Command::Flush, &header), Some(7));
        assert!(requests.is_full());
    }
}
