//! Transfers on their way: started, moved by the ring or at once, settled, answered.
//!
//! | fit of place and memory | how |
//! |---|---|
//! | both fit the medium | straight between the client's memory and the medium |
//! | only the place does | through a buffer |
//! | not even the place | a thread reads, changes and writes the blocks around ([`crate::around`]), with the file to itself |
//! | the page cache serves | as it is; if there is nothing but memory below it, by plain calls, at once |
//!
//! The third kind is for contents of odd length; none of our own clients sends such a request on the data path.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use archipelago_runtime::Durability;
use xseg::Span;

use crate::access::{Access, Below};
use crate::around::Around;
use crate::backend::{FileBackend, Pending};
use crate::errors::{code_of, is_of_one_file};
use crate::files::Open;
use crate::jobs::Job;
use crate::layout::FileId;
use crate::slow::Line;
use crate::throttle::{claim_of, is_data_write};
use crate::transfer::{Fit, Transfer, Way};

impl FileBackend {
    /// Starts a transfer on its file.
    pub(crate) fn start_transfer(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        open: Rc<Open>,
    ) {
        if request.len == 0 {
            return self.answer(ticket, ObjectReply::done(0));
        }
        let (_, offset) = FileId::locate(request.id, request.offset);
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(memory);
        let transfer = Transfer::new(ticket, open, request, offset, kept);
        let waits = !transfer.open.waiting.borrow().is_empty();
        let index = self.insert(Pending::Transfer(transfer));
        if waits {
            self.wait_for_file(index);
        } else {
            self.start_moving(index);
        }
    }

    /// Starts a transfer that nothing stands in the way of but its file.
    pub(crate) fn start_moving(&mut self, index: usize) {
        if !self.launch(index) {
            self.wait_for_file(index);
        }
    }

    fn wait_for_file(&mut self, index: usize) {
        if let Some(transfer) = self.transfer_mut(index) {
            transfer.open.waiting.borrow_mut().push_back(index);
        }
    }

    /// Starts a transfer, unless it has to wait for its file. Whether it was started.
    fn launch(&mut self, index: usize) -> bool {
        if self.throttle.is_on() && self.pause_if_data(index) {
            return true;
        }
        let alignment = match self.access {
            Access::Direct { alignment } => alignment,
            Access::Cached => 1,
        };
        let in_memory = self.below == Below::Memory;
        let Some(transfer) = self.transfer_mut(index) else {
            return true;
        };
        let open = &transfer.open;
        if open.alone.get() {
            return false;
        }
        let fit = if open.direct {
            transfer.fit(alignment)
        } else {
            Fit::Whole
        };
        let others = open.in_flight.get();
        match fit {
            Fit::Whole if !open.direct && in_memory => {
                self.move_now(index);
                return true;
            }
            Fit::Whole => {}
            Fit::Memory => {
                if let Err(code) = self.bounce(index) {
                    self.finish_transfer(index, Err(code));
                    return true;
                }
            }
            Fit::Place if others > 0 => return false,
            Fit::Place => open.alone.set(true),
        }
        if let Some(transfer) = self.transfer_mut(index) {
            transfer.open.in_flight.set(others + 1);
        }
        if fit == Fit::Place {
            self.move_around(index, alignment);
        } else {
            self.submit(index);
        }
        true
    }

    fn submit(&mut self, index: usize) {
        let Some(Some(Pending::Transfer(transfer))) = self.pending.get(index) else {
            return;
        };
        let (file, token) = (&transfer.open.file, index as u64);
        let at = transfer.offset + u64::from(transfer.moved);
        let rest;
        let spans = if transfer.moved == 0 && transfer.bounce.is_none() {
            transfer.memory.as_slice()
        } else {
            rest = transfer.rest();
            rest.as_slice()
        };
        match transfer.way {
            Way::Read => self.source.read(file, spans, at, token),
            Way::Write => self
                .source
                .write(file, spans, at, transfer.durability(), token),
        }
    }

    /// Gives the transfer a buffer that the medium takes.
    fn bounce(&mut self, index: usize) -> Result<(), ErrorCode> {
        self.counters.bounces += 1;
        let len = self.transfer_mut(index).map_or(0, |transfer| transfer.len);
        let bounce = self
            .bounces
            .take(u64::from(len))
            .map_err(|error| code_of(&error))?;
        let Some(transfer) = self.transfer_mut(index) else {
            return Err(ErrorCode::Internal);
        };
        if transfer.way == Way::Write {
            let mut bytes = vec![0; len as usize];
            transfer.copy(&mut bytes);
            bounce
                .write(0, &bytes)
                .map_err(|_short| ErrorCode::Internal)?;
        }
        transfer.bounce = Some(bounce);
        Ok(())
    }

    /// By plain calls, which only copy memory.
    fn move_now(&mut self, index: usize) {
        let source = self.source.clone();
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let result = loop {
            let (rest, at) = (transfer.rest(), transfer.offset + u64::from(transfer.moved));
            if rest.is_empty() {
                break Ok(());
            }
            let moved = match transfer.way {
                Way::Read => source.read_now(&transfer.open.file, &rest, at),
                Way::Write => source.write_now(&transfer.open.file, &rest, at, Durability::Later),
            };
            match (moved, transfer.way) {
                (Err(error), _) if transfer.may_retry(error.raw_os_error().unwrap_or_default()) => {
                }
                (Err(error), _) => break Err(code_of(&error)),
                (Ok(0), Way::Read) => {
                    transfer.zero_rest();
                    break Ok(());
                }
                (Ok(0), Way::Write) => break Err(ErrorCode::NoSpace),
                (Ok(count), _) => transfer.moved += u32::try_from(count).unwrap_or(u32::MAX),
            }
        };
        if result == Err(ErrorCode::NoSpace) {
            let open = Rc::clone(&transfer.open);
            open.in_flight.set(open.in_flight.get() + 1);
            if self.write_from_reserve(index) {
                return;
            }
            open.in_flight.set(open.in_flight.get() - 1);
        }
        self.settle(index, result);
    }

