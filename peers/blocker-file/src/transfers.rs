//! Transfers under way: started, moved by the ring or at once, made durable, answered.
//!
//! | alignment | how |
//! |---|---|
//! | place and memory are aligned | directly between the client's memory and the medium |
//! | only the place is | through a buffer |
//! | the place is not | a thread reads, changes and writes the blocks around ([`crate::unaligned`]), and uses the file alone |
//! | any, through the page cache | unchanged; by plain calls, at once, if the file system is in memory |
//!
//! The third kind is for contents of odd length; none of our own clients sends such a request on the data path. A metadata write without
//! space goes to a thread, too, which may take from the reserve.

use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::control::Wait;
use archipelago_protocol::object::{ObjectReply, ObjectRequest};
use xseg::Span;

use crate::access::{Access, Below};
use crate::blocking_pool::JobQueue;
use crate::bounce_buffers::BounceBuffers;
use crate::calls::{Calls, Part, Token};
use crate::context::Context;
use crate::errors::{code_of, sync_failure};
use crate::jobs::Job;
use crate::layout::{FileId, Layout};
use crate::open_file::{OpenFile, Use};
use crate::reserve::Claim;
use crate::spans::Direction;
use crate::stall_detector::wait_on;
use crate::transfer::{Fit, Moved, Stage, Transfer};

/// Figures so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TransferFigures {
    /// Syncs of files for durable writes.
    pub(crate) file_syncs: u64,
    /// Transfers that were not aligned.
    pub(crate) bounces: u64,
    /// Writes tried again because the file system reported a passing lack of space.
    pub(crate) space_retries: u64,
}

/// The transfers of a pool.
#[derive(Debug)]
pub(crate) struct Transfers {
    calls: Calls<Transfer>,
    /// Offsets, lengths and addresses of direct I/O must be multiples of this.
    alignment: u32,
    below: Below,
    buffers: BounceBuffers,
    /// Empty lists of spans, whose memory is used again.
    spare: Vec<Vec<Span>>,
    figures: TransferFigures,
}

/// The token of the transfer at `index`.
fn token(index: usize) -> Token {
    let part = Part::Transfers;
    Token { part, index }
}

impl Transfers {
    /// No transfers yet, at the time `seconds`.
    pub(crate) fn new(access: Access, below: Below, seconds: u64) -> Self {
        Transfers {
            calls: Calls::new(seconds),
            alignment: access.alignment(),
            below,
            buffers: BounceBuffers::default(),
            spare: Vec::new(),
            figures: TransferFigures::default(),
        }
    }

    /// Offsets, lengths and addresses of direct I/O must be multiples of this.
    pub(crate) fn alignment(&self) -> usize {
        self.alignment as usize
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.calls.tick(seconds);
    }

    pub(crate) fn figures(&self) -> TransferFigures {
        self.figures
    }

    /// Starts a transfer on its file.
    pub(crate) fn start(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        open: Rc<OpenFile>,
        context: &mut Context<'_>,
    ) {
        if request.len == 0 {
            return context.replies.push(ticket, ObjectReply::done(0));
        }
        let (_, offset) = FileId::locate(request.id, request.offset);
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.extend_from_slice(memory);
        let has_waiting = open.occupancy().has_waiting();
        let transfer = Transfer::new(ticket, open, request, offset, kept);
        let index = self.calls.insert(transfer);
        if has_waiting {
            self.queue(index);
        } else {
            self.launch_or_queue(index, context);
        }
    }

    /// Starts transfers that were paused.
    pub(crate) fn resume(&mut self, paused: Vec<usize>, context: &mut Context<'_>) {
        for index in paused {
            self.launch_or_queue(index, context);
        }
    }

    /// Whether no data write is in flight, except those that are paused or wait for a sync.
    pub(crate) fn are_data_writes_drained(&self) -> bool {
        !self.calls.iter().any(Transfer::holds_up_gate)
    }

    /// Whether the ring's result for the transfer at `index` is that of a failed sync.
    pub(crate) fn is_failed_sync(&self, index: usize, result: i32) -> bool {
        let transfer = self.calls.get(index);
        transfer.is_some_and(|transfer| transfer.is_failed_sync(result))
    }

    /// Records that a sync failed: durable writes under way may have lost data by it.
    pub(crate) fn lose_durable(&mut self) {
        self.calls.iter_mut().for_each(Transfer::mark_lost);
    }

    /// The ages of the ring's calls, in seconds.
    pub(crate) fn ring_ages(&self) -> impl Iterator<Item = u64> {
        let calls = self.calls.ages();
        calls.filter_map(|(age, transfer)| {
            matches!(transfer.stage(), Stage::Moving | Stage::MakingDurable(_)).then_some(age)
        })
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        self.calls.ages().map(|(age, transfer)| {
            let what = match transfer.direction() {
                Direction::Read => "read of",
                Direction::Write => "write to",
            };
            wait_on(what, transfer.open().id(), layout, age)
        })
    }

