//! The owner of each request of a queue: the kernel or the driver.
//!
//! | a slot is | leaves it by |
//! |---|---|
//! | Fetching: the kernel has its command | a request: Taken; or, once the end has begun, Kept; the device is stopped: Stopped |
//! | Taken: the driver has its request | the answer: Fetching |
//! | Kept: its request is not answered by this server | never: the next server gets the request |
//! | Stopped | never |

use crate::request::Request;

/// The state of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Fetching,
    Taken(Request),
    Kept,
    Stopped,
}

/// The states of a queue's requests, by their tags.
#[derive(Debug)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    fetching: usize,
    taken: usize,
    stopped: usize,
}

impl Slots {
    /// `depth` requests, all of which are being fetched.
    pub(crate) fn new(depth: u16) -> Slots {
        Slots {
            slots: vec![Slot::Fetching; usize::from(depth)],
            fetching: usize::from(depth),
            taken: 0,
            stopped: 0,
        }
    }

    /// Commands that the kernel has.
    pub(crate) fn fetching(&self) -> usize {
        self.fetching
    }

    /// Requests that the driver has.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Whether the device is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped > 0
    }

    /// Whether a request for `tag` is being fetched.
    pub(crate) fn is_fetching(&self, tag: u16) -> bool {
        self.slots.get(usize::from(tag)) == Some(&Slot::Fetching)
    }

    /// The request of `tag`, which the driver has.
    pub(crate) fn request(&self, tag: u16) -> Option<Request> {
        match self.slots.get(usize::from(tag)) {
            Some(Slot::Taken(request)) => Some(*request),
            _ => None,
        }
    }

    fn change(&mut self, tag: u16, next: Slot) {
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else {
            debug_assert!(false, "a tag of another queue");
            return;
        };
        match std::mem::replace(slot, next) {
            Slot::Fetching => self.fetching -= 1,
            Slot::Taken(_) => self.taken -= 1,
            Slot::Kept => {}
            Slot::Stopped => self.stopped -= 1,
        }
        match next {
            Slot::Fetching => self.fetching += 1,
            Slot::Taken(_) => self.taken += 1,
            Slot::Kept => {}
            Slot::Stopped => self.stopped += 1,
        }
    }

    pub(crate) fn take(&mut self, tag: u16, request: Request) {
        self.change(tag, Slot::Taken(request));
    }

    /// Records that the next request for `tag` is being fetched.
    pub(crate) fn fetch(&mut self, tag: u16) {
        self.change(tag, Slot::Fetching);
    }

    pub(crate) fn keep(&mut self, tag: u16) {
        self.change(tag, Slot::Kept);
    }

    pub(crate) fn lose(&mut self, tag: u16) {
        self.change(tag, Slot::Stopped);
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::volume::VolumeOp;

    use super::*;

    #[test]
    fn a_request_is_counted_where_it_is() {
        let request = Request {
            op: VolumeOp::Flush,
            offset: 0,
            len: 0,
        };
        let mut slots = Slots::new(3);
        slots.take(0, request);
        slots.take(1, request);
        slots.keep(1);
        assert_eq!((slots.fetching(), slots.taken()), (1, 1));
        assert_eq!(slots.request(0), Some(request));
        assert_eq!(slots.request(1), None);
        slots.fetch(0);
        assert_eq!((slots.fetching(), slots.taken()), (2, 0));
        assert!(!slots.is_stopped());
        slots.lose(0);
        assert!(slots.is_stopped() && !slots.is_fetching(0) && slots.is_fetching(2));
    }
}
