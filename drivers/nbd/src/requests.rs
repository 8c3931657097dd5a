//! The requests of a connection that are not answered. A request is answered when all its pieces are done.

use archipelago_nbd_protocol::pieces::{Pieces, Range};

use crate::cells::CellList;
use crate::layout::REQUESTS;
use archipelago_nbd_protocol::request::{Command, Header};
use archipelago_nbd_protocol::wire::Errno;

/// A request in flight.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// What the client names it by.
    pub(crate) cookie: u64,
    pieces: Pieces,
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
            pieces: Pieces::new(command, header.offset, header.len),
            open: 0,
            failed: None,
            cells: CellList::default(),
        }
    }

    /// Bytes that it is about.
    pub(crate) fn len(&self) -> u32 {
        self.pieces.request_len()
    }

    /// The range of the piece that is made next; `None`: all are.
    pub(crate) fn next_range(&self) -> Option<Range> {
        self.pieces.next_range()
    }

    /// The piece of [`Request::next_range`] is made.
    pub(crate) fn cut(&mut self) {
        self.open += 1;
        self.pieces.cut();
    }

    /// A piece is done.
    pub(crate) fn piece_done(&mut self, result: Result<(), Errno>) {
        self.open -= 1;
        // The first error is the one that the client gets.
        self.failed = self.failed.or(result.err());
    }

    /// Whether every piece is made and done.
    pub(crate) fn is_done(&self) -> bool {
        self.pieces.are_cut() && self.open == 0
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
    use archipelago_nbd_protocol::offer::PIECE_MAX;

    use super::*;

    #[test]
    fn a_request_is_done_when_all_its_pieces_are_and_reports_the_first_error() {
        let header = Header {
            flags: 0,
            command: 0,
            cookie: 1,
            offset: 4096,
            len: 3 * PIECE_MAX,
        };
        let mut request = Request::new(Command::Read, &header);
        for _ in 0..3 {
            assert!(request.next_range().is_some());
            request.cut();
            assert!(!request.is_done());
        }
        for result in [Ok(()), Err(Errno::NoSpc), Err(Errno::Io)] {
            assert!(!request.is_done());
            request.piece_done(result);
        }
        assert!(request.is_done());
        assert_eq!(request.result(), Err(Errno::NoSpc));
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