    /// Has a thread move what is at an odd place. Nobody else uses the file.
    fn move_around(&mut self, index: usize, unit: u32) {
        self.counters.bounces += 1;
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let line = Line::Files(transfer.open.id.object.lineage);
        let claim = claim_of(transfer);
        let around = transfer.open.file.as_fd().try_clone_to_owned();
        let around = around.map(|file| Around {
            file: file.into(),
            way: transfer.way,
            offset: transfer.offset,
            len: transfer.len as usize,
            unit: unit as usize,
            memory: transfer.memory.clone(),
            claim,
        });
        match around {
            Ok(around) => self.slow.send(line, index, Job::Around(around)),
            Err(error) => self.on_moved_around(index, Err(code_of(&error))),
        }
    }

    /// What is at an odd place was moved.
    pub(crate) fn on_moved_around(&mut self, index: usize, result: Result<(), ErrorCode>) {
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let open = Rc::clone(&transfer.open);
        open.alone.set(false);
        open.in_flight.set(0);
        self.settle(index, result);
        self.relaunch(&open);
    }

    /// A transfer that was moved by plain calls: a durable write still has to be synced.
    pub(crate) fn settle(&mut self, index: usize, result: Result<(), ErrorCode>) {
        let Some(Some(Pending::Transfer(transfer))) = self.pending.get_mut(index) else {
            return;
        };
        if result.is_err() || !transfer.durable {
            return self.finish_transfer(index, result);
        }
        transfer.waiting += 1;
        self.counters.file_syncs += 1;
        self.source.sync(&transfer.open.file, index as u64);
        self.name_if_fresh(index);
    }

    /// Has the slow thread make the name of the transfer's file durable, if it is not.
    fn name_if_fresh(&mut self, index: usize) {
        let Some(Some(Pending::Transfer(transfer))) = self.pending.get_mut(index) else {
            return;
        };
        if transfer.open.fresh.get() {
            transfer.waiting += 1;
            let lineage = transfer.open.id.object.lineage;
            self.send_names(index, lineage);
        }
    }

    pub(crate) fn finish_transfer(&mut self, index: usize, result: Result<(), ErrorCode>) {
        let Some(Pending::Transfer(mut transfer)) = self.remove(index) else {
            return;
        };
        if let Some(bounce) = transfer.bounce.take() {
            if transfer.way == Way::Read && result.is_ok() {
                let mut bytes = vec![0; transfer.len as usize];
                // The buffer is as long as the transfer.
                if bounce.read(0, &mut bytes).is_ok() {
                    transfer.copy(&mut bytes);
                }
            }
            self.bounces.give(bounce);
        }
        // What a failed sync took with it, though the transfer itself went well.
        let result = result.and(transfer.failed.map_or(Ok(()), Err));
        if is_data_write(&transfer) {
            self.note_room(result);
        }
        if transfer.way == Way::Write && !(transfer.durable && result.is_ok()) {
            self.files.wrote(&transfer.open);
        }
        let reply = result.map_or_else(ObjectReply::failed, |()| ObjectReply::done(transfer.len));
        self.answer(transfer.ticket, reply);
        transfer.memory.clear();
        self.spare.push(transfer.memory);
    }

    pub(crate) fn on_moved(&mut self, index: usize, result: i32) {
        let again = |errno: i32| errno == libc::EAGAIN || errno == libc::EINTR;
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let mut syncs = false;
        let outcome = match (u32::try_from(result), transfer.way) {
            (Err(_negative), _) if again(-result) => None,
            (Err(_negative), _) if transfer.may_retry(-result) => {
                self.counters.space_retries += 1;
                return self.submit(index);
            }
            (Err(_negative), way) => {
                let error = io::Error::from_raw_os_error(-result);
                syncs = transfer.durable && way == Way::Write && !is_of_one_file(&error);
                Some(Err(code_of(&error)))
            }
            (Ok(0), Way::Read) => {
                transfer.zero_rest();
                Some(Ok(()))
            }
            (Ok(0), Way::Write) => Some(Err(ErrorCode::NoSpace)),
            (Ok(count), _) => {
                transfer.moved += count;
                (transfer.moved >= transfer.len).then_some(Ok(()))
            }
        };
        let Some(outcome) = outcome else {
            return self.submit(index);
        };
        if outcome == Err(ErrorCode::NoSpace) && self.write_from_reserve(index) {
            return;
        }
        let Some(transfer) = self.transfer_mut(index) else {
            return;
        };
        let (open, durable) = (Rc::clone(&transfer.open), transfer.durable);
        if syncs {
            // Its bytes may be the part that went well.
            self.lose_unsynced();
        }
        open.in_flight.set(open.in_flight.get() - 1);
        let needs_name = outcome.is_ok() && durable && open.fresh.get();
        if needs_name {
            self.name_if_fresh(index);
        } else {
            self.finish_transfer(index, outcome);
        }
        self.relaunch(&open);
    }

    /// Starts what waited for a file, as far as it goes.
    pub(crate) fn relaunch(&mut self, open: &Open) {
        loop {
            let first = open.waiting.borrow_mut().pop_front();
            let Some(index) = first else { return };
            if !self.launch(index) {
                return open.waiting.borrow_mut().push_front(index);
            }
        }
    }
}
