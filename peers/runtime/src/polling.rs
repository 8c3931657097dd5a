//! Whether to poll for work before sleeping, decided by whether polling has paid so far.
//!
//! A poll that finds work saves a sleep and a wake-up, some 15 to 30 us of latency. A poll that finds none costs its CPU time, and the
//! sleep follows all the same. All requests that are awaited share the saving, and it is negligible beside the duration of a large request.
//! So the thread does not poll while requests are many or large ([`REQUESTS_MAX`], [`BYTES_MAX`]): during a sleep, their completions
//! gather. It polls for few and small requests where that has paid. There are two kinds of waits, which alternate, and each has its own
//! experience: waits for a guest (no request is in the kernel or with the threads of a library), and waits for a device.
//!
//! | state of a kind of waits | next wait | becomes |
//! |---|---|---|
//! | polling, with credit | poll for the budget, then sleep | sleeping, when the credit is used up |
//! | sleeping, with credit | sleep at once | polling, when the credit is enough |
//!
//! Credit grows with each wait that ends while we poll, or within [`SHORT_BUDGETS`] of sleep (a sleep includes its wake-up). It shrinks
//! with every other wait. If a change to polling did not last, the next one takes twice the credit.
//!
//! Invariant: a wait that only syncs can end is never polled for and changes no credit, since kernel workers may need this CPU.

use std::time::Duration;

/// Requests in the kernel above which the thread does not poll: each of four gains a quarter of a wake-up.
const REQUESTS_MAX: usize = 4;
/// Bytes of a request above which the thread does not poll: the transfer takes longer than a wake-up.
const BYTES_MAX: usize = 64 << 10;
/// Many or large requests count for at least so many waits, and at most twice as many: a deep queue may be empty now and then.
const WINDOW: u32 = 32;
/// Credit for a wait that polling would shorten; each wait that is too long takes 1. So polling pays if one wait in four is short.
const CREDIT: u32 = 3;
/// Credit of a thread that has polled with success for some time: after so many waits in vain, polling ends.
const CREDIT_MAX: u32 = 24;
/// Credit with which polling begins: it risks four times the budget, 200 us.
const CREDIT_BEGIN: u32 = 4;
/// Credit that a change to polling takes at first: at least 6 short sleeps.
const CHANGE_MIN: u32 = 16;
/// The same after changes that did not last: at least 341 short sleeps, 25 ms in all. The change risks a hundredth of that.
const CHANGE_MAX: u32 = 1024;
/// A sleep of at most so many budgets may have been a wait of less than a budget.
const SHORT_BUDGETS: u32 = 2;

/// Requests in the kernel or elsewhere, now and since the last wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Reads and writes in flight now.
    pub(crate) transfers: usize,
    /// Syncs and durable writes in the kernel now.
    pub(crate) syncs: usize,
    /// Most reads and writes at one time.
    pub(crate) transfers_max: usize,
    /// Bytes of the largest of them.
    pub(crate) bytes_max: usize,
}

/// A wait that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wait {
    since: Duration,
    kind: WaitKind,
    /// Polling ends here.
    poll_until: Duration,
    polled: bool,
    slept: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WaitKind {
    Guest,
    Device,
    /// Only syncs are in the kernel, or requests were many or large.
    Sleep,
}

/// Experience with one kind of wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Experience {
    state: PollState,
    credit: u32,
    /// Credit that a change to polling takes.
    change: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PollState {
    Polling,
    Sleeping,
}

/// The largest of a number over the last waits: at least one window of them, at most two.
#[derive(Debug, Default)]
struct RecentMax {
    current: usize,
    before: usize,
}

/// What a thread has learned.
#[derive(Debug)]
pub(crate) struct Polling {
    budget: Duration,
    guest: Experience,
    device: Experience,
    transfers: RecentMax,
    bytes: RecentMax,
    /// Waits in the current window.
    waits: u32,
}

impl Wait {
    /// Whether to poll again at `now` instead of sleeping.
    pub(crate) fn polls(&mut self, now: Duration) -> bool {
        let polls = !self.slept && now < self.poll_until;
        self.polled |= polls;
        polls
    }

