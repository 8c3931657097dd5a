//! Logs: their ends and tokens, and the requests that wait for a log.
//!
//! | request | needs |
//! |---|---|
//! | plain write | that nothing was appended yet |
//! | append | the end and the token; it has exclusive use of the log until it is durable |
//! | seal | exclusive use of the log: appends in flight have ended |
//!
//! Ends and tokens are read from the medium once per log and run ([`crate::log_job`]), and again after a failure. An append then
//! costs one write.
//!
//! Invariants
//! - While an append, a seal or an inspection of a log is under way, the log is busy, and other requests wait in order.
//! - The end moves only when an append is durable. After a failed append or seal, end and token are unknown.

use std::collections::VecDeque;
use std::rc::Rc;

use archipelago_blocker::logs::{Landing, LogState};
use archipelago_protocol::control::Wait;
use archipelago_protocol::log_sector::{SECTOR_LEN, is_batch};
use archipelago_protocol::object::{ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{ErrorCode, Generation};
use rustc_hash::FxHashMap;
use xseg::Span;

use crate::calls::Calls;
use crate::errors::Failed;
use crate::layout::{FileId, Layout};
use crate::log_job::{LogDone, LogTask};
use crate::open_file::OpenFile;
use crate::stall_detector::wait_on;

/// A waiting request for a log.
#[derive(Debug)]
pub(crate) struct LogRequest {
    pub(crate) ticket: u64,
    pub(crate) request: ObjectRequest,
    pub(crate) memory: Vec<Span>,
    pub(crate) open: Rc<OpenFile>,
}

/// What to do with a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Transfer it at this place of the log.
    Move(u64),
    Reply(ObjectReply),
    /// A thread has to do this task, for the call at this place; its result answers the request.
    Answer(LogTask, usize),
    /// A thread has to do this task first, for the call at this place; the request waits.
    First(LogTask, usize),
    /// It waits for the calls under way.
    Wait,
}

/// The task of a thread.
#[derive(Debug, Clone, Copy)]
enum LogCall {
    Inspect,
    Seal { ticket: u64, token: Generation },
    Compare { ticket: u64, len: u32 },
}

#[derive(Debug, Default)]
struct LogEntry {
    /// `None`: the log must be inspected.
    known: Option<Known>,
    busy: bool,
    /// A seal failed: the token on the medium may not be durable.
    token_in_doubt: bool,
    waiting: VecDeque<LogRequest>,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    state: LogState,
    /// Bytes of the log; `None`: unknown, since plain writes may have changed it.
    len: Option<u64>,
}

/// The logs of a pool.
#[derive(Debug)]
pub(crate) struct Logs {
    calls: Calls<(FileId, LogCall)>,
    logs: FxHashMap<FileId, LogEntry>,
    /// Logs whose append has ended, and whose next requests have not been started yet.
    ended: Vec<FileId>,
    /// The writes of an earlier process may not be durable.
    suspect: bool,
}

/// The answer to a stale request: `there` is the actual end or token.
fn stale_reply(there: u64) -> ObjectReply {
    ObjectReply {
        values: [there, 0],
        ..ObjectReply::failed(ErrorCode::Stale)
    }
}

fn stale(there: u64) -> Verdict {
    Verdict::Reply(stale_reply(there))
}

/// The answer to a request whose call failed.
fn failed_reply(done: Result<LogDone, Failed>) -> ObjectReply {
    // A result of another kind would be a bug.
    let code = done.err().map_or(ErrorCode::Internal, |failed| failed.code);
    ObjectReply::failed(code)
}

fn refused(code: ErrorCode) -> Verdict {
    Verdict::Reply(ObjectReply::failed(code))
}

/// Whether the memory begins with the batch that the request describes.
fn carries_batch(request: &ObjectRequest, memory: &[Span]) -> bool {
    let mut first = [0; SECTOR_LEN];
    let mut filled = 0;
    for span in memory {
        let len = span.len().min(SECTOR_LEN - filled);
        if let Ok(part) = span.part(0, len) {
            part.read(&mut first[filled..filled + len]);
        }
        filled += len;
        if filled == SECTOR_LEN {
            let ObjectRequest {
                id,
                offset,
                len,
                token,
                ..
            } = *request;
            return is_batch(&first, len, id.lineage, offset, token);
        }
    }
    false
}

impl Logs {
    /// No logs yet, at the time `seconds`.
    pub(crate) fn new(seconds: u64) -> Self {
        Logs {
            calls: Calls::new(seconds),
            logs: FxHashMap::default(),
            ended: Vec::new(),
            suspect: false,
        }
    }

    /// Sets the time.
    pub(crate) fn tick(&mut self, seconds: u64) {
        self.calls.tick(seconds);
    }

    /// Records that the writes of an earlier process may not be durable: each token is written again before it counts.
    pub(crate) fn suspect_all(&mut self) {
        self.suspect = true;
    }

    /// Whether the token of the log `id` is written again before it counts.
    pub(crate) fn is_token_in_doubt(&self, id: FileId) -> bool {
        self.suspect || self.logs.get(&id).is_some_and(|log| log.token_in_doubt)
    }

    /// Decides about a new request for the log `id`.
    pub(crate) fn begin(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        id: FileId,
    ) -> Verdict {
        let log = self.logs.entry(id).or_default();
        match log.waiting.is_empty() {
            true => self.decide(ticket, request, memory, id),
            false => Verdict::Wait,
        }
    }

    /// Queues a request behind the others.
    pub(crate) fn wait(&mut self, id: FileId, request: LogRequest) {
        self.logs.entry(id).or_default().waiting.push_back(request);
    }

