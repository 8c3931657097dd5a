//! What wakes the data thread: watched descriptors, and time.
//!
//! A signal names its receiver. After one for the shells, every shell services its sockets; after one for a driver, only that driver is
//! polled.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_endpoint::Wakeups;
use archipelago_runtime::ublk::UblkQueue;
use archipelago_runtime::ublk::abi::Descriptor;
use archipelago_runtime::{Clock, Source, Watch};
use archipelago_ublk::{Completed, KernelQueue, KernelQueues};
use xseg::Span;

use crate::readiness::DriverId;

/// Token of the shells' watches. The token of a driver's watch is the driver's index, with its mark plus one above it.
const TOKEN_SHELLS: u64 = 1 << 62;
/// Token of every timeout.
const TOKEN_TIMEOUT: u64 = 2 << 62;
/// Token of commands of a kernel's queue: its driver's index, the tag, and a part of the queue's serial number.
const TOKEN_COMMAND: u64 = 3 << 62;
/// Bit offset of the mark of a driver's watch, and of the tag of a command.
const MARK_SHIFT: u32 = 32;
/// Bit offset of a queue's serial number, of which the lower bits fit.
const SERIAL_SHIFT: u32 = 48;
const SERIAL_MASK: u64 = (1 << 14) - 1;

/// The token of a driver's watch.
fn driver_token(driver: DriverId, mark: Option<u8>) -> u64 {
    let mark = mark.map_or(0, |mark| u64::from(mark) + 1);
    mark << MARK_SHIFT | u64::from(driver.0)
}

/// The driver of a token, and its mark as a bit.
fn of_token(token: u64) -> (DriverId, u64) {
    let driver = u32::try_from(token & u64::from(u32::MAX)).expect("masked");
    let mark = (token >> MARK_SHIFT).checked_sub(1);
    let bit = mark.and_then(|mark| 1_u64.checked_shl(u32::try_from(mark).ok()?));
    (DriverId(driver), bit.unwrap_or(0))
}

/// Completed commands of a kernel's queue.
#[derive(Debug)]
struct QueueEvents {
    serial: u64,
    completed: RefCell<VecDeque<Completed>>,
}

/// Watches and alarms of one data thread.
pub(crate) struct EventLoop {
    source: Source,
    clock: Arc<dyn Clock>,
    watched: BTreeMap<WatchId, Watch>,
    next: u64,
    /// Timeouts that are still to come: few.
    timeouts: Vec<Duration>,
    /// When the shells are to service their sockets.
    shells_due: Option<Duration>,
    /// When drivers are to be polled.
    drivers_due: BTreeSet<(Duration, DriverId)>,
    /// Drivers that were signalled.
    woken: Vec<DriverId>,
    /// The marks of each driver that has marked watches, by its index.
    marks: Vec<Option<Rc<Cell<u64>>>>,
    /// The kernel's queue of each driver that has one, by its index.
    queues: Vec<Option<Rc<QueueEvents>>>,
}

/// A watched descriptor. No id is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WatchId(u64);

impl EventLoop {
    pub(crate) fn new(source: Source, clock: Arc<dyn Clock>) -> EventLoop {
        EventLoop {
            source,
            clock,
            watched: BTreeMap::new(),
            next: 1,
            timeouts: Vec::new(),
            shells_due: None,
            drivers_due: BTreeSet::new(),
            woken: Vec::new(),
            marks: Vec::new(),
            queues: Vec::new(),
        }
    }

