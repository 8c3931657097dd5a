//! The parts of a backend together: starts requests on open files, and resumes those that waited for a log.

use std::os::fd::AsFd;
use std::rc::Rc;

use archipelago_protocol::object::{ObjectKind, ObjectOp, ObjectRequest};
use xseg::Span;

use crate::blocking_pool::JobQueue;
use crate::calls::{Part, Token};
use crate::context::Context;
use crate::errors::Failed;
use crate::job_requests::JobRequests;
use crate::jobs::Job;
use crate::layout::FileId;
use crate::log_job::{LogJob, LogTask};
use crate::logs::{LogRequest, Verdict};
use crate::open_file::OpenFile;
use crate::pending_opens::PendingOpens;
use crate::syncs::Syncs;
use crate::transfers::Transfers;

/// The parts of a backend that have calls under way.
pub(crate) struct Parts<'a> {
    pub(crate) opens: &'a mut PendingOpens,
    pub(crate) transfers: &'a mut Transfers,
    pub(crate) syncs: &'a mut Syncs,
    pub(crate) requests: &'a mut JobRequests,
}

impl Parts<'_> {
    /// Starts a read, a write or a change of a log on its open file.
    pub(crate) fn start_on_open(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        open: Rc<OpenFile>,
        context: &mut Context<'_>,
    ) {
        match request.op {
            ObjectOp::Write | ObjectOp::Append | ObjectOp::Seal
                if request.id.kind == ObjectKind::Log =>
            {
                self.start_on_log(ticket, request, memory, open, context);
            }
            _ => self.transfers.start(ticket, request, memory, open, context),
        }
    }

    /// Starts a change of a log, as soon as the log is not busy.
    fn start_on_log(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
        open: Rc<OpenFile>,
        context: &mut Context<'_>,
    ) {
        let id = open.id();
        let verdict = context.logs.begin(ticket, request, memory, id);
        let kept = || LogRequest {
            ticket,
            request: *request,
            memory: memory.to_vec(),
            open: Rc::clone(&open),
        };
        match verdict {
            Verdict::Move(offset) => {
                let request = ObjectRequest { offset, ..*request };
                self.transfers
                    .start(ticket, &request, memory, open, context);
            }
            Verdict::Reply(reply) => context.replies.push(ticket, reply),
            Verdict::Answer(task, index) => self.send_log(&open, task, index, context),
            Verdict::First(task, index) => {
                context.logs.wait(id, kept());
                self.send_log(&open, task, index, context);
            }
            Verdict::Wait => context.logs.wait(id, kept()),
        }
    }

    /// Starts the requests that waited for the log `id`, as far as possible.
    pub(crate) fn go_on_with_log(&mut self, id: FileId, context: &mut Context<'_>) {
        while let Some((first, verdict)) = context.logs.next(id) {
            match verdict {
                Verdict::Move(offset) => {
                    let LogRequest {
                        ticket,
                        request,
                        memory,
                        open,
                    } = first;
                    let request = ObjectRequest { offset, ..request };
                    self.transfers
                        .start(ticket, &request, &memory, open, context);
                }
                Verdict::Reply(reply) => context.replies.push(first.ticket, reply),
                Verdict::Answer(task, index) => self.send_log(&first.open, task, index, context),
                Verdict::First(task, index) => {
                    self.send_log(&first.open, task, index, context);
                    context.logs.wait_first(id, first);
                }
                Verdict::Wait => context.logs.wait_first(id, first),
            }
        }
    }

    /// Starts the requests that waited for appends that have ended.
    pub(crate) fn go_on_with_logs(&mut self, context: &mut Context<'_>) {
        while let Some(id) = context.logs.next_ended() {
            self.go_on_with_log(id, context);
        }
    }

    /// Has a thread do a task on a log.
    fn send_log(
        &mut self,
        open: &OpenFile,
        task: LogTask,
        index: usize,
        context: &mut Context<'_>,
    ) {
        let id = open.id();
        let unit = match open.is_direct() {
            true => self.transfers.alignment(),
            false => 1,
        };
        let file = open.file().as_fd().try_clone_to_owned();
        let job = file.map(|file| LogJob {
            id,
            file: file.into(),
            unit,
            task,
            token_in_doubt: context.logs.is_token_in_doubt(id),
        });
        match job {
            Ok(job) => {
                let token = Token {
                    part: Part::Logs,
                    index,
                };
                let queue = JobQueue::Files(id.object.lineage);
                context.threads.send(queue, token, Job::Log(job));
            }
            Err(error) => {
                let failed = Failed::from(error);
                if let Some((_, Some((ticket, reply)))) = context.logs.done(index, Err(failed)) {
                    context.replies.push(ticket, reply);
                }
            }
        }
    }
}