    /// The first waiting request for the log `id`, and the decision about it; `None`: it waits on, or none waits. If a task has to be done
    /// first, it is returned, and the request waits on.
    pub(crate) fn next(&mut self, id: FileId) -> Option<(LogRequest, Verdict)> {
        let log = self.logs.get_mut(&id)?;
        let first = log.waiting.pop_front()?;
        let verdict = self.decide(first.ticket, &first.request, &first.memory, id);
        match verdict {
            Verdict::Wait => {
                self.wait_first(id, first);
                None
            }
            verdict => Some((first, verdict)),
        }
    }

    /// Queues a request in front of the others.
    pub(crate) fn wait_first(&mut self, id: FileId, request: LogRequest) {
        self.logs.entry(id).or_default().waiting.push_front(request);
    }

    fn decide(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        id: FileId,
    ) -> Verdict {
        let log = self.logs.entry(id).or_default();
        if log.busy {
            return Verdict::Wait;
        }
        match (request.op, log.known) {
            (ObjectOp::Seal, Some(known)) if known.state.token > request.token => {
                stale(known.state.token.0)
            }
            (ObjectOp::Seal, _) => {
                let token = request.token;
                let index = self.busy(id, LogCall::Seal { ticket, token });
                Verdict::Answer(LogTask::Seal { token }, index)
            }
            (
                ObjectOp::Append,
                Some(Known {
                    state,
                    len: Some(len),
                }),
            ) => {
                if !carries_batch(request, memory) {
                    return refused(ErrorCode::Invalid);
                }
                match state.append(len, request.offset, request.len, request.token) {
                    Landing::At(place) => {
                        log.busy = true;
                        Verdict::Move(place)
                    }
                    Landing::IfRepeated(place) => {
                        let memory = memory.to_vec();
                        let len = request.len;
                        let index = self.busy(id, LogCall::Compare { ticket, len });
                        Verdict::Answer(LogTask::Compare { place, memory }, index)
                    }
                    Landing::Stale => stale(state.end),
                    Landing::Invalid => refused(ErrorCode::Invalid),
                }
            }
            (ObjectOp::Append, _) => self.look(id, request.offset),
            (_, Some(Known { state, .. })) if state.end > 0 => stale(state.end),
            (_, Some(known)) => {
                log.known = Some(Known { len: None, ..known });
                Verdict::Move(request.offset)
            }
            (_, None) => self.look(id, 0),
        }
    }

    fn look(&mut self, id: FileId, hint: u64) -> Verdict {
        let index = self.busy(id, LogCall::Inspect);
        Verdict::First(LogTask::Inspect { hint }, index)
    }

    fn busy(&mut self, id: FileId, call: LogCall) -> usize {
        self.logs.entry(id).or_default().busy = true;
        self.calls.insert((id, call))
    }

    /// Records that the append to the log `id` has ended; the end moves if it is durable.
    pub(crate) fn append_ended(&mut self, id: FileId, moved: Result<u32, ErrorCode>) {
        if let Some(log) = self.logs.get_mut(&id) {
            log.busy = false;
            match (&mut log.known, moved) {
                (Some(known), Ok(len)) => known.state.end += u64::from(len),
                (known, _) => *known = None,
            }
        }
        self.ended.push(id);
    }

    /// A log whose append has ended: its waiting requests can go on.
    pub(crate) fn next_ended(&mut self) -> Option<FileId> {
        self.ended.pop()
    }

    /// Handles the result of the call at `index`. Returns its log, and the answer to its request.
    pub(crate) fn done(
        &mut self,
        index: usize,
        done: Result<LogDone, Failed>,
    ) -> Option<(FileId, Option<(u64, ObjectReply)>)> {
        let (id, call) = self.calls.remove(index)?;
        let log = self.logs.entry(id).or_default();
        log.busy = false;
        let reply = match (call, done) {
            (LogCall::Inspect, Ok(LogDone::Inspected { state, len })) => {
                log.token_in_doubt = false;
                let len = Some(len);
                log.known = Some(Known { state, len });
                None
            }
            (LogCall::Inspect, failed) => {
                let first = log.waiting.pop_front();
                first.map(|first| (first.ticket, failed_reply(failed)))
            }
            (LogCall::Seal { ticket, token }, Ok(LogDone::Sealed)) => {
                log.token_in_doubt = false;
                if let Some(known) = &mut log.known {
                    known.state.token = token;
                }
                Some((ticket, ObjectReply::done(0)))
            }
            (LogCall::Seal { ticket, .. }, Ok(LogDone::Refused(there))) => {
                Some((ticket, stale_reply(there.0)))
            }
            (LogCall::Seal { ticket, .. }, failed) => {
                log.known = None;
                log.token_in_doubt = true;
                Some((ticket, failed_reply(failed)))
            }
            (LogCall::Compare { ticket, len }, Ok(LogDone::Compared { equal })) => {
                let end = log.known.map_or(0, |known| known.state.end);
                let reply = match equal {
                    true => ObjectReply::done(len),
                    false => stale_reply(end),
                };
                Some((ticket, reply))
            }
            (LogCall::Compare { ticket, .. }, failed) => Some((ticket, failed_reply(failed))),
        };
        Some((id, reply))
    }

    /// Records that the files which `which` selects are being deleted: their waiting requests are the last ones.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        self.logs
            .retain(|id, log| !which(id) || log.busy || !log.waiting.is_empty());
    }

    /// The calls under way, to be reported.
    pub(crate) fn waits<'a>(&'a self, layout: &'a Layout) -> impl Iterator<Item = Wait> {
        self.calls.ages().map(|(age, (id, call))| {
            let what = match call {
                LogCall::Seal { .. } => "seal of",
                LogCall::Inspect | LogCall::Compare { .. } => "look at",
            };
            wait_on(what, *id, layout, age)
        })
    }
}