    /// Monotonic time.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Signals the shells whenever `fd` becomes readable.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>) -> std::io::Result<WatchId> {
        self.watch_as(fd, TOKEN_SHELLS)
    }

    fn watch_as(&mut self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<WatchId> {
        let watch = self.source.poll_readable(fd, token)?;
        let id = WatchId(self.next);
        self.next += 1;
        self.watched.insert(id, watch);
        Ok(id)
    }

    /// Requests one signal with `token`, when the descriptor of the watch can be written.
    fn await_writable(&self, id: WatchId, token: u64) {
        if let Some(watch) = self.watched.get(&id) {
            self.source.poll_writable_once(watch, token);
        }
    }

    /// Ends a watch.
    pub(crate) fn unwatch(&mut self, id: WatchId) {
        self.watched.remove(&id);
    }

    /// Signals the shells at `deadline`, or earlier.
    pub(crate) fn alarm(&mut self, deadline: Duration) {
        let due = self.shells_due.map_or(deadline, |due| due.min(deadline));
        self.shells_due = Some(due);
        self.timeout(due);
    }

    /// Has the kernel signal at `deadline`, unless an earlier timeout is set: later deadlines are checked then.
    fn timeout(&mut self, deadline: Duration) {
        let now = self.clock.now();
        self.timeouts.retain(|timeout| *timeout > now);
        if self.timeouts.iter().all(|timeout| deadline < *timeout) {
            self.source.timeout(deadline, TOKEN_TIMEOUT);
            self.timeouts.push(deadline);
        }
    }

    /// Handles all signals. Returns whether the shells have to service their sockets.
    pub(crate) fn take_signals(&mut self) -> bool {
        let mut shells = false;
        let mut timeouts = false;
        while let Some(event) = self.source.next() {
            match event.token {
                TOKEN_SHELLS => shells = true,
                TOKEN_TIMEOUT => timeouts = true,
                token if token & TOKEN_COMMAND == TOKEN_COMMAND => {
                    self.complete(token, event.result);
                }
                token => {
                    let (driver, mark) = of_token(token);
                    if mark != 0 {
                        self.mark(driver, mark);
                    }
                    self.woken.push(driver);
                }
            }
        }
        if timeouts {
            shells |= self.take_due();
        }
        shells
    }

    fn mark(&self, driver: DriverId, mark: u64) {
        let marks = self.marks.get(driver.0 as usize);
        // The driver may have ended.
        if let Some(Some(marks)) = marks {
            marks.set(marks.get() | mark);
        }
    }

    /// Handles a completed command of a kernel's queue.
    fn complete(&mut self, token: u64, result: i32) {
        let (driver, _) = of_token(token & u64::from(u32::MAX));
        let queue = self.queues.get(driver.0 as usize).and_then(Option::as_ref);
        // A command may outlive its driver.
        let serial = token >> SERIAL_SHIFT & SERIAL_MASK;
        if let Some(queue) = queue.filter(|queue| queue.serial == serial) {
            let tag = u16::try_from(token >> MARK_SHIFT & u64::from(u16::MAX)).expect("masked");
            queue
                .completed
                .borrow_mut()
                .push_back(Completed { tag, result });
            self.woken.push(driver);
        }
    }

    /// Sets the receiver of completed commands for `driver`.
    fn set_queue(&mut self, driver: DriverId, queue: Option<Rc<QueueEvents>>) {
        let place = driver.0 as usize;
        if self.queues.len() <= place {
            self.queues.resize(place + 1, None);
        }
        self.queues[place] = queue;
    }

    /// Sets the receiver of the marks of `driver`.
    fn set_marks(&mut self, driver: DriverId, marks: Option<Rc<Cell<u64>>>) {
        let place = driver.0 as usize;
        if self.marks.len() <= place {
            self.marks.resize(place + 1, None);
        }
        self.marks[place] = marks;
    }

    /// Signals the drivers that are due; returns whether the shells are due.
    fn take_due(&mut self) -> bool {
        let now = self.clock.now();
        while let Some((due, driver)) = self.drivers_due.first().copied() {
            if due > now {
                break;
            }
            self.drivers_due.pop_first();
            self.woken.push(driver);
        }
        let shells = self.shells_due.is_some_and(|due| due <= now);
        if shells {
            self.shells_due = None;
        }
        let next = self.drivers_due.first().map(|(due, _)| *due);
        if let Some(due) = next.into_iter().chain(self.shells_due).min() {
            self.timeout(due);
        }
        shells
    }

    /// Whether there are signals to handle.
    pub(crate) fn has_signals(&self) -> bool {
        self.source.has_events()
    }

    /// Replaces `woken` by the drivers that were signalled. One may be listed twice.
    pub(crate) fn take_woken(&mut self, woken: &mut Vec<DriverId>) {
        woken.clear();
        std::mem::swap(woken, &mut self.woken);
    }
}

/// The event loop, as one driver uses it.
pub(crate) struct LoopWakeups {
    events: Rc<RefCell<EventLoop>>,
    driver: DriverId,
    watched: Vec<WatchId>,
    /// Made with the driver's first marked watch.
    marks: Option<Rc<Cell<u64>>>,
    /// The driver's alarm, which may have passed already.
    alarm: Duration,
}