    fn launch_or_queue(&mut self, index: usize, context: &mut Context<'_>) {
        if !self.launch(index, context) {
            self.queue(index);
        }
    }

    fn queue(&mut self, index: usize) {
        if let Some(transfer) = self.calls.get_mut(index) {
            transfer.set_stage(Stage::Queued);
            transfer.open().occupancy().wait(index);
        }
    }

    /// Starts a transfer, unless it has to wait for its file. Returns whether it was started, or paused.
    fn launch(&mut self, index: usize, context: &mut Context<'_>) -> bool {
        let Some(transfer) = self.calls.get_mut(index) else {
            return true;
        };
        if context.throttle.is_on() && transfer.is_data_write() {
            transfer.set_stage(Stage::Paused);
            context.throttle.pause(index);
            return true;
        }
        let fit = transfer.fit(self.alignment);
        if fit == Fit::Whole && !transfer.open().is_direct() && self.below == Below::Memory {
            if transfer.open().occupancy().is_alone() {
                return false;
            }
            self.move_now(index, context);
            return true;
        }
        let wanted = match fit {
            // An earlier transfer must not land on top of an append.
            Fit::Whole | Fit::Memory if transfer.is_append() => Use::Alone,
            Fit::Whole | Fit::Memory => Use::Shared,
            Fit::Place => Use::Alone,
        };
        if !transfer.open().occupancy().enter(wanted) {
            return false;
        }
        match fit {
            Fit::Whole => self.submit(index, context),
            Fit::Memory => self.submit_bounced(index, context),
            Fit::Place => self.move_unaligned(index, context),
        }
        true
    }

    fn submit(&mut self, index: usize, context: &Context<'_>) {
        if let Some(transfer) = self.calls.get_mut(index) {
            transfer.submit(context.source, token(index).to_bits());
        }
    }

    /// Has the ring move it through an aligned buffer.
    fn submit_bounced(&mut self, index: usize, context: &mut Context<'_>) {
        self.figures.bounces += 1;
        let Some(transfer) = self.calls.get_mut(index) else {
            return;
        };
        let buffer = self.buffers.take(u64::from(transfer.len()));
        let bounced = buffer
            .map_err(|error| code_of(&error))
            .and_then(|buffer| transfer.use_buffer(buffer));
        match bounced {
            Ok(()) => self.submit(index, context),
            Err(code) => {
                transfer.open().occupancy().leave();
                self.finish(index, Err(code), context);
            }
        }
    }

    /// Moves it by plain calls, which only copy memory.
    fn move_now(&mut self, index: usize, context: &mut Context<'_>) {
        let Some(transfer) = self.calls.get_mut(index) else {
            return;
        };
        let result = transfer.move_now(context.source);
        if result == Err(ErrorCode::NoSpace) && transfer.open().occupancy().enter(Use::Shared) {
            if self.write_from_reserve(index, context) {
                return;
            }
            if let Some(transfer) = self.calls.get_mut(index) {
                transfer.open().occupancy().leave();
            }
        }
        self.settle(index, result, context);
    }

    /// Has a thread move an unaligned transfer, which uses the file alone.
    fn move_unaligned(&mut self, index: usize, context: &mut Context<'_>) {
        self.figures.bounces += 1;
        let claim = self.calls.get(index).and_then(Transfer::reserve_claim);
        self.move_on_thread(index, self.alignment, claim, context);
    }

    /// Has a thread carry out a metadata write without space, from the reserve. Returns whether it does: not for data.
    fn write_from_reserve(&mut self, index: usize, context: &mut Context<'_>) -> bool {
        let Some(transfer) = self.calls.get(index) else {
            return false;
        };
        let Some(claim) = transfer.reserve_claim() else {
            return false;
        };
        let unit = match transfer.open().is_direct() {
            true => self.alignment,
            false => 1,
        };
        self.move_on_thread(index, unit, Some(claim), context);
        true
    }

    fn move_on_thread(
        &mut self,
        index: usize,
        unit: u32,
        claim: Option<Claim>,
        context: &mut Context<'_>,
    ) {
        let Some(transfer) = self.calls.get_mut(index) else {
            return;
        };
        transfer.set_stage(Stage::OnThread);
        match transfer.for_thread(unit, claim) {
            Ok(job) => {
                let queue = JobQueue::Files(transfer.open().id().object.lineage);
                let job = Job::Unaligned(job);
                context.threads.send(queue, token(index), job);
            }
            Err(code) => self.on_thread_done(index, Err(code), context),
        }
    }

    /// Handles the ring's result for the transfer at `index`.
    pub(crate) fn on_ring(&mut self, index: usize, result: i32, context: &mut Context<'_>) {
        match self.calls.get(index).map(Transfer::stage) {
            Some(Stage::Moving) => self.on_moved(index, result, context),
            Some(Stage::MakingDurable(_)) => {
                let failed = sync_failure(result);
                self.on_part(index, failed, context);
            }
            _ => {}
        }
    }

