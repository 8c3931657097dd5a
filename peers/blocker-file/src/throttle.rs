//! Data writes are paused while a thread spends the reserve, and metadata writes without room are made by such a thread.
//!
//! Invariants
//! - A paused write has not begun; it begins when the gate is open again.
//! - No write is paused for longer than [`PAUSE_SECONDS`], though a call on the file system hangs.

use std::os::fd::AsFd;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::ObjectKind;

use crate::access::Access;
use crate::around::Around;
use crate::backend::{FileBackend, Pending};
use crate::errors::code_of;
use crate::gate::Passage;
use crate::jobs::Job;
use crate::reserve::Claim;
use crate::slow::Line;
use crate::transfer::{Transfer, Way};

/// A data write is paused for about this long at most.
const PAUSE_SECONDS: u64 = 2;

/// Whether data writes are paused.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    #[default]
    Off,
    /// Since then, in seconds as [`FileBackend::seconds`].
    On(u64),
    /// It has taken too long: no more, until the gate is open again.
    GivenUp,
}

/// Data writes and the room that they do not find.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    pause: Pause,
    paused: Vec<usize>,
    /// A data write has found no room since the reserve was last looked after.
    starved: bool,
}

impl Throttle {
    /// Whether data writes are paused.
    pub(crate) fn is_on(&self) -> bool {
        matches!(self.pause, Pause::On(_))
    }
}

/// What a write may take of the reserve; `None`: it is data.
pub(crate) fn claim_of(transfer: &Transfer) -> Option<Claim> {
    match (transfer.way, transfer.open.id.object.kind) {
        (Way::Read, _) | (Way::Write, ObjectKind::Data) => None,
        // An append is durable; what is not makes a new log.
        (Way::Write, ObjectKind::Log) if !transfer.durable => Some(Claim::Half),
        (Way::Write, _) => Some(Claim::All),
    }
}

pub(crate) fn is_data_write(transfer: &Transfer) -> bool {
    transfer.way == Way::Write && transfer.open.id.object.kind == ObjectKind::Data
}

impl FileBackend {
    /// Pauses the transfer if it is a data write. Whether it was.
    pub(crate) fn pause_if_data(&mut self, index: usize) -> bool {
        let pauses = self.transfer_mut(index).is_some_and(|it| is_data_write(it));
        if pauses {
            self.throttle.paused.push(index);
        }
        pauses
    }

    /// No data write is in flight but those that are paused, or wait for a sync.
    fn is_drained(&self) -> bool {
        let moving = self.pending.iter().enumerate().filter(|(_, pending)| {
            matches!(pending, Some(Pending::Transfer(transfer)) if is_data_write(transfer) && transfer.waiting == 0)
        });
        moving
            .into_iter()
            .all(|(index, _)| self.throttle.paused.contains(&index))
    }

    /// Does what the gate asks for.
    pub(crate) fn tend_gate(&mut self) {
        match (self.slow.reserve().gate.passage(), self.throttle.pause) {
            (Passage::Open, Pause::Off) => {}
            (Passage::Open, _) => {
                self.throttle.pause = Pause::Off;
                self.resume_paused();
            }
            (_, Pause::GivenUp) => {}
            (Passage::Closed, _) => {}
            (Passage::Asked, pause) => {
                if pause == Pause::Off {
                    self.throttle.pause = Pause::On(self.seconds);
                }
                if self.is_drained() {
                    self.slow.reserve().gate.closed();
                }
            }
        }
    }

    fn resume_paused(&mut self) {
        for index in std::mem::take(&mut self.throttle.paused) {
            self.start_moving(index);
        }
    }

    /// Called about once a second: no write is paused for long, and the reserve grows when there is room.
    pub(crate) fn look_after_reserve(&mut self) {
        if let Pause::On(since) = self.throttle.pause
            && self.seconds.saturating_sub(since) > PAUSE_SECONDS
        {
            self.throttle.pause = Pause::GivenUp;
            self.resume_paused();
        }
        self.grow_reserve();
    }

    /// Has the reserve grow if it is short.
    fn grow_reserve(&mut self) {
        let reserve = self.slow.reserve();
        if reserve.is_short() && reserve.may_begin_growing() {
            self.slow.sending().send(Line::Pool, Job::Grow);
        }
    }

    /// A data write ended with `result`: there was no room, or there is again and the reserve comes first.
    pub(crate) fn note_room(&mut self, result: Result<(), ErrorCode>) {
        match result {
            Err(ErrorCode::NoSpace) => self.throttle.starved = true,
            Ok(()) if self.throttle.starved => {
                self.throttle.starved = false;
                self.grow_reserve();
            }
            Ok(()) | Err(_) => {}
        }
    }

    /// Has a thread make a metadata write for which there is no room, with what the reserve has. Whether it does: not if that
    /// was tried already, or for data.
    pub(crate) fn write_from_reserve(&mut self, index: usize) -> bool {
        let unit = match self.access {
            Access::Direct { alignment } => alignment,
            Access::Cached => 1,
        };
        let Some(transfer) = self.transfer_mut(index) else {
            return false;
        };
        let Some(claim) = claim_of(transfer) else {
            return false;
        };
        if std::mem::replace(&mut transfer.from_reserve, true) {
            return false;
        }
        let line = Line::Files(transfer.open.id.object.lineage);
        let unit = if transfer.open.direct { unit } else { 1 };
        let around = transfer.open.file.as_fd().try_clone_to_owned();
        let around = around.map(|file| Around {
            file: file.into(),
            way: Way::Write,
            offset: transfer.offset,
            len: transfer.len as usize,
            unit: unit as usize,
            memory: transfer.memory.clone(),
            claim: Some(claim),
        });
        match around {
            Ok(around) => self.slow.send(line, index, Job::Around(around)),
            Err(error) => self.on_written_from_reserve(index, Err(code_of(&error))),
        }
        true
    }

    /// A thread has made the write, or could not.
    pub(crate) fn on_written_from_reserve(&mut self, index: usize, result: Result<(), ErrorCode>) {
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let open = std::rc::Rc::clone(&transfer.open);
        open.in_flight.set(open.in_flight.get() - 1);
        self.settle(index, result);
        self.relaunch(&open);
    }
}
