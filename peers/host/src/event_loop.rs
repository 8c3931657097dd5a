//! What the data thread sleeps on, as the shells use it: descriptors under watch, and moments.
//!
//! Invariant: what a signal means does not matter. Any one of them makes every shell look after its sockets and poll.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_runtime::{Clock, Source, Watch};

/// Token of every watch.
const TOKEN: u64 = 1;

/// Watches of one process.
pub(crate) struct EventLoop {
    source: Source,
    clock: Arc<dyn Clock>,
    watched: Vec<(WatchId, Watch)>,
    next: u64,
    /// Timeouts that are still to come: a few.
    alarms: Vec<Duration>,
}

/// A watched descriptor. Never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WatchId(u64);

impl EventLoop {
    pub(crate) fn new(source: Source, clock: Arc<dyn Clock>) -> EventLoop {
        EventLoop {
            source,
            clock,
            watched: Vec::new(),
            next: 1,
            alarms: Vec::new(),
        }
    }

    /// Monotonic time.
    pub(crate) fn now(&self) -> Duration {
        self.clock.now()
    }

    /// Signals whenever `fd` becomes readable.
    pub(crate) fn watch(&mut self, fd: BorrowedFd<'_>) -> std::io::Result<WatchId> {
        let watch = self.source.poll_readable(fd, TOKEN)?;
        let id = WatchId(self.next);
        self.next += 1;
        self.watched.push((id, watch));
        Ok(id)
    }

    /// Ends a watch.
    pub(crate) fn unwatch(&mut self, id: WatchId) {
        self.watched.retain(|(known, _)| *known != id);
    }

    /// Signals at `deadline`, or earlier.
    pub(crate) fn alarm(&mut self, deadline: Duration) {
        let now = self.clock.now();
        self.alarms.retain(|alarm| *alarm > now);
        if self.alarms.iter().all(|alarm| deadline < *alarm) {
            self.source.timeout(deadline, TOKEN);
            self.alarms.push(deadline);
        }
    }

    /// Takes all signals. Whether there were any.
    pub(crate) fn take_signals(&mut self) -> bool {
        let mut any = false;
        while self.source.next().is_some() {
            any = true;
        }
        any
    }

    /// Whether a signal waits.
    pub(crate) fn has_signals(&self) -> bool {
        self.source.has_events()
    }
}

/// An event loop as a device sees it.
pub(crate) struct LoopWakeups {
    events: Rc<RefCell<EventLoop>>,
    watched: Vec<WatchId>,
}

impl LoopWakeups {
    pub(crate) fn new(events: &Rc<RefCell<EventLoop>>) -> LoopWakeups {
        LoopWakeups {
            events: Rc::clone(events),
            watched: Vec::new(),
        }
    }
}

impl archipelago_endpoint::Wakeups for LoopWakeups {
    fn watch(&mut self, fd: OwnedFd) -> std::io::Result<archipelago_endpoint::WatchId> {
        let id = self.events.borrow_mut().watch(fd.as_fd())?;
        self.watched.push(id);
        Ok(archipelago_endpoint::WatchId(id.0))
    }

    fn unwatch(&mut self, id: archipelago_endpoint::WatchId) {
        self.watched.retain(|known| known.0 != id.0);
        self.events.borrow_mut().unwatch(WatchId(id.0));
    }

    fn now(&self) -> Duration {
        self.events.borrow().now()
    }

    fn alarm(&mut self, deadline: Duration) {
        self.events.borrow_mut().alarm(deadline);
    }
}

impl Drop for LoopWakeups {
    fn drop(&mut self) {
        for id in self.watched.drain(..) {
            self.events.borrow_mut().unwatch(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use archipelago_runtime::{Config, ManualClock, Reactor};

    use super::*;

    #[test]
    fn an_earlier_alarm_does_not_wait_for_a_later_one_and_serves_for_it() {
        let clock = Arc::new(ManualClock::default());
        let mut reactor =
            Reactor::new(Config::default(), clock.clone(), Box::new(|_: &_| {})).unwrap();
        let mut events = EventLoop::new(reactor.context().source(), clock.clone());
        let ms = Duration::from_millis(1);
        events.alarm(1000 * ms);
        events.alarm(10 * ms);
        assert_eq!(events.alarms, [1000 * ms, 10 * ms]);
        events.alarm(1000 * ms);
        assert_eq!(events.alarms, [1000 * ms, 10 * ms], "still to come");
        clock.advance(10 * ms);
        events.alarm(1010 * ms);
        assert_eq!(events.alarms, [1000 * ms], "comes before");
        clock.advance(1000 * ms);
        events.alarm(1010 * ms + ms);
        assert_eq!(events.alarms, [1011 * ms]);
    }
}
