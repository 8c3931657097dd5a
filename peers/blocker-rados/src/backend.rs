//! The backend: routes requests, and the completions of calls to the tasks that wait for them.
//!
//! Life of a write: [`RadosBackend::start`] checks whether the object's group is in the index. If so, [`crate::transfers`] makes one call;
//! if not, a task writes the index first. One of librados' threads queues the completion and rings the doorbell; [`RadosBackend`] takes it
//! from the queue and replies.
//!
//! Invariant: nothing here waits for the cluster, from the first request to the last.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::capabilities::Capabilities;
use archipelago_protocol::control::{PoolAccess, PoolReport, PoolReserve, Wait};
use archipelago_protocol::object::{ObjectKind, ObjectOp, ObjectReply, ObjectRequest};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Source, Watch};
use librados_sys::Code;
use xseg::Span;

use crate::calls::{Calls, Waiter};
use crate::open::{Options, open};
use crate::owner::{Claimant, Owner, Place as OwnerPlace, taken};
use crate::space::Space;
use crate::tasks::{TaskOf, Tasks};
use crate::transfers::{Place, Transfers};
use crate::{heads, index, logs, looks, removal};

/// The token of the doorbells on the ring.
const DOORBELL: u64 = u64::MAX;

/// Objects in a RADOS pool. Lives on its reactor's thread.
#[derive(Debug)]
pub struct RadosBackend {
    calls: Rc<Calls>,
    tasks: Tasks,
    transfers: Transfers,
    space: Space,
    replies: VecDeque<(u64, ObjectReply)>,
    source: Source,
    _doorbells: [Watch; 2],
    owner: Owner,
    lost: fn(&Error),
    name: String,
    fsid: String,
    counters: Counters,
}

/// Figures so far.
#[derive(Debug, Default)]
struct Counters {
    transfers: u64,
    tasks: u64,
    first_writes: u64,
}

impl RadosBackend {
    /// Opens the pool for this client alone: the cluster blocklists the former client of this node.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the owner on another node; [`ErrorCode::Stale`] if another node has had the pool since a process
    /// died whose successor this is; otherwise what is wrong with configuration, key, pool or cluster.
    pub fn open(options: &Options, claimant: &Claimant, source: Source) -> Result<Self, Error> {
        let (opened, owner) = open(options, claimant)?;
        let name = options.name();
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorCode::Io,
                format!("RADOS pool `{name}`: a thread or its doorbell: {error}"),
            )
        };
        let data_pool = options.data_pool().to_owned();
        let space = Space::start(opened.cluster.clone(), data_pool).map_err(failed)?;
        let doorbells = [
            source
                .poll_readable(opened.completions.doorbell(), DOORBELL)
                .map_err(failed)?,
            source
                .poll_readable(space.doorbell(), DOORBELL)
                .map_err(failed)?,
        ];
        let fsid = opened.fsid.clone();
        Ok(RadosBackend {
            calls: Rc::new(Calls::new(opened, name.clone())),
            tasks: Tasks::default(),
            transfers: Transfers::default(),
            space,
            replies: VecDeque::new(),
            source,
            _doorbells: doorbells,
            owner,
            lost: claimant.lost,
            name,
            fsid,
            counters: Counters::default(),
        })
    }

    /// Carries out a request of one call, or one that must be entered into the index first.
    fn start_transfer(
        &mut self,
        ticket: u64,
        request: &ObjectRequest,
        memory: &[Span],
    ) -> Result<(), ErrorCode> {
        let place = Place::of(request)?;
        if request.len == 0 {
            self.replies.push_back((ticket, ObjectReply::done(0)));
            return Ok(());
        }
        if self.transfers.admit(ticket, request, &place, memory) {
            self.send(ticket, request, &place, memory);
        }
        Ok(())
    }

    /// Carries out a read or write that was admitted. The index is checked only now: a write may have waited while its object was removed.
    fn send(&mut self, ticket: u64, request: &ObjectRequest, place: &Place, memory: &[Span]) {
        let is_write = request.op == ObjectOp::Write;
        let is_known = || {
            let known = self.calls.known.borrow();
            known.has_group(request.id, place.group())
        };
        if is_write && !is_known() {
            self.counters.first_writes += 1;
            self.start_task(ticket, request, memory, request.len);
        } else {
            self.counters.transfers += 1;
            self.source.begin_elsewhere(request.len as usize);
            self.transfers
                .send(&self.calls, ticket, request, place, memory);
        }
    }

    /// Carries out a request of several calls, which was admitted for so many bytes.
    fn start_task(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span], admitted: u32) {
        self.counters.tasks += 1;
        self.source.begin_elsewhere(request.len as usize);
        let calls = Rc::clone(&self.calls);
        let (request, memory) = (*request, memory.to_vec());
        let future = async move {
            let done = carry_out(&calls, &request, &memory).await;
            done.unwrap_or_else(ObjectReply::failed)
        };
        let of = TaskOf {
            ticket,
            op: request.op,
            id: request.id,
            admitted,
        };
        let ended = self.tasks.start(&self.calls, of, future);
        self.end_task(ended);
    }

    fn end_task(&mut self, ended: Option<(TaskOf, ObjectReply)>) {
        if let Some((of, reply)) = ended {
            self.source.end_elsewhere();
            self.transfers.release(of.admitted);
            self.replies.push_back((of.ticket, reply));
        }
    }

    /// Handles the calls that have ended.
    fn take_ends(&mut self) {
        while let Some((waiter, completed)) = self.calls.next() {
            if completed.result == Err(Code::BLOCKLISTED) {
                (self.lost)(&taken(&self.name));
            }
            match waiter {
                Waiter::Transfer(transfer) => {
                    self.source.end_elsewhere();
                    self.transfers.release(transfer.len);
                    let reply = transfer.reply(&completed);
                    self.replies.push_back((transfer.ticket, reply));
                }
                Waiter::Task(task, end) => {
                    *end.borrow_mut() = Some(completed);
                    let ended = self.tasks.go_on(&self.calls, task);
                    self.end_task(ended);
                }
            }
            while let Some(next) = self.transfers.next() {
                self.send(next.ticket, &next.request, &next.place, &next.memory);
            }
        }
        while let Some(reply) = self.space.next() {
            self.replies.push_back(reply);
        }
    }
}

