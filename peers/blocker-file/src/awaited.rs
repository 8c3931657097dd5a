//! Requests on files that are not open yet: they wait until a thread has opened them, and go on in order.

use std::io;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use xseg::Span;

use crate::backend::{FileBackend, Pending};
use crate::descriptors::{Starved, is_exhausted, pause};
use crate::errors::code_of;
use crate::files::Missing;
use crate::jobs::Job;
use crate::layout::{CONTAINER_LEN, FileId};
use crate::opening::{Opened, Opening};
use crate::slow::Line;

/// A request that waits for its file.
#[derive(Debug)]
struct Waiter {
    ticket: u64,
    request: ObjectRequest,
    memory: Vec<Span>,
}

impl Waiter {
    fn missing(&self) -> Missing {
        missing(self.request.op)
    }
}

/// A file that is being opened, and who waits for it.
#[derive(Debug)]
pub(crate) struct Awaited {
    pub(crate) id: FileId,
    missing: Missing,
    /// It was deleted meanwhile.
    forgotten: bool,
    /// Tries that found no descriptor free, and the episode that they belong to.
    starved: Option<(u32, Starved)>,
    waiters: Vec<Waiter>,
}

/// Only a write makes a file.
fn missing(op: ObjectOp) -> Missing {
    match op {
        ObjectOp::Write => Missing::Create,
        _ => Missing::Refuse,
    }
}

impl FileBackend {
    /// Starts a read, write or sync, as soon as its file is open.
    pub(crate) fn start_on_file(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<(), ErrorCode> {
        let (id, offset) = FileId::locate(request.id, request.offset);
        let moves = request.op != ObjectOp::Sync;
        if moves
            && request.id.kind == ObjectKind::Data
            && offset + u64::from(request.len) > CONTAINER_LEN
        {
            // An object never crosses a container: its size divides the container's.
            return Err(ErrorCode::Invalid);
        }
        match self.files.find(id) {
            Some(open) if moves => self.start_transfer(ticket, request, memory, open),
            Some(open) => self.start_sync(ticket, open),
            None => self.wait_for_open(
                id,
                Waiter {
                    ticket,
                    request: *request,
                    memory: memory.to_vec(),
                },
            ),
        }
        Ok(())
    }

    fn wait_for_open(&mut self, id: FileId, waiter: Waiter) {
        if let Some(index) = self.opening.get(&id)
            && let Some(Some(Pending::Open(awaited))) = self.pending.get_mut(*index)
        {
            return awaited.waiters.push(waiter);
        }
        let missing = waiter.missing();
        let index = self.insert(Pending::Open(Awaited {
            id,
            missing,
            forgotten: false,
            starved: None,
            waiters: vec![waiter],
        }));
        self.opening.insert(id, index);
        let opening = self.files.opening(id, missing);
        let line = Line::Files(id.object.lineage);
        self.slow.send(line, index, Job::Open(opening));
    }

    /// A thread has opened a file, or not.
    pub(crate) fn on_opened(&mut self, index: usize, result: io::Result<Opened>) {
        let result = match result {
            Err(error) if is_exhausted(&error) && self.open_again(index, &error) => return,
            result => result,
        };
        let Some(Pending::Open(awaited)) = self.remove(index) else {
            return;
        };
        let id = awaited.id;
        self.opening.remove(&id);
        let error = match result {
            Ok(opened) => {
                let closing = self.slow.sending();
                let open = self.files.opened(id, opened, &closing, awaited.forgotten);
                for waiter in awaited.waiters {
                    let Waiter {
                        ticket, request, ..
                    } = &waiter;
                    let open = open.clone();
                    match request.op {
                        ObjectOp::Sync => self.start_sync(*ticket, open),
                        _ => self.start_transfer(*ticket, request, &waiter.memory, open),
                    }
                }
                return;
            }
            Err(error) => error,
        };
        if awaited.missing == Missing::Create {
            self.files.half_made(id);
        }
        let not_there = error.kind() == io::ErrorKind::NotFound;
        for waiter in awaited.waiters {
            match waiter.missing() {
                // Asked for while somebody looked who would not make it.
                Missing::Create if not_there && awaited.missing == Missing::Refuse => {
                    self.wait_for_open(id, waiter);
                }
                // Nothing was ever written there.
                _ if not_there && waiter.request.op == ObjectOp::Sync => {
                    self.answer(waiter.ticket, ObjectReply::done(0));
                }
                _ => self.answer(waiter.ticket, ObjectReply::failed(code_of(&error))),
            }
        }
    }

    /// No descriptor was free: closes files that nobody uses, and tries once more. Requests wait meanwhile. Whether it does.
    fn open_again(&mut self, index: usize, error: &io::Error) -> bool {
        let Some(Some(Pending::Open(awaited))) = self.pending.get_mut(index) else {
            return false;
        };
        if awaited.forgotten {
            return false;
        }
        let (tries, starved) = match awaited.starved.take() {
            Some((tries, starved)) => (tries + 1, starved),
            None => (0, Starved::new(error)),
        };
        awaited.starved = Some((tries, starved));
        let (id, missing) = (awaited.id, awaited.missing);
        if missing == Missing::Create {
            self.files.half_made(id);
        }
        self.files.give_back();
        let opening = Opening {
            pause: pause(tries),
            ..self.files.opening(id, missing)
        };
        let line = Line::Files(id.object.lineage);
        self.slow.send(line, index, Job::Open(opening));
        true
    }

    /// Closes the files that `which` names: they are being deleted.
    pub(crate) fn forget(&mut self, which: impl Fn(&FileId) -> bool) {
        for pending in self.pending.iter_mut().flatten() {
            if let Pending::Open(awaited) = pending
                && which(&awaited.id)
            {
                awaited.forgotten = true;
            }
        }
        self.files.forget(which);
    }
}
