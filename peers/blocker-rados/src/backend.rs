//! The backend: routes requests, and the ends of calls to whoever waits for them.
//!
//! Life of a write: [`RadosBackend::start`] finds out whether the object's group stands in the index. If so, [`crate::transfers`] makes
//! the one call; if not, a task writes the index first. One of librados' threads puts the end into a queue and rings; [`RadosBackend`]
//! takes it from there and replies.
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
use crate::tasks::Tasks;
use crate::transfers::{Place, Transfers};
use crate::{heads, index, logs, looks, removal};

/// What the ring gives back for the doorbells.
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
    owner: Option<Owner>,
    lost: fn(&Error),
    name: String,
    fsid: String,
    counters: Counters,
}

/// What went through.
#[derive(Debug, Default)]
struct Counters {
    transfers: u64,
    tasks: u64,
    first_writes: u64,
}

impl RadosBackend {
    /// Opens the pool for this client alone: whoever had it on this node is shut out by the cluster.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] naming the owner on another node; [`ErrorCode::Stale`] if another node has had the pool since a process
    /// died whose successor this is; otherwise what is wrong with configuration, key, pool or cluster.
    pub fn open(options: &Options, claimant: &Claimant, source: Source) -> Result<Self, Error> {
        let opened = open(options, claimant)?;
        let name = options.name();
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorCode::Io,
                format!("RADOS pool `{name}`: a thread or its doorbell: {error}"),
            )
        };
        let data_pool = options
            .data_pool
            .clone()
            .unwrap_or_else(|| options.pool.clone());
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
        let calls = Calls::new(opened, name.clone());
        Ok(RadosBackend {
            calls: Rc::new(calls.0),
            tasks: Tasks::default(),
            transfers: Transfers::default(),
            space,
            replies: VecDeque::new(),
            source,
            _doorbells: doorbells,
            owner: calls.1,
            lost: claimant.lost,
            name,
            fsid,
            counters: Counters::default(),
        })
    }

    /// Carries out a request of one call, or one that must be in the index first.
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
        let id = request.id;
        let is_write = request.op == ObjectOp::Write;
        if is_write && !self.calls.known.borrow().has_group(id, place.group()) {
            self.counters.first_writes += 1;
            self.start_task(ticket, request, memory);
        } else {
            self.counters.transfers += 1;
            self.transfers.start(&self.calls, ticket, request, memory);
        }
        Ok(())
    }

    /// Carries out a request of several calls.
    fn start_task(&mut self, ticket: u64, request: &ObjectRequest, memory: &[Span]) {
        self.counters.tasks += 1;
        let calls = Rc::clone(&self.calls);
        let (request, memory) = (*request, memory.to_vec());
        let future = async move {
            let done = carry_out(&calls, &request, &memory).await;
            done.unwrap_or_else(ObjectReply::failed)
        };
        let of = (request.op, request.id);
        let replied = self.tasks.start(&self.calls, ticket, of, future);
        self.replies.extend(replied);
    }

    /// Takes what has ended.
    fn take_ends(&mut self) {
        while let Some((waiter, completed)) = self.calls.next() {
            if completed.result == Err(Code::BLOCKLISTED) {
                (self.lost)(&taken(&self.name));
            }
            match waiter {
                Waiter::Transfer(transfer) => {
                    let reply = self.transfers.ended(&self.calls, &transfer, &completed);
                    self.replies.push_back(reply);
                }
                Waiter::Task(task, end) => {
                    *end.borrow_mut() = Some(completed);
                    let replied = self.tasks.go_on(&self.calls, task);
                    self.replies.extend(replied);
                }
            }
        }
        while let Some(reply) = self.space.next() {
            self.replies.push_back(reply);
        }
    }
}

/// What a request of several calls does.
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
            owner: self.owner.as_ref().map(Owner::text),
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
            // Small objects change by swaps only.
            Read | Write if is_head => Err(ErrorCode::Invalid),
            CompareAndSwap | ReadSwapped if !is_head => Err(ErrorCode::Invalid),
            Append | Seal if kind != ObjectKind::Log => Err(ErrorCode::Invalid),
            Create if is_head || kind == ObjectKind::Data => Err(ErrorCode::Invalid),
            Write if kind == ObjectKind::Log => {
                self.start_task(ticket, request, memory);
                Ok(())
            }
            Read | Write => self.start_transfer(ticket, request, memory),
            // All that was written is durable.
            Sync | SyncPool => {
                self.replies.push_back((ticket, ObjectReply::done(0)));
                Ok(())
            }
            StatPool => {
                self.space.ask(ticket);
                Ok(())
            }
            _ => {
                self.start_task(ticket, request, memory);
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
        let Some(owner) = self.owner.take() else {
            return;
        };
        let name = self.name.clone();
        self.calls.at_end(|cluster, pool, completions| {
            owner.release(&mut OwnerPlace {
                cluster,
                pool,
                completions,
                timeout: Duration::ZERO,
                name: &name,
            });
        });
    }
}
