//! The drivers of a data thread, and which of them have to be polled: the cost of a turn depends on the ready drivers, not on the attached
//! ones.
//!
//! | a driver is | polled | becomes |
//! |---|---|---|
//! | polled | each turn; at each sleep of the thread it asks for notifications, afterwards it stops them | armed, once it has been idle for [`IDLE_TURNS`] |
//! | armed | never; it has asked for notifications, which stay on | polled, by one of its wake-ups or a call of the host |
//!
//! Only turns in which the thread has work count. So polling before a sleep (`archipelago_runtime`, polling) still polls every driver that
//! was busy a moment ago, and its guest need not notify. A sleep counts as [`TURNS_PER_SLEEP`].
//!
//! Invariants
//! - A driver is armed only after [`Driver::prepare_sleep`] has returned [`Activity::Idle`]: nothing came in before, and what comes in
//!   afterwards is notified.
//! - Before an armed driver is polled again, its notifications are switched off.

use archipelago_endpoint::{Activity, Driver};
use archipelago_protocol::Lineage;
use archipelago_runtime::Progress;

/// Turns in which a driver may be idle before it is armed. A useless poll costs some 20 ns and a guest's notification some microseconds, so
/// a guest saves more by the polls of its driver than they cost.
const IDLE_TURNS: u32 = 64;
/// A sleep of the thread costs an idle driver two writes into guest memory: as much as some useless polls.
const TURNS_PER_SLEEP: u32 = IDLE_TURNS / 4;

/// Index of a driver in its [`Drivers`]. Used again once the driver has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DriverId(pub(crate) u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Readiness {
    Polled {
        /// Consecutive turns in which it found nothing to do.
        idle_turns: u32,
    },
    Armed,
}

struct Slot {
    driver: Box<dyn Driver>,
    readiness: Readiness,
    /// What it returned before the sleep that the thread is in.
    asleep: Option<Activity>,
}

impl Slot {
    /// Arms the driver if it has nothing to do and waits for nothing. Returns whether it is armed now.
    fn arm(&mut self) -> bool {
        if self.driver.prepare_sleep() == Activity::Idle {
            self.readiness = Readiness::Armed;
            return true;
        }
        self.driver.wake();
        self.readiness = Readiness::Polled { idle_turns: 0 };
        false
    }

    /// Counts idle turns. Returns whether there were enough of them.
    fn was_idle(&mut self, turns: u32) -> bool {
        match &mut self.readiness {
            Readiness::Armed => true,
            Readiness::Polled { idle_turns } => {
                *idle_turns = idle_turns.saturating_add(turns);
                *idle_turns >= IDLE_TURNS
            }
        }
    }
}

/// The drivers of a data thread.
#[derive(Default)]
pub(crate) struct Drivers {
    slots: Vec<Option<Slot>>,
    free: Vec<DriverId>,
    /// The drivers that are polled.
    ready: Vec<DriverId>,
    /// Those of them that found nothing to do in this turn; kept to use its memory again.
    idle: Vec<DriverId>,
}

