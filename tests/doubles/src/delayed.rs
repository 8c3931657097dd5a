//! A backend that does requests late and in another order, as any disk may: what a fast one never shows.
//!
//! Invariants
//! - A request is held before its start, its reply is held before it is given, or both, or neither: a process that is
//!   killed meanwhile leaves requests that have happened and were not answered, and requests that have not happened.
//! - Nothing is held for longer than the longest delay, twice. Each request is started once and answered once.
//! - Requests that are in flight together have no order by the contract, so nothing here may break a promise.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolReport, Wait};
use archipelago_protocol::handle::FencingToken;
use archipelago_protocol::object::{ObjectId, ObjectReply, ObjectRequest};
use archipelago_runtime::{Clock, Source};
use xseg::Span;

use crate::simulated::Random;

/// Delays are drawn below the longest one, halved up to this many times: most are short, a few are long.
const HALVINGS: u64 = 8;

/// What waits for its moment.
#[derive(Debug)]
enum Held {
    Start {
        ticket: u64,
        request: ObjectRequest,
        memory: Vec<Span>,
    },
    Reply {
        ticket: u64,
        reply: ObjectReply,
    },
}

/// Another backend, with delays.
pub struct Delayed<B> {
    backend: B,
    /// Only for timeouts, which wake the thread.
    source: Source,
    clock: Arc<dyn Clock>,
    random: Random,
    longest: Duration,
    /// By the moment of release, then by number.
    held: BTreeMap<(Duration, u64), Held>,
    next: u64,
    /// The earliest timeout that is under way.
    alarm: Option<Duration>,
    delays: u64,
}

impl<B: Backend> Delayed<B> {
    /// Delays of up to `longest` around `backend`, by `seed`. The thread of `source` is woken when one is over.
    pub fn new(
        backend: B,
        source: Source,
        clock: Arc<dyn Clock>,
        longest: Duration,
        seed: u64,
    ) -> Self {
        Delayed {
            backend,
            source,
            clock,
            random: Random::new(seed),
            longest,
            held: BTreeMap::new(),
            next: 0,
            alarm: None,
            delays: 0,
        }
    }

    /// How long to hold something; `None`: not at all.
    fn delay(&mut self) -> Option<Duration> {
        if self.random.below(2) == 0 {
            return None;
        }
        let bound = self.longest.as_micros() >> self.random.below(HALVINGS);
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        Some(Duration::from_micros(self.random.below(bound)))
    }

    fn hold(&mut self, delay: Duration, held: Held) {
        self.delays += 1;
        let moment = self.clock.now() + delay;
        self.held.insert((moment, self.next), held);
        self.next += 1;
    }

    /// The next reply of the backend that is not held.
    fn poll_backend(&mut self) -> Option<(u64, ObjectReply)> {
        while let Some((ticket, reply)) = self.backend.poll() {
            match self.delay() {
                None => return Some((ticket, reply)),
                Some(delay) => self.hold(delay, Held::Reply { ticket, reply }),
            }
        }
        None
    }

    /// The next reply whose moment has come; starts what is to be started meanwhile.
    fn release(&mut self, now: Duration) -> Option<(u64, ObjectReply)> {
        while let Some(first) = self.held.first_entry() {
            if first.key().0 > now {
                return None;
            }
            match first.remove() {
                Held::Start {
                    ticket,
                    request,
                    memory,
                } => self.backend.start(ticket, &request, &memory),
                Held::Reply { ticket, reply } => return Some((ticket, reply)),
            }
        }
        None
    }

    /// Sees that the thread is awake when the next moment comes.
    fn set_alarm(&mut self, now: Duration) {
        let Some((&(moment, _), _)) = self.held.first_key_value() else {
            return;
        };
        if self
            .alarm
            .is_none_or(|alarm| alarm <= now || moment < alarm)
        {
            self.source.timeout(moment, 0);
            self.alarm = Some(moment);
        }
    }
}

impl<B: Backend> Backend for Delayed<B> {
    fn name(&self) -> &str {
        self.backend.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.backend.capabilities()
    }

    fn look(&mut self, now: Duration) {
        self.backend.look(now);
    }

    fn waits(&self) -> Vec<Wait> {
        self.backend.waits()
    }

    fn pool_report(&self) -> Option<PoolReport> {
        self.backend.pool_report()
    }

    fn is_fenced(&self, token: &FencingToken) -> bool {
        self.backend.is_fenced(token)
    }