    /// Handles a thread's result for the transfer at `index`.
    pub(crate) fn on_thread(
        &mut self,
        index: usize,
        result: Result<(), ErrorCode>,
        context: &mut Context<'_>,
    ) {
        match self.calls.get(index).map(Transfer::stage) {
            Some(Stage::OnThread) => self.on_thread_done(index, result, context),
            Some(Stage::MakingDurable(_)) => self.on_part(index, result.err(), context),
            _ => {}
        }
    }

    fn on_moved(&mut self, index: usize, result: i32, context: &mut Context<'_>) {
        let Some(transfer) = self.calls.get_mut(index) else {
            return;
        };
        let outcome = match transfer.on_moved(result) {
            Moved::Again => return self.submit(index, context),
            Moved::Refused => {
                self.figures.space_retries += 1;
                return self.submit(index, context);
            }
            Moved::Ended(outcome) => outcome,
        };
        let (open, durable) = (Rc::clone(transfer.open()), transfer.is_durable_write());
        if outcome == Err(ErrorCode::NoSpace) && self.write_from_reserve(index, context) {
            return;
        }
        open.occupancy().leave();
        if outcome.is_ok() && durable && open.is_fresh() {
            self.make_durable(index, 0, context);
        } else {
            self.finish(index, outcome, context);
        }
        self.relaunch(&open, context);
    }

    /// Handles the result of a thread that moved the bytes.
    fn on_thread_done(
        &mut self,
        index: usize,
        result: Result<(), ErrorCode>,
        context: &mut Context<'_>,
    ) {
        let Some(transfer) = self.calls.get(index) else {
            return;
        };
        let open = Rc::clone(transfer.open());
        open.occupancy().leave();
        self.settle(index, result, context);
        self.relaunch(&open, context);
    }

    /// Handles the result of plain calls: a durable write still has to be synced.
    fn settle(&mut self, index: usize, result: Result<(), ErrorCode>, context: &mut Context<'_>) {
        let Some(transfer) = self.calls.get(index) else {
            return;
        };
        if result.is_err() || !transfer.is_durable_write() {
            return self.finish(index, result, context);
        }
        self.figures.file_syncs += 1;
        let file = transfer.open().file();
        context.source.sync(file, token(index).to_bits());
        self.make_durable(index, 1, context);
    }

    /// Makes the transfer durable: when so many `syncs` have ended, and the name of its file is durable.
    fn make_durable(&mut self, index: usize, syncs: u32, context: &Context<'_>) {
        let Some(transfer) = self.calls.get_mut(index) else {
            return;
        };
        let fresh = transfer.open().is_fresh();
        transfer.set_stage(Stage::MakingDurable(syncs + u32::from(fresh)));
        if fresh {
            let lineage = transfer.open().id().object.lineage;
            context.threads.sync_names(lineage, token(index));
        }
    }

    /// Handles one of the results that make a write durable.
    fn on_part(&mut self, index: usize, failed: Option<ErrorCode>, context: &mut Context<'_>) {
        let transfer = self.calls.get_mut(index);
        if transfer.is_some_and(|transfer| transfer.part_done(failed)) {
            self.finish(index, Ok(()), context);
        }
    }

    fn finish(&mut self, index: usize, result: Result<(), ErrorCode>, context: &mut Context<'_>) {
        let Some(mut transfer) = self.calls.remove(index) else {
            return;
        };
        if let Some(buffer) = transfer.take_buffer(result) {
            self.buffers.put_back(buffer);
        }
        let result = transfer.outcome(result);
        if transfer.is_data_write() {
            context.throttle.data_write_ended(result, context.threads);
        }
        if transfer.is_write() && !(transfer.is_durable_write() && result.is_ok()) {
            context.files.wrote(transfer.open());
        }
        if transfer.is_append() {
            let moved = result.map(|()| transfer.len());
            context.logs.append_ended(transfer.open().id(), moved);
        }
        let (ticket, len) = (transfer.ticket(), transfer.len());
        context.replies.push_result(ticket, len, result);
        self.spare.push(transfer.into_spans());
    }

    /// Starts the transfers that waited for a file, as far as possible.
    fn relaunch(&mut self, open: &OpenFile, context: &mut Context<'_>) {
        while let Some(index) = open.occupancy().next_waiting() {
            if !self.launch(index, context) {
                return open.occupancy().wait_first(index);
            }
        }
    }

    /// A transfer that the ring moves: its index, and how many bytes are moved.
    #[cfg(test)]
    pub(crate) fn moving(&self) -> Option<(usize, u32)> {
        (0..64).find_map(|index| {
            let transfer = self.calls.get(index)?;
            (transfer.stage() == Stage::Moving).then(|| (index, transfer.moved()))
        })
    }
}