impl LoopWakeups {
    pub(crate) fn new(events: &Rc<RefCell<EventLoop>>, driver: DriverId) -> LoopWakeups {
        LoopWakeups {
            events: Rc::clone(events),
            driver,
            watched: Vec::new(),
            marks: None,
            alarm: Duration::ZERO,
        }
    }

    fn watch_as(
        &mut self,
        fd: OwnedFd,
        mark: Option<u8>,
    ) -> std::io::Result<archipelago_endpoint::WatchId> {
        let token = driver_token(self.driver, mark);
        let id = self.events.borrow_mut().watch_as(fd.as_fd(), token)?;
        self.watched.push(id);
        Ok(archipelago_endpoint::WatchId(id.0))
    }
}

impl Wakeups for LoopWakeups {
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<archipelago_endpoint::WatchId> {
        self.watch_as(fd, None)
    }

    fn watch_marked(
        &mut self,
        fd: OwnedFd,
        mark: u8,
    ) -> std::io::Result<archipelago_endpoint::WatchId> {
        if self.marks.is_none() {
            let marks = Rc::new(Cell::new(0));
            self.marks = Some(Rc::clone(&marks));
            self.events.borrow_mut().set_marks(self.driver, Some(marks));
        }
        self.watch_as(fd, Some(mark))
    }

    fn take_marks(&mut self) -> u64 {
        self.marks.as_ref().map_or(0, |marks| marks.take())
    }

    fn await_writable(&mut self, id: archipelago_endpoint::WatchId, mark: u8) {
        let token = driver_token(self.driver, Some(mark));
        self.events.borrow().await_writable(WatchId(id.0), token);
    }

    fn unwatch(&mut self, id: archipelago_endpoint::WatchId) {
        self.watched.retain(|known| known.0 != id.0);
        self.events.borrow_mut().unwatch(WatchId(id.0));
    }

    fn now(&self) -> Duration {
        self.events.borrow().now()
    }

    fn alarm(&mut self, deadline: Duration) {
        let mut events = self.events.borrow_mut();
        let pending = events.drivers_due.contains(&(self.alarm, self.driver));
        if pending && self.alarm <= deadline {
            return;
        }
        events.drivers_due.remove(&(self.alarm, self.driver));
        self.alarm = deadline;
        events.drivers_due.insert((deadline, self.driver));
        events.timeout(deadline);
    }
}

/// A queue of the kernel, whose commands go through the thread's ring.
pub(crate) struct LoopQueue {
    events: Rc<RefCell<EventLoop>>,
    driver: DriverId,
    source: Source,
    queue: UblkQueue,
    completed: Rc<QueueEvents>,
}

impl LoopQueue {
    fn token(&self, tag: u16) -> u64 {
        TOKEN_COMMAND
            | self.completed.serial << SERIAL_SHIFT
            | u64::from(tag) << MARK_SHIFT
            | u64::from(self.driver.0)
    }
}

impl KernelQueue for LoopQueue {
    fn fetch(&mut self, tag: u16, buffer: &Span) {
        let token = self.token(tag);
        self.source.fetch(&self.queue, tag, buffer, token);
    }

    fn commit_and_fetch(&mut self, tag: u16, result: i32, buffer: &Span) {
        let token = self.token(tag);
        self.source
            .commit_and_fetch(&self.queue, tag, result, buffer, token);
    }

    fn next_completed(&mut self) -> Option<Completed> {
        self.completed.completed.borrow_mut().pop_front()
    }

    fn descriptor(&self, tag: u16) -> Option<Descriptor> {
        self.queue.descriptor(tag)
    }
}

impl Drop for LoopQueue {
    fn drop(&mut self) {
        self.events.borrow_mut().set_queue(self.driver, None);
    }
}

impl KernelQueues for LoopWakeups {
    type Queue = LoopQueue;

    fn kernel_queue(
        &mut self,
        fd: OwnedFd,
        depth: u16,
        buffer_len: u32,
    ) -> std::io::Result<LoopQueue> {
        let queue = UblkQueue::open(fd, depth, buffer_len as usize)?;
        let mut events = self.events.borrow_mut();
        let completed = Rc::new(QueueEvents {
            serial: events.next & SERIAL_MASK,
            completed: RefCell::new(VecDeque::with_capacity(usize::from(depth))),
        });
        events.next += 1;
        events.set_queue(self.driver, Some(Rc::clone(&completed)));
        Ok(LoopQueue {
            events: Rc::clone(&self.events),
            driver: self.driver,
            source: events.source.clone(),
            queue,
            completed,
        })
    }
}