    fn failed_pool_syncs_elsewhere(&self) -> u64 {
        self.backend.failed_pool_syncs_elsewhere()
    }

    fn written_before(&mut self, id: ObjectId) {
        self.backend.written_before(id);
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.backend.counters();
        counters.push(("delays", self.delays));
        counters
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        let Some(delay) = self.delay() else {
            return self.backend.start(ticket, request, memory);
        };
        let held = Held::Start {
            ticket,
            request: *request,
            memory: memory.to_vec(),
        };
        self.hold(delay, held);
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        // What the timeouts say is only that the thread is awake.
        while self.source.next().is_some() {}
        let now = self.clock.now();
        let reply = self.release(now).or_else(|| self.poll_backend());
        if reply.is_none() {
            self.set_alarm(now);
        }
        reply
    }
}

impl<B> fmt::Debug for Delayed<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delayed")
            .field("held", &self.held.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use archipelago_protocol::Lineage;
    use archipelago_protocol::object::{ObjectId, ObjectOp};
    use archipelago_runtime::{Config, ManualClock, Reactor};

    use super::*;
    use crate::MemoryBackend;

    const LONGEST: Duration = Duration::from_millis(64);

    /// A backend whose timeouts lie in the past of the real clock, so that the reactor may run or not.
    fn delayed(seed: u64) -> (Delayed<MemoryBackend>, Arc<ManualClock>, Reactor) {
        let clock = Arc::new(ManualClock::default());
        let reactor = Reactor::new(Config::default(), clock.clone()).unwrap();
        let source = reactor.source();
        let backend = MemoryBackend::new();
        (
            Delayed::new(backend, source, clock.clone(), LONGEST, seed),
            clock,
            reactor,
        )
    }

    fn stat(backend: &mut Delayed<MemoryBackend>, ticket: u64) {
        let request = ObjectRequest::new(ObjectOp::StatPool, ObjectId::pack(Lineage(1), ticket));
        backend.start(ticket, &request, &[]);
    }

    #[test]
    fn everything_is_answered_once_late_and_in_another_order() {
        let (mut backend, clock, _reactor) = delayed(7);
        let mut order = Vec::new();
        for ticket in 0..100 {
            stat(&mut backend, ticket);
        }
        let mut now = Duration::ZERO;
        while now <= 2 * LONGEST {
            order.extend(std::iter::from_fn(|| backend.poll()).map(|(ticket, _)| ticket));
            if now.is_zero() {
                assert!(!order.is_empty() && order.len() < 60, "{}", order.len());
            }
            clock.advance(Duration::from_millis(1));
            now += Duration::from_millis(1);
        }
        assert!(!order.is_sorted(), "another order");
        order.sort_unstable();
        assert_eq!(order, (0..100).collect::<Vec<_>>());
        assert!(backend.held.is_empty());
    }

    #[test]
    fn the_same_seed_gives_the_same_order() {
        let order = |seed: u64| {
            let (mut backend, clock, _reactor) = delayed(seed);
            for ticket in 0..50 {
                stat(&mut backend, ticket);
            }
            let mut order = Vec::new();
            while order.len() < 50 {
                order.extend(std::iter::from_fn(|| backend.poll()).map(|(ticket, _)| ticket));
                clock.advance(Duration::from_millis(1));
            }
            order
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn some_requests_happen_before_they_are_answered_and_some_wait() {
        let (mut backend, _clock, _reactor) = delayed(3);
        for ticket in 0..100 {
            stat(&mut backend, ticket);
        }
        while backend.poll().is_some() {}
        let starts = |held: &&Held| matches!(held, Held::Start { .. });
        let waiting = backend.held.values().filter(starts).count();
        let happened = backend.held.len() - waiting;
        assert!(waiting > 10 && happened > 10, "{waiting} and {happened}");
    }

    #[test]
    fn the_thread_is_woken_when_a_delay_is_over() {
        let clock: Arc<dyn Clock> = Arc::new(archipelago_runtime::SystemClock);
        let mut reactor = Reactor::new(Config::default(), clock.clone()).unwrap();
        let source = reactor.source();
        let mut backend = Delayed::new(MemoryBackend::new(), source, clock, LONGEST, 1);
        for ticket in 0..100 {
            stat(&mut backend, ticket);
        }
        let mut done = 0;
        // Without wake-ups each of these sleeps would take a minute.
        while done < 100 {
            done += std::iter::from_fn(|| backend.poll()).count();
            if done < 100 {
                reactor.sleep(Duration::from_secs(60));
            }
        }
    }
}
