//! A channel between two peers on one thread: the same entries and rules, in private memory.
//!
//! Invariants
//! - Neither queue is longer than the channel's capacity: a request keeps its credit until its completion is collected.
//! - A region is visible to the server when `add_region` returns.
//! - When one end is dropped, or its peer breaks the channel, the channel ends for both; earlier completions still arrive.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use crate::entry::{Completion, Submission};
use crate::inflight::{InFlight, SLOTS_MAX};
use crate::port::{ClientPort, PortError, ServerPort};
use crate::region::{Region, RegionId, RegionTable};

/// Makes a channel for at most `capacity` requests in flight, with an arena of `arena_len` bytes.
///
/// # Errors
/// `InvalidInput` for a capacity that is not 1 to 65536; otherwise the kernel's error, if the arena cannot be mapped.
pub fn channel(capacity: usize, arena_len: usize) -> io::Result<(LocalClient, LocalServer)> {
    channel_over(capacity, Region::anonymous(arena_len)?)
}

/// Makes a channel with `arena`, which nothing else uses.
///
/// # Errors
/// `InvalidInput` for a capacity that is not 1 to 65536.
pub fn channel_over(capacity: usize, arena: Region) -> io::Result<(LocalClient, LocalServer)> {
    if !(1..=SLOTS_MAX).contains(&capacity) {
        let text = format!("channel capacity {capacity} is not in 1..={SLOTS_MAX}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let mut table = RegionTable::default();
    table.insert(RegionId::ARENA, arena.clone());
    let regions = Rc::new(Version {
        table,
        next: OnceCell::new(),
    });
    let pipe = Rc::new(Pipe {
        down: RefCell::new(VecDeque::with_capacity(capacity)),
        up: RefCell::new(VecDeque::with_capacity(capacity)),
        ended: Cell::new(false),
    });
    let client = LocalClient {
        pipe: Rc::clone(&pipe),
        inflight: InFlight::new(capacity),
        regions: Rc::clone(&regions),
        arena,
    };
    Ok((client, LocalServer { pipe, regions }))
}

/// The state that both ends share.
#[derive(Debug)]
struct Pipe {
    down: RefCell<VecDeque<Submission>>,
    up: RefCell<VecDeque<Completion>>,
    ended: Cell<bool>,
}

/// One version of the region table. The client appends versions, and the server moves on to the newest: so the server can lend a table by
/// reference while the client changes it.
#[derive(Debug)]
struct Version {
    table: RegionTable,
    next: OnceCell<Rc<Version>>,
}

impl Drop for Version {
    // One by one: if many regions were added while the server was not polled, the chain is long.
    fn drop(&mut self) {
        let mut next = self.next.take();
        while let Some(mut version) = next.and_then(Rc::into_inner) {
            next = version.next.take();
        }
    }
}

/// The end that sends requests, in the same thread as its server.
#[derive(Debug)]
pub struct LocalClient {
    pipe: Rc<Pipe>,
    inflight: InFlight,
    regions: Rc<Version>,
    arena: Region,
}

impl LocalClient {
    /// Requests submitted so far.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.inflight.entered()
    }

    /// Requests submitted whose completions have not been collected.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inflight.len()
    }

    fn change_regions(&mut self, change: impl FnOnce(&mut RegionTable) -> bool) -> bool {
        let mut table = self.regions.table.clone();
        let done = change(&mut table);
        let version = Rc::new(Version {
            table,
            next: OnceCell::new(),
        });
        self.regions
            .next
            .set(Rc::clone(&version))
            .expect("only the client appends, and only to the newest");
        self.regions = version;
        done
    }
}

impl ClientPort for LocalClient {
    fn credits(&self) -> usize {
        if self.pipe.ended.get() {
            0
        } else {
            self.inflight.free()
        }
    }

    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError> {
        if self.pipe.ended.get() {
            return Err(PortError::Broken);
        }
        let submission = self
            .inflight
            .enter(cookie, submission)
            .ok_or(PortError::Full)?;
        self.pipe.down.borrow_mut().push_back(submission);
        Ok(())
    }

    fn publish(&mut self) {}

    fn complete(&mut self) -> Option<(u64, Completion)> {
        let completion = self.pipe.up.borrow_mut().pop_front()?;
        if let Some(cookie) = self.inflight.take(&completion) {
            return Some((cookie, completion));
        }
        debug_assert!(
            false,
            "a server of this thread answered tag {:#x}, which is not in flight",
            completion.tag
        );
        tracing::error!(
            tag = completion.tag,
            "answer to a request that is not in flight: channel closed"
        );
        self.pipe.ended.set(true);
        None
    }

    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError> {
        if self.pipe.ended.get() {
            return Err(PortError::Broken);
        }
        if self.change_regions(|table| table.insert(id, region)) {
            Ok(())
        } else {
            Err(PortError::Full)
        }
    }

    fn region_ready(&self, id: RegionId) -> bool {
        !self.pipe.ended.get() && self.regions.table.get(id).is_some()
    }

    fn remove_region(&mut self, id: RegionId) {
        self.change_regions(|table| table.remove(id).is_some());
    }

    fn arena(&self) -> &Region {
        &self.arena
    }

