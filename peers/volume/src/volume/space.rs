//! A full pool: requests and the session of a volume wait, probe, continue or fail. The rules are those of [`Space`].
//!
//! [`Space`]: crate::space::Space

use std::time::Duration;

use archipelago_protocol::{ErrorCode, Lineage, OnFull};

use super::Volume;
use crate::control_event::{ControlEvent, WaitsFor};
use crate::space::Parked;
use crate::tables::Tables;

impl Volume {
    /// Sets the policy for writes for which there is no room, from now on.
    pub(crate) fn set_on_full<M, B>(&mut self, t: &mut Tables<M, B>, policy: OnFull) {
        self.space.set_policy(policy);
        if policy == OnFull::Report {
            self.ask_session_again(t);
            self.fail_waiting(t);
        }
    }

    /// Returns every parked request to its driver, which may submit it again; guests see no error.
    pub(crate) fn recall<M, B>(&mut self, t: &mut Tables<M, B>) {
        t.counters.failed -= self.space.parked();
        self.fail_parked(t);
    }

    /// Whether the volume needs turns.
    pub(crate) fn wants_space_turns(&self) -> bool {
        self.space.wants_turns()
    }

    /// Number of parked requests.
    pub(crate) fn parked(&self) -> u64 {
        self.space.parked()
    }

    /// If the volume has no room at `now`: what it waits for, and how long it has waited.
    pub(crate) fn without_space(&self, now: Duration) -> Option<(Lineage, WaitsFor, Duration)> {
        let waited = now.saturating_sub(self.space.since()?);
        Some((self.lineage, self.space.waits_for(), waited))
    }

    /// Takes a turn at `now`: starts one parked request again, or answers all of them when the limit has passed.
    pub(crate) fn look_for_space<M, B>(&mut self, t: &mut Tables<M, B>, now: Duration) {
        self.ask_session_again(t);
        let changed = self.space.turn(now);
        if changed {
            t.control_events.push_back(self.space.report(self.lineage));
        }
        if self.space.refuses() {
            // Later requests are answered when they arrive.
            if changed {
                self.fail_waiting(t);
            }
        } else if self.session.is_serving()
            && let Some(r) = self.space.take_probe(&mut t.requests)
        {
            self.start_request(t, r);
            t.ready.add(self.slot);
        }
    }

    /// The driver does not wait any more.
    pub(super) fn give_up<M, B>(&mut self, t: &mut Tables<M, B>) {
        self.set_on_full(t, OnFull::Report);
    }

    /// Parks request `r`, which failed with `code`. Returns whether it was parked; if not, it must be answered.
    pub(super) fn park<M, B>(&mut self, t: &mut Tables<M, B>, r: u32, code: ErrorCode) -> bool {
        if self.driver.has_closed() {
            return false;
        }
        match self.space.park(&mut t.requests, r, code) {
            Parked::No => return false,
            Parked::First => t.counters.space_waits += 1,
            Parked::Again => {}
        }
        t.space_turns.want();
        true
    }

    /// Request `r` was answered with `result`. If it was the probe and found room, all parked requests start again.
    pub(super) fn note_probe<M, B>(
        &mut self,
        t: &mut Tables<M, B>,
        r: u32,
        result: Result<(), ErrorCode>,
    ) {
        if self.space.take_answer(r) && result.is_ok() {
            self.found_room(t);
            while let Some(parked) = self.space.unpark(&mut t.requests) {
                self.start_request(t, parked);
            }
            t.ready.add(self.slot);
        }
    }

    /// Something that needed room has found it.
    pub(super) fn found_room<M, B>(&mut self, t: &mut Tables<M, B>) {
        if self.space.found_room() {
            let lineage = self.lineage;
            t.control_events
                .push_back(ControlEvent::SpaceFound { lineage });
        }
    }

    /// The mapper refused the session with `code`. Returns whether the next turn asks for it again.
    pub(super) fn wait_for_session<M, B>(&mut self, t: &mut Tables<M, B>, code: ErrorCode) -> bool {
        let refuses = self.space.refuses();
        // A driver that has never had the volume open gets the error, and may open it again at any time.
        let reported = refuses && !self.session.is_open();
        if !code.passes() || self.driver.has_closed() || reported {
            return false;
        }
        self.space.refuse_session(code);
        self.session.wait_for_room();
        t.space_turns.want();
        if refuses {
            self.fail_waiting(t);
        }
        true
    }

    /// Asks for the session again, if the volume waits for one.
    fn ask_session_again<M, B>(&mut self, t: &mut Tables<M, B>) {
        if self.session.ask_again() {
            t.ready.add(self.slot);
        }
    }

    /// Answers every parked request.
    fn fail_parked<M, B>(&mut self, t: &mut Tables<M, B>) {
        while let Some(r) = self.space.unpark(&mut t.requests) {
            self.answer(t, r, Err(ErrorCode::NoSpace));
        }
        t.ready.add(self.slot);
    }

    /// Answers every request that waits for room: the parked ones, and without a session all.
    fn fail_waiting<M, B>(&mut self, t: &mut Tables<M, B>) {
        if self.space.is_session_refused() {
            self.fail_unserved(t, ErrorCode::NoSpace);
        } else {
            self.fail_parked(t);
        }
    }
}