    /// The thread sleeps.
    pub(crate) fn sleeps(&mut self) {
        self.slept = true;
    }
}

impl Polling {
    /// A poll lasts at most `budget`; zero: the thread never polls.
    pub(crate) fn new(budget: Duration) -> Polling {
        Polling {
            budget,
            guest: Experience::new(),
            device: Experience::new(),
            transfers: RecentMax::default(),
            bytes: RecentMax::default(),
            waits: 0,
        }
    }

    /// The thread has no work at `now`.
    pub(crate) fn begin(&mut self, now: Duration, activity: Activity) -> Wait {
        self.remember(activity);
        let kind = match (activity.transfers, activity.syncs) {
            _ if self.is_certain_to_sleep() => WaitKind::Sleep,
            (0, 0) => WaitKind::Guest,
            (0, _) => WaitKind::Sleep,
            (_, _) => WaitKind::Device,
        };
        let polls = self
            .experience(kind)
            .is_some_and(|experience| experience.state == PollState::Polling);
        Wait {
            since: now,
            kind,
            poll_until: if polls { now + self.budget } else { now },
            polled: false,
            slept: false,
        }
    }

    /// The thread has work again at `now`.
    pub(crate) fn end(&mut self, wait: Wait, now: Duration) {
        let short = now.saturating_sub(wait.since) <= self.budget * SHORT_BUDGETS;
        if let Some(experience) = self.experience(wait.kind) {
            match (wait.polled, wait.slept) {
                (_, false) => experience.short(),
                (true, true) => experience.long(),
                // The thread could only sleep, or had a reason to.
                (false, true) if experience.state == PollState::Polling => {}
                (false, true) if short => experience.short(),
                (false, true) => experience.long(),
            }
        }
    }

    /// Whether a wait that begins now sleeps at once, whatever the experience: polling is off, or requests are many or large.
    pub(crate) fn is_certain_to_sleep(&self) -> bool {
        let busy = self.transfers.get() > REQUESTS_MAX || self.bytes.get() > BYTES_MAX;
        busy || self.budget.is_zero()
    }

    fn experience(&mut self, kind: WaitKind) -> Option<&mut Experience> {
        match kind {
            WaitKind::Guest => Some(&mut self.guest),
            WaitKind::Device => Some(&mut self.device),
            WaitKind::Sleep => None,
        }
    }

    fn remember(&mut self, activity: Activity) {
        if self.waits == WINDOW {
            self.waits = 0;
            self.transfers.rotate();
            self.bytes.rotate();
        }
        self.waits += 1;
        self.transfers.add(activity.transfers_max);
        self.bytes.add(activity.bytes_max);
    }
}

impl Experience {
    /// Assumes that waits are short until they prove to be long.
    fn new() -> Experience {
        Experience {
            state: PollState::Polling,
            credit: CREDIT_MAX,
            change: CHANGE_MIN,
        }
    }

    fn short(&mut self) {
        self.credit += CREDIT;
        match self.state {
            PollState::Polling if self.credit >= CREDIT_MAX => {
                self.credit = CREDIT_MAX;
                self.change = CHANGE_MIN;
            }
            PollState::Sleeping if self.credit >= self.change => {
                self.state = PollState::Polling;
                self.credit = CREDIT_BEGIN;
                self.change = (self.change * 2).min(CHANGE_MAX);
            }
            PollState::Polling | PollState::Sleeping => {}
        }
    }

    fn long(&mut self) {
        self.credit = self.credit.saturating_sub(1);
        if self.credit == 0 {
            self.state = PollState::Sleeping;
        }
    }
}

impl RecentMax {
    fn get(&self) -> usize {
        self.current.max(self.before)
    }

    fn add(&mut self, number: usize) {
        self.current = self.current.max(number);
    }

    fn rotate(&mut self) {
        self.before = std::mem::take(&mut self.current);
    }
}

#[cfg(test)]
mod tests;