impl Drop for LoopWakeups {
    fn drop(&mut self) {
        let mut events = self.events.borrow_mut();
        for id in self.watched.drain(..) {
            events.unwatch(id);
        }
        events.drivers_due.remove(&(self.alarm, self.driver));
        if self.marks.is_some() {
            events.set_marks(self.driver, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_runtime::{Config, ManualClock, Reactor};

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn event_loop() -> (Rc<RefCell<EventLoop>>, Arc<ManualClock>, Reactor) {
        let clock = Arc::new(ManualClock::default());
        let reactor = Reactor::new(Config::default(), clock.clone()).unwrap();
        let events = EventLoop::new(reactor.source(), clock.clone());
        (Rc::new(RefCell::new(events)), clock, reactor)
    }

    #[test]
    fn an_earlier_timeout_does_not_wait_for_a_later_one_and_serves_for_it() {
        let (events, clock, _reactor) = event_loop();
        let mut events = events.borrow_mut();
        events.timeout(1000 * MS);
        events.timeout(10 * MS);
        assert_eq!(events.timeouts, [1000 * MS, 10 * MS]);
        events.timeout(1000 * MS);
        assert_eq!(events.timeouts, [1000 * MS, 10 * MS], "still to come");
        clock.advance(10 * MS);
        events.timeout(1010 * MS);
        assert_eq!(events.timeouts, [1000 * MS], "comes before");
        clock.advance(1000 * MS);
        events.timeout(1010 * MS + MS);
        assert_eq!(events.timeouts, [1011 * MS]);
    }

    #[test]
    fn a_mark_says_which_descriptor_was_signalled_and_is_taken_once() {
        use std::io::Write as _;
        let (events, _clock, mut reactor) = event_loop();
        let mut wakeups = LoopWakeups::new(&events, DriverId(7));
        let (mut ours, theirs): (Vec<_>, Vec<_>) = (0..3)
            .map(|_| std::os::unix::net::UnixStream::pair().unwrap())
            .unzip();
        for (mark, stream) in [0, 17, 63].into_iter().zip(theirs) {
            wakeups.watch_marked(stream.into(), mark).unwrap();
        }
        let mut signalled = |ours: &mut Vec<std::os::unix::net::UnixStream>, index: usize| {
            ours[index].write_all(b"x").unwrap();
            reactor.turn();
            reactor.sleep(1000 * MS);
            events.borrow_mut().take_signals();
            let marks = wakeups.take_marks();
            assert_eq!(wakeups.take_marks(), 0);
            marks
        };
        assert_eq!(signalled(&mut ours, 1), 1 << 17);
        assert_eq!(signalled(&mut ours, 2), 1 << 63);
        assert_eq!(signalled(&mut ours, 0), 1);
        let mut woken = Vec::new();
        events.borrow_mut().take_woken(&mut woken);
        assert_eq!(woken, [DriverId(7); 3]);
        drop(wakeups);
        assert_eq!(
            of_token(driver_token(DriverId(7), Some(63))),
            (DriverId(7), 1 << 63)
        );
        assert_eq!(
            of_token(driver_token(DriverId(u32::MAX), None)),
            (DriverId(u32::MAX), 0)
        );
    }

    #[test]
    fn an_alarm_signals_its_driver_alone_and_the_earliest_of_a_driver_counts() {
        let (events, clock, _reactor) = event_loop();
        let [mut first, mut second] = [1, 2].map(|id| LoopWakeups::new(&events, DriverId(id)));
        first.alarm(30 * MS);
        first.alarm(10 * MS);
        first.alarm(20 * MS);
        second.alarm(40 * MS);
        events.borrow_mut().alarm(50 * MS);
        let mut woken = Vec::new();
        for (at, drivers, shells) in [
            (5, vec![], false),
            (10, vec![DriverId(1)], false),
            (40, vec![DriverId(2)], false),
            (50, vec![], true),
        ] {
            clock.advance(at * MS - clock.now());
            let mut events = events.borrow_mut();
            assert_eq!(events.take_due(), shells, "at {at} ms");
            events.take_woken(&mut woken);
            assert_eq!(woken, drivers, "at {at} ms");
        }
        second.alarm(60 * MS);
        drop(second);
        assert!(events.borrow().drivers_due.is_empty());
    }
}
