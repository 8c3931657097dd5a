//! The requests of a connection that are not answered. A request is answered when all its pieces are done.
//!
//! Invariants
//! - Nothing is allocated for a request: places are made with the connection, and the memory that a driver holds in a place is used again
//!   by the next request there.
//! - A place has at most one request, and its held memory is empty when the request comes.

use crate::command::Command;
use crate::pieces::{Pieces, Range};
use crate::request::Header;
use crate::wire::Errno;

/// Requests of a connection in flight: more than clients have (QEMU 16, `nbdcopy` 64, the kernel 128).
pub const REQUESTS: u16 = 128;

/// A request in flight.
#[derive(Debug)]
pub struct Request {
    command: Command,
    cookie: u64,
    pieces: Pieces,
    /// Pieces that are cut, and how many of them are done.
    cut: u16,
    done: u16,
    failed: Option<Errno>,
}

impl Request {
    fn new(command: Command, header: &Header) -> Self {
        Request {
            command,
            cookie: header.cookie,
            pieces: Pieces::new(command, header.offset, header.len),
            cut: 0,
            done: 0,
            failed: None,
        }
    }

    /// Its command.
    #[must_use]
    pub fn command(&self) -> Command {
        self.command
    }

    /// The client's name for it.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Length of its range.
    #[must_use]
    pub fn len_bytes(&self) -> u32 {
        self.pieces.request_len()
    }

    /// The range of the next piece; `None` if all are cut.
    #[must_use]
    pub fn next_range(&self) -> Option<Range> {
        self.pieces.next_range()
    }

    /// Cuts the piece of [`Request::next_range`], which must exist. Returns its number, from 0.
    pub fn cut(&mut self) -> u16 {
        let number = self.cut;
        self.pieces.cut();
        self.cut += 1;
        number
    }

    /// Records that a piece is done.
    pub fn piece_done(&mut self, result: Result<(), Errno>) {
        debug_assert!(self.done < self.cut, "a piece is done once");
        self.done += 1;
        // The client gets the first error.
        self.failed = self.failed.or(result.err());
    }

    /// Whether every piece is cut and done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.pieces.are_cut() && self.done == self.cut
    }

    /// Its result.
    ///
    /// # Errors
    /// The first error of a piece.
    pub fn result(&self) -> Result<(), Errno> {
        self.failed.map_or(Ok(()), Err)
    }
}

/// Resources that a driver holds for a request in flight: memory, places.
pub trait Held: Default {
    /// Releases them.
    fn clear(&mut self);
}

#[derive(Debug)]
struct Place<H> {
    request: Option<Request>,
    held: H,
}

/// The requests of a connection, and the resources held for each.
#[derive(Debug)]
pub struct Requests<H> {
    places: Vec<Place<H>>,
    free: Vec<u16>,
}

impl<H: Held> Requests<H> {
    /// [`REQUESTS`] free places.
    #[must_use]
    pub fn new() -> Self {
        let place = || Place {
            request: None,
            held: H::default(),
        };
        Requests {
            places: (0..REQUESTS).map(|_| place()).collect(),
            free: (0..REQUESTS).rev().collect(),
        }
    }

    /// Whether there is no free place.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Whether there is no request.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// Places `header`, with its `command`; `None` if there is no free place.
    pub fn insert(&mut self, command: Command, header: &Header) -> Option<u16> {
        let index = self.free.pop()?;
        let place = &mut self.places[usize::from(index)];
        place.request = Some(Request::new(command, header));
        place.held.clear();
        Some(index)
    }

    /// The request in a place, with its resources; `None` if the place is free.
    pub fn get(&mut self, index: u16) -> Option<(&mut Request, &mut H)> {
        let place = self.places.get_mut(usize::from(index))?;
        Some((place.request.as_mut()?, &mut place.held))
    }

    /// Frees the place of a request that is answered, or whose client has disconnected.
    pub fn remove(&mut self, index: u16) {
        if self.places[usize::from(index)].request.take().is_some() {
            self.free.push(index);
        }
    }
}

impl<H: Held> Default for Requests<H> {
    fn default() -> Self {
        Requests::new()
    }
}

#[cfg(test)]
mod tests {
    use crate::offer::PIECE_MAX;

    use super::*;

    impl Held for Vec<u8> {
        fn clear(&mut self) {
            Vec::clear(self);
        }
    }

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
        let mut request = Request::new(Command::Read, &header(3 * PIECE_MAX));
        assert_eq!((request.cookie(), request.len_bytes()), (7, 3 * PIECE_MAX));
        assert_eq!(request.cut(), 0);
        request.piece_done(Ok(()));
        assert!(!request.is_done(), "two pieces are not cut");
        let second = request.next_range().unwrap();
        assert_eq!(second.offset, 4096 + u64::from(PIECE_MAX));
        assert_eq!((request.cut(), request.cut()), (1, 2));
        assert!(request.next_range().is_none());
        for error in [Errno::NoSpc, Errno::Io] {
            assert!(!request.is_done());
            request.piece_done(Err(error));
        }
        assert!(request.is_done());
        assert_eq!(request.result(), Err(Errno::NoSpc));
    }

    #[test]
    fn a_full_table_takes_no_more() {
        let mut requests = Requests::<Vec<u8>>::new();
        assert!(requests.is_empty() && !requests.is_full());
        let all = std::iter::from_fn(|| requests.insert(Command::Flush, &header(0)));
        let all: Vec<u16> = all.collect();
        assert_eq!(all.len(), usize::from(REQUESTS));
        assert!(requests.is_full());
        requests.remove(7);
        requests.remove(7);
        assert!(requests.get(7).is_none() && requests.get(REQUESTS).is_none());
        assert_eq!(requests.insert(Command::Flush, &header(0)), Some(7));
        assert!(requests.is_full());
        for index in all {
            requests.remove(index);
        }
        assert!(requests.is_empty());
    }

    #[test]
    fn a_place_is_used_again_as_if_it_were_new_with_the_memory_that_it_has() {
        let mut requests = Requests::<Vec<u8>>::new();
        let index = requests.insert(Command::Flush, &header(0)).unwrap();
        let (request, held) = requests.get(index).unwrap();
        request.cut();
        request.piece_done(Err(Errno::Io));
        held.extend([1; 100]);
        let memory = held.as_ptr();
        requests.remove(index);
        assert_eq!(requests.insert(Command::Read, &header(512)), Some(index));
        let (request, held) = requests.get(index).unwrap();
        assert_eq!((request.result(), request.cut()), (Ok(()), 0));
        assert!(held.is_empty());
        assert_eq!(held.as_ptr(), memory);
    }
}