/// Carries out a request of several calls.
async fn carry_out(
    calls: &Calls,
    request: &ObjectRequest,
    memory: &[Span],
) -> Result<ObjectReply, ErrorCode> {
    let id = request.id;
    match request.op {
        ObjectOp::Write if id.kind == ObjectKind::Log => logs::write(calls, request, memory).await,
        ObjectOp::Write => looks::first_write(calls, request, memory).await,
        ObjectOp::CompareAndSwap => heads::swap(calls, request, memory).await,
        ObjectOp::ReadSwapped => heads::read_swapped(calls, request, memory).await,
        ObjectOp::Append => logs::append(calls, request, memory).await,
        ObjectOp::Seal => logs::seal(calls, request).await,
        ObjectOp::Create => looks::create(calls, request).await,
        ObjectOp::Delete => removal::delete(calls, id).await,
        ObjectOp::DeleteLineage => removal::delete_lineage(calls, id.lineage).await,
        ObjectOp::Punch => looks::punch(calls, request).await,
        ObjectOp::Stat => looks::stat(calls, id).await,
        ObjectOp::List => index::list(calls, request, memory).await,
        ObjectOp::Read
        | ObjectOp::Sync
        | ObjectOp::SyncPool
        | ObjectOp::StatPool
        | ObjectOp::Capabilities => Err(ErrorCode::Internal),
    }
}

impl Backend for RadosBackend {
    fn name(&self) -> &str {
        "rados"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::DURABLE
            .with(Capabilities::ATOMIC_WRITES)
            .with(Capabilities::FENCING)
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("rados_calls_direct", self.counters.transfers),
            ("rados_tasks", self.counters.tasks),
            ("rados_first_writes", self.counters.first_writes),
            ("rados_gathered", self.transfers.gathered()),
        ]
    }

    fn pool_report(&self) -> Option<PoolReport> {
        Some(PoolReport {
            access: PoolAccess::Cluster {
                fsid: self.fsid.clone(),
            },
            reserve: PoolReserve { held: 0, wanted: 0 },
            owner: Some(self.owner.text()),
        })
    }

    fn look(&mut self, now: Duration) {
        self.calls.look_at(now);
    }

    fn waits(&self) -> Vec<Wait> {
        self.calls.waits()
    }

    fn start(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        use ObjectOp::{
            Append, CompareAndSwap, Create, Read, ReadSwapped, Seal, StatPool, Sync, SyncPool,
            Write,
        };
        let kind = request.id.kind;
        let is_head = kind == ObjectKind::Head;
        let result = match request.op {
            // Small objects are changed by swaps only.
            Read | Write if is_head => Err(ErrorCode::Invalid),
            CompareAndSwap | ReadSwapped if !is_head => Err(ErrorCode::Invalid),
            Append | Seal if kind != ObjectKind::Log => Err(ErrorCode::Invalid),
            Create if is_head || kind == ObjectKind::Data => Err(ErrorCode::Invalid),
            Write if kind == ObjectKind::Log => {
                self.start_task(ticket, request, memory, 0);
                Ok(())
            }
            Read | Write => self.start_transfer(ticket, request, memory),
            // All completed writes are durable.
            Sync | SyncPool => {
                self.replies.push_back((ticket, ObjectReply::done(0)));
                Ok(())
            }
            StatPool => {
                self.space.ask(ticket);
                Ok(())
            }
            _ => {
                self.start_task(ticket, request, memory, 0);
                Ok(())
            }
        };
        if let Err(code) = result {
            self.replies.push_back((ticket, ObjectReply::failed(code)));
        }
    }

    fn poll(&mut self) -> Option<(u64, ObjectReply)> {
        if let Some(reply) = self.replies.pop_front() {
            return Some(reply);
        }
        while let Some(event) = self.source.next() {
            debug_assert_eq!(event.token, DOORBELL, "nothing else was asked for");
            self.calls.silence();
        }
        self.take_ends();
        self.replies.pop_front()
    }
}

impl Drop for RadosBackend {
    fn drop(&mut self) {
        self.calls.at_end(|cluster, pool, completions| {
            self.owner.release(&mut OwnerPlace {
                cluster,
                pool,
                completions,
                timeout: Duration::ZERO,
                name: &self.name,
            });
        });
    }
}