    fn incarnation(&self) -> u64 {
        1
    }

    fn is_connected(&self) -> bool {
        !self.pipe.ended.get()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.pipe.up.borrow().is_empty()
    }

    fn wake(&mut self) {}
}

impl Drop for LocalClient {
    fn drop(&mut self) {
        self.pipe.ended.set(true);
    }
}

/// The end that answers requests, in the same thread as its client.
#[derive(Debug)]
pub struct LocalServer {
    pipe: Rc<Pipe>,
    regions: Rc<Version>,
}

impl ServerPort for LocalServer {
    fn accept(&mut self) -> Option<Submission> {
        while let Some(newer) = self.regions.next.get() {
            self.regions = Rc::clone(newer);
        }
        if self.pipe.ended.get() {
            return None;
        }
        self.pipe.down.borrow_mut().pop_front()
    }

    fn complete(&mut self, completion: Completion) {
        if !self.pipe.ended.get() {
            self.pipe.up.borrow_mut().push_back(completion);
        }
    }

    fn publish(&mut self) {}

    fn regions(&self) -> &RegionTable {
        let mut version = &self.regions;
        while let Some(newer) = version.next.get() {
            version = newer;
        }
        &version.table
    }

    fn break_channel(&mut self, why: &str) {
        tracing::warn!(why, "channel closed by its server");
        self.pipe.ended.set(true);
    }

    fn is_closed(&self) -> bool {
        self.pipe.ended.get()
    }

    fn prepare_sleep(&mut self) -> bool {
        self.pipe.ended.get() || self.pipe.down.borrow().is_empty()
    }

    fn wake(&mut self) {}
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.pipe.ended.set(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(offset: u64) -> Submission {
        Submission {
            offset,
            ..Submission::default()
        }
    }

    fn answer(submission: &Submission) -> Completion {
        Completion {
            tag: submission.tag,
            values: [submission.offset, 0],
            ..Completion::default()
        }
    }

    #[test]
    fn requests_come_back_with_their_cookie_and_credits_bound_what_is_in_flight() {
        let (mut client, mut server) = channel(2, 4096).unwrap();
        for round in 0..10u64 {
            client.submit(100 + round, request(round)).unwrap();
            client.submit(200 + round, request(round)).unwrap();
            assert_eq!(client.submit(0, request(0)), Err(PortError::Full));
            assert!(!server.prepare_sleep(), "there is work");
            let first = server.accept().unwrap();
            let second = server.accept().unwrap();
            assert_eq!(server.accept(), None);
            assert!(server.prepare_sleep() && client.prepare_sleep());
            server.complete(answer(&second));
            assert_eq!(
                client.credits(),
                0,
                "the credit comes back when the completion is taken"
            );
            assert!(!client.prepare_sleep());
            assert_eq!(
                client.complete().unwrap().0,
                200 + round,
                "in the order of completion"
            );
            server.complete(answer(&first));
            assert_eq!(client.complete().unwrap().0, 100 + round);
            assert_eq!(client.complete(), None);
        }
        assert_eq!(
            (client.submitted(), client.in_flight(), client.credits()),
            (20, 0, 2)
        );
    }

    #[test]
    fn a_region_is_there_at_once_and_gone_at_once() {
        let (mut client, mut server) = channel(1, 4096).unwrap();
        let region = Region::anonymous(8192).unwrap();
        client.add_region(RegionId(7), region.clone()).unwrap();
        assert!(client.region_ready(RegionId(7)));
        region.write(8, b"shared").unwrap();
        let mut seen = [0; 6];
        server
            .regions()
            .get(RegionId(7))
            .unwrap()
            .read(8, &mut seen)
            .unwrap();
        assert_eq!(&seen, b"shared");
        assert_eq!(server.accept(), None);
        client.remove_region(RegionId(7));
        assert!(server.regions().get(RegionId(7)).is_none());
        assert_eq!(server.regions().get(RegionId::ARENA).unwrap().len(), 4096);
    }

    #[test]
    fn many_region_changes_before_the_first_poll_are_freed_without_recursion() {
        let (mut client, server) = channel(1, 4096).unwrap();
        let region = Region::anonymous(4096).unwrap();
        for _ in 0..200_000 {
            client.add_region(RegionId(1), region.clone()).unwrap();
        }
        drop(client);
        drop(server);
    }

    #[test]
    fn either_end_gone_breaks_the_other_but_given_answers_arrive() {
        let (mut client, mut server) = channel(2, 4096).unwrap();
        client.submit(1, request(0)).unwrap();
        let taken = server.accept().unwrap();
        server.complete(answer(&taken));
        drop(server);
        assert!(!client.is_connected());
        assert_eq!(client.submit(2, request(0)), Err(PortError::Broken));
        assert_eq!(client.complete().unwrap().0, 1);

        let (mut client, mut server) = channel(2, 4096).unwrap();
        client.submit(1, request(0)).unwrap();
        drop(client);
        assert!(server.is_closed());
        assert_eq!(server.accept(), None);
        server.complete(Completion::default());

        let (client, mut server) = channel(2, 4096).unwrap();
        server.break_channel("test");
        assert!(server.is_closed() && !client.is_connected());
    }
}