impl Drivers {
    /// Serves the driver that `build` makes; it is polled at first.
    pub(crate) fn add<E>(
        &mut self,
        build: impl FnOnce(DriverId) -> Result<Box<dyn Driver>, E>,
    ) -> Result<(), E> {
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            // An attachment takes descriptors, and a process has fewer of these than numbers.
            DriverId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX))
        });
        match build(id) {
            Ok(driver) => {
                self.slots[id.0 as usize] = Some(Slot {
                    driver,
                    readiness: Readiness::Polled { idle_turns: 0 },
                    asleep: None,
                });
                self.ready.push(id);
                Ok(())
            }
            Err(error) => {
                self.free.push(id);
                Err(error)
            }
        }
    }

    fn get(&mut self, id: DriverId) -> Option<&mut Slot> {
        self.slots.get_mut(id.0 as usize)?.as_mut()
    }

    /// Number of drivers.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// All drivers, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &dyn Driver> {
        let slots = self.slots.iter().flatten();
        slots.map(|slot| &*slot.driver)
    }

    /// Calls `change` with each driver of `lineage`, and polls them from then on.
    pub(crate) fn change(&mut self, lineage: Lineage, mut change: impl FnMut(&mut dyn Driver)) {
        for index in 0..self.slots.len() {
            let Some(slot) = &mut self.slots[index] else {
                continue;
            };
            if slot.driver.lineage() == lineage {
                change(&mut *slot.driver);
                self.signal(DriverId(u32::try_from(index).unwrap_or(u32::MAX)));
            }
        }
    }

    /// Polls a driver from now on: one of its wake-ups has come, or its host has called it. A driver that has ended is ignored.
    pub(crate) fn signal(&mut self, id: DriverId) {
        let Some(slot) = self.get(id) else { return };
        let before = std::mem::replace(&mut slot.readiness, Readiness::Polled { idle_turns: 0 });
        if before == Readiness::Armed {
            slot.driver.wake();
            self.ready.push(id);
        }
    }

    /// Polls the ready drivers, and drops those that have ended.
    pub(crate) fn poll(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        let mut index = 0;
        while index < self.ready.len() {
            let id = self.ready[index];
            let Some(slot) = self.get(id) else {
                self.ready.swap_remove(index);
                continue;
            };
            match slot.driver.poll() {
                Progress::Busy => {
                    progress = Progress::Busy;
                    slot.readiness = Readiness::Polled { idle_turns: 0 };
                }
                Progress::Idle => self.idle.push(id),
            }
            if self.get(id).is_some_and(|slot| slot.driver.is_finished()) {
                self.slots[id.0 as usize] = None;
                self.free.push(id);
                self.ready.swap_remove(index);
            } else {
                index += 1;
            }
        }
        progress
    }

    /// Ends a turn, in which the thread made `progress`: drivers that were idle for long are armed.
    pub(crate) fn end_turn(&mut self, progress: Progress) {
        let mut idle = std::mem::take(&mut self.idle);
        if progress == Progress::Busy {
            let mut armed = false;
            for id in &idle {
                let slot = self.get(*id);
                armed |= slot.is_some_and(|slot| slot.was_idle(1) && slot.arm());
            }
            if armed {
                self.forget_armed();
            }
        }
        idle.clear();
        self.idle = idle;
    }

    /// Announces a sleep of the thread. `false`: some driver has work.
    pub(crate) fn prepare_sleep(&mut self) -> bool {
        let mut quiet = true;
        for index in 0..self.ready.len() {
            if let Some(slot) = self.get(self.ready[index]) {
                let activity = slot.driver.prepare_sleep();
                slot.asleep = Some(activity);
                quiet &= activity != Activity::Ready;
            }
        }
        quiet
    }

    /// Ends a sleep of the thread: drivers that were idle for long stay armed, the others are polled.
    pub(crate) fn wake(&mut self) {
        let mut armed = false;
        for index in 0..self.ready.len() {
            let Some(slot) = self.get(self.ready[index]) else {
                continue;
            };
            let asleep = slot.asleep.take();
            if asleep == Some(Activity::Idle) && slot.was_idle(TURNS_PER_SLEEP) {
                slot.readiness = Readiness::Armed;
                armed = true;
            } else {
                slot.driver.wake();
            }
        }
        if armed {
            self.forget_armed();
        }
    }

    fn forget_armed(&mut self) {
        let slots = &self.slots;
        self.ready.retain(|id| {
            let slot = slots[id.0 as usize].as_ref();
            slot.is_some_and(|slot| slot.readiness != Readiness::Armed)
        });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::convert::Infallible;
    use std::rc::Rc;
    use std::time::Duration;

    use archipelago_endpoint::Shortage;
    use archipelago_protocol::OnFull;

    use super::*;

    /// What a driver was called, and what it answers.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Calls {
        polls: u32,
        prepared: u32,
        woken: u32,
        busy: bool,
        waiting: bool,
        finished: bool,
    }

    struct Fake(Lineage, Rc<RefCell<Calls>>);

    impl Driver for Fake {
        fn lineage(&self) -> Lineage {
            self.0
        }

        fn poll(&mut self) -> Progress {
            let mut calls = self.1.borrow_mut();
            assert_eq!(calls.prepared, calls.woken, "woken before it is polled");
            calls.polls += 1;
            match calls.busy {
                true => Progress::Busy,
                false => Progress::Idle,
            }
        }

        fn prepare_sleep(&mut self) -> Activity {
            let mut calls = self.1.borrow_mut();
            calls.prepared += 1;
            match (calls.busy, calls.waiting) {
                (true, _) => Activity::Ready,
                (false, true) => Activity::Waiting,
                (false, false) => Activity::Idle,
            }
        }

        fn wake(&mut self) {
            self.1.borrow_mut().woken += 1;
        }

        fn set_on_full(&mut self, _policy: OnFull) {}

        fn shortage(&self) -> Option<(Shortage, Duration)> {
            None
        }

        fn is_finished(&self) -> bool {
            self.1.borrow().finished
        }
    }

    fn drivers(number: u32) -> (Drivers, Vec<Rc<RefCell<Calls>>>) {
        let mut drivers = Drivers::default();
        let calls = (0..number).map(|index| {
            let calls = Rc::new(RefCell::new(Calls::default()));
            let driver = Fake(Lineage(index.into()), Rc::clone(&calls));
            let added = drivers.add::<Infallible>(|id| {
                assert_eq!(id, DriverId(index));
                Ok(Box::new(driver))
            });
            added.unwrap();
            calls
        });
        let calls = calls.collect();
        (drivers, calls)
    }

    fn turn(drivers: &mut Drivers) {
        let progress = drivers.poll();
        drivers.end_turn(progress);
    }

    fn sleep(drivers: &mut Drivers) -> bool {
        let quiet = drivers.prepare_sleep();
        drivers.wake();
        quiet
    }

    #[test]
    fn a_thousand_idle_drivers_cost_a_busy_one_a_bounded_number_of_polls_and_sleeps() {
        let (mut drivers, calls) = drivers(1001);
        calls[0].borrow_mut().busy = true;
        for _ in 0..10_000 {
            turn(&mut drivers);
        }
        assert_eq!(calls[0].borrow().polls, 10_000);
        let idle = Calls {
            polls: IDLE_TURNS,
            prepared: 1,
            ..Calls::default()
        };
        assert!(calls[1..].iter().all(|calls| *calls.borrow() == idle));
        // The busy one waits for its volume now, and the thread sleeps in between.
        calls[0].borrow_mut().busy = false;
        calls[0].borrow_mut().waiting = true;
        for _ in 0..1000 {
            turn(&mut drivers);
            assert!(sleep(&mut drivers));
        }
        assert_eq!(calls[0].borrow().polls, 11_000);
        assert_eq!(calls[0].borrow().woken, 1000);
        assert!(calls[1..].iter().all(|calls| *calls.borrow() == idle));
    }

    #[test]
    fn a_driver_is_armed_after_some_sleeps_and_polled_again_once_it_is_signalled() {
        let (mut drivers, calls) = drivers(1);
        for _ in 0..10 {
            turn(&mut drivers);
            assert!(sleep(&mut drivers));
        }
        let sleeps = IDLE_TURNS / TURNS_PER_SLEEP;
        let armed = Calls {
            polls: sleeps,
            prepared: sleeps,
            woken: sleeps - 1,
            ..Calls::default()
        };
        assert_eq!(*calls[0].borrow(), armed, "armed by the last of them");
        drivers.signal(DriverId(0));
        drivers.signal(DriverId(0));
        turn(&mut drivers);
        let polled = Calls {
            polls: sleeps + 1,
            woken: sleeps,
            ..armed
        };
        assert_eq!(*calls[0].borrow(), polled, "woken once, polled once");
    }

    #[test]
    fn turns_in_which_nobody_has_work_arm_nobody() {
        let (mut drivers, calls) = drivers(2);
        for _ in 0..10 * IDLE_TURNS {
            turn(&mut drivers);
        }
        assert!(calls.iter().all(|calls| calls.borrow().prepared == 0));
    }

    #[test]
    fn a_driver_that_has_ended_is_dropped_and_its_place_given_again() {
        let (mut drivers, calls) = drivers(2);
        calls[0].borrow_mut().finished = true;
        turn(&mut drivers);
        assert_eq!(drivers.len(), 1);
        assert_eq!(Rc::strong_count(&calls[0]), 1);
        drivers.signal(DriverId(0));
        let changed = Rc::new(RefCell::new(Calls::default()));
        let driver = Fake(Lineage(9), Rc::clone(&changed));
        let added = drivers.add::<Infallible>(|id| {
            assert_eq!(id, DriverId(0));
            Ok(Box::new(driver))
        });
        added.unwrap();
        drivers.change(Lineage(9), |driver| driver.set_on_full(OnFull::Report));
        turn(&mut drivers);
        assert_eq!((changed.borrow().polls, drivers.iter().count()), (1, 2));
    }
}
