//! What a full pool means for a volume: requests and its session wait, probe, go on or fail. The rules: [`Space`].
//!
//! [`Space`]: crate::space::Space

use std::time::Duration;

use archipelago_protocol::{ErrorCode, Lineage, OnFull};

use super::Volume;
use crate::control_event::{ControlEvent, WaitsFor};
use crate::space::Parked;
use crate::tables::Tables;

impl Volume {
    /// What the volume does from now on with writes for which there is no room.
    pub(crate) fn set_on_full<M, B>(&mut self, t: &mut Tables<M, B>, policy: OnFull) {
        self.space.set_policy(policy);
        if policy == OnFull::Report {
            self.ask_session_again(t);
            self.fail_waiting(t);
        }
    }

    /// Returns every parked request to its driver, which may submit it again: not a failure that anybody sees.
    pub(crate) fn recall<M, B>(&mut self, t: &mut Tables<M, B>) {
        t.counters.failed -= self.space.parked();
        self.fail_parked(t);
    }

    /// Whether it wants to take part in the turns.
    pub(crate) fn wants_space_turns(&self) -> bool {
        self.space.wants_turns()
    }

    /// Requests that are parked.
    pub(crate) fn parked(&self) -> u64 {
        self.space.parked()
    }

    /// Whether the volume is without room at `now`: for what, and for how long.
    pub(crate) fn without_space(&self, now: Duration) -> Option<(Lineage, WaitsFor, Duration)> {
        let waited = now.saturating_sub(self.space.since()?);
        Some((self.lineage, self.space.waits_for(), waited))
    }

    /// A turn at `now`: starts one parked request again, or gives up when the time is over.
    pub(crate) fn look_for_space<M, B>(&mut self, t: &mut Tables<M, B>, now: Duration) {
        self.ask_session_again(t);
        let changed = self.space.turn(now);
        if changed {
            t.control_events.push_back(self.space.report(self.lineage));
        }
        if self.space.refuses() {
            // Later ones are answered as they come.
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

    /// The driver waits for nothing any more.
    pub(super) fn give_up<M, B>(&mut self, t: &mut Tables<M, B>) {
        self.set_on_full(t, OnFull::Report);
    }

    /// Parks request `r`, which failed with `code`. Whether it was: else it is to be answered.
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

    /// Request `r` was answered with `result`: if it was the probe and found room, all that are parked start again.
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

    /// The mapper refused the session with `code`. Whether it is asked for again in the next turn.
    pub(super) fn wait_for_session<M, B>(&mut self, t: &mut Tables<M, B>, code: ErrorCode) -> bool {
        let refuses = self.space.refuses();
        // A driver that never had the volume gets the error, and opens it again when it pleases.
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

    /// Asks for the session again, if that waits.
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
