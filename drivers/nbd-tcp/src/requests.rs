//! The requests of a connection that are not answered.

use archipelago_nbd_protocol::pieces::{Pieces, Range};
use archipelago_nbd_protocol::request::{Command, Header};
use archipelago_nbd_protocol::wire::Errno;
use archipelago_segment::Buffer;

/// Requests of a connection in flight: more than clients have (QEMU 16, `nbdcopy` 64, the kernel 128).
pub(crate) const REQUESTS: u16 = 128;

/// A request in flight.
pub(crate) struct Request {
    pub(crate) command: Command,
    /// What the client names it by.
    pub(crate) cookie: u64,
    pieces: Pieces,
    /// Pieces that are cut, and those of them that are not done.
    cut: u16,
    open: u16,
    failed: Option<Errno>,
    /// Bytes that were promised for the replies to its pieces that are done, and are not free again.
    pub(crate) promised: usize,
    /// Of a read that is answered whole, by the numbers of its pieces.
    pub(crate) data: Vec<Option<(Buffer, u32)>>,
}

impl Request {
    /// The piece that is cut next, and its number; `None`: all are.
    pub(crate) fn cut(&mut self) -> Option<(u16, Range)> {
        let range = self.pieces.next_range()?;
        let number = self.cut;
        self.pieces.cut();
        self.cut += 1;
        self.open += 1;
        Some((number, range))
    }

    /// The range of the piece that is cut next.
    pub(crate) fn next_range(&self) -> Option<Range> {
        self.pieces.next_range()
    }

    /// A piece is done.
    pub(crate) fn piece_done(&mut self, result: Result<(), Errno>) {
        self.open -= 1;
        // The first error is the one that the client gets.
        self.failed = self.failed.or(result.err());
    }

    /// Whether every piece is cut and done.
    pub(crate) fn is_done(&self) -> bool {
        self.pieces.are_cut() && self.open == 0
    }

    /// What it is answered.
    pub(crate) fn result(&self) -> Result<(), Errno> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// The requests of a connection. The memory of a place is kept for the next request in it.
pub(crate) struct Requests {
    places: Vec<Request>,
    free: Vec<u16>,
}

impl Requests {
    pub(crate) fn new() -> Self {
        let unused = || Request {
            command: Command::Flush,
            cookie: 0,
            pieces: Pieces::new(Command::Flush, 0, 0),
            cut: 0,
            open: 0,
            failed: None,
            promised: 0,
            data: Vec::new(),
        };
        Requests {
            places: (0..REQUESTS).map(|_| unused()).collect(),
            free: (0..REQUESTS).rev().collect(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Places `header`, which asks for `command`. There is room.
    pub(crate) fn insert(&mut self, command: Command, header: &Header) -> Option<u16> {
        let index = self.free.pop()?;
        let request = self.get(index);
        request.command = command;
        request.cookie = header.cookie;
        request.pieces = Pieces::new(command, header.offset, header.len);
        (request.cut, request.open, request.failed) = (0, 0, None);
        request.data.clear();
        Some(index)
    }

    pub(crate) fn get(&mut self, index: u16) -> &mut Request {
        &mut self.places[usize::from(index)]
    }

    pub(crate) fn remove(&mut self, index: u16) {
        debug_assert!(!self.free.contains(&index));
        self.free.push(index);
    }
}

#[cfg(test)]
mod tests {
    use archipelago_nbd_protocol::offer::PIECE_MAX;

    use super::*;

    fn header(len: u32) -> Header {
        Header {
            flags: 0,
            command: 0,
            cookie: 7,
            offset: 4096,
            len,
        }
    }

    #[test]
    fn a_request_is_done_when_all_its_pieces_are_and_reports_the_first_error() {
        let mut requests = Requests::new();
        let index = requests
            .insert(Command::Read, &header(2 * PIECE_MAX))
            .unwrap();
        let request = requests.get(index);
        assert_eq!(request.cut().unwrap().0, 0);
        request.piece_done(Err(Errno::NoSpc));
        assert!(!request.is_done(), "a piece is not cut");
        assert_eq!(request.cut().unwrap().1.offset, 4096 + u64::from(PIECE_MAX));
        assert!(request.cut().is_none() && !request.is_done());
        request.piece_done(Err(Errno::Io));
        assert!(request.is_done());
        assert_eq!(request.result(), Err(Errno::NoSpc));
    }

    #[test]
    fn a_place_is_used_again_as_if_it_were_new() {
        let mut requests = Requests::new();
        let all: Vec<u16> =
            std::iter::from_fn(|| requests.insert(Command::Flush, &header(0))).collect();
        assert_eq!(all.len(), usize::from(REQUESTS));
        assert!(!requests.is_empty());
        requests.get(9).cut();
        requests.get(9).piece_done(Err(Errno::Io));
        requests.remove(9);
        assert_eq!(requests.insert(Command::Read, &header(512)), Some(9));
        assert_eq!(requests.get(9).result(), Ok(()));
        assert_eq!(requests.get(9).cut().unwrap().0, 0);
        for index in all {
            requests.remove(index);
        }
        assert!(requests.is_empty());
    }
}
