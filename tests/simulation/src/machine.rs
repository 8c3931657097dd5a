//! One run of the machine: a mapper, the backend, and the tasks that use them, interleaved by a seed.
//!
//! Invariants
//! - Only [`Machine::step`] lets a backend call complete, and the seed says which: every order is possible.
//! - Each call that is started is a crash point: a clone of all that survives the processes, taken while it is in flight.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use archipelago_blocker::Backend;
use archipelago_blocker::simulated::{Random, SimulatedBackend};
use archipelago_mapper::{ClientId, Effect, EffectId, Mapper};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::map::{MapReply, MapRequest};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use xseg::Region;

use crate::journal::Journals;
use crate::oracle::Oracle;
use crate::trouble::Trouble;

/// Bytes of the buffer through which all requests go, one after the other.
pub const BUFFER_LEN: usize = 34 << 20;

/// The volume peer's connection.
const CLIENT: ClientId = ClientId(1);

/// All that survives the processes, at one moment, and what may be read of it.
#[derive(Debug, Clone)]
pub struct CrashPoint {
    /// The pool, with a call in flight.
    pub backend: SimulatedBackend,
    /// What survives only a kill.
    pub journals: Journals,
    /// What may be read.
    pub oracle: Oracle,
    /// Blocks that may be given out as fresh although they hold data: written, zeroed and closed cleanly.
    pub firsts: BTreeSet<(ObjectId, u64)>,
}

impl CrashPoint {
    /// An empty pool.
    #[must_use]
    pub fn empty(backend: SimulatedBackend) -> Self {
        CrashPoint {
            backend,
            journals: Journals::default(),
            oracle: Oracle::default(),
            firsts: BTreeSet::new(),
        }
    }
}

/// Who waits for a backend call.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Mapper(EffectId),
    Task,
}

/// What tasks share.
#[derive(Debug)]
pub struct Shared {
    mapper: Mapper,
    /// The pool.
    pub backend: SimulatedBackend,
    journals: Journals,
    /// What may be read.
    pub oracle: Oracle,
    region: Region,
    owners: BTreeMap<u64, (Owner, ObjectRequest)>,
    next: u64,
    maps: BTreeMap<u64, MapReply>,
    catalogues: BTreeMap<u64, CatalogueReply>,
    objects: BTreeMap<u64, (ObjectReply, Vec<u8>)>,
    /// Blocks that were written first, as far as no unclean end came between.
    pub firsts: BTreeSet<(ObjectId, u64)>,
    /// Volumes that are open for writing: a crash now is their unclean end.
    pub writing: BTreeSet<Lineage>,
    /// Crash points since they were last taken; `None`: none are taken.
    pub points: Option<Vec<CrashPoint>>,
}

impl Shared {
    fn start(&mut self, owner: Owner, request: ObjectRequest, data: &[u8]) -> u64 {
        let ticket = self.ticket();
        self.region
            .write(0, data)
            .expect("requests fit into the buffer");
        let span = self
            .region
            .span(0, u64::from(request.len))
            .expect("requests fit into the buffer");
        let moves = matches!(
            request.op,
            ObjectOp::Read
                | ObjectOp::Write
                | ObjectOp::CompareAndSwap
                | ObjectOp::ReadSwapped
                | ObjectOp::List
        );
        self.backend.start(
            ticket,
            &request,
            if moves {
                std::slice::from_ref(&span)
            } else {
                &[]
            },
        );
        self.owners.insert(ticket, (owner, request));
        let changes = !matches!(
            request.op,
            ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List | ObjectOp::Stat
        );
        if changes && self.points.is_some() {
            let point = self.crash_point();
            self.points.get_or_insert_default().push(point);
        }
        ticket
    }

    /// What survives the processes now.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        CrashPoint {
            backend: self.backend.clone(),
            journals: self.journals.snapshot(),
            oracle: self.oracle.clone(),
            firsts: self
                .firsts
                .iter()
                .filter(|(id, _)| !self.writing.contains(&id.lineage))
                .copied()
                .collect(),
        }
    }

    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Carries out what the mapper asks for; whether it asked for anything.
    fn drain(&mut self) -> bool {
        let mut any = false;
        while let Some(effect) = self.mapper.next_effect() {
            any = true;
            match effect {
                Effect::Object { id, request, data } => {
                    self.start(Owner::Mapper(id), request, &data);
                }
                Effect::MapReply { tag, reply, .. } => drop(self.maps.insert(tag, reply)),
                Effect::CatalogueReply { tag, reply } => drop(self.catalogues.insert(tag, reply)),
            }
        }
        any
    }

    fn complete(&mut self, index: usize) {
        let (ticket, reply) = self.backend.complete(index);
        let (owner, request) = self
            .owners
            .remove(&ticket)
            .expect("every call has an owner");
        let mut data = Vec::new();
        if let (ObjectOp::Read | ObjectOp::ReadSwapped | ObjectOp::List, Ok(len)) =
            (request.op, reply.result)
        {
            data.resize(len as usize, 0);
            self.region
                .read(0, &mut data)
                .expect("requests fit into the buffer");
        }
        match owner {
            Owner::Mapper(id) => self.mapper.object_done(id, reply, data),
            Owner::Task => drop(self.objects.insert(ticket, (reply, data))),
        }
    }
}

type Task = Pin<Box<dyn Future<Output = Result<(), Trouble>>>>;

/// What a task does its requests with.
#[derive(Debug, Clone)]
pub struct Link {
    shared: Rc<RefCell<Shared>>,
}

impl Link {
    /// Looks at, or changes, what is shared.
    pub fn with<T>(&self, look: impl FnOnce(&mut Shared) -> T) -> T {
        look(&mut self.shared.borrow_mut())
    }

    /// Asks the mapper where things live.
    pub async fn map(&self, request: MapRequest) -> MapReply {
        let tag = self.with(|shared| {
            let tag = shared.ticket();
            shared.mapper.map_request(CLIENT, tag, request);
            tag
        });
        poll_fn(|_context| self.with(|shared| ready(shared.maps.remove(&tag)))).await
    }

    /// Asks the mapper about names.
    pub async fn catalogue(&self, request: CatalogueRequest) -> CatalogueReply {
        let tag = self.with(|shared| {
            let tag = shared.ticket();
            shared.mapper.catalogue_request(tag, request);
            tag
        });
        poll_fn(|_context| self.with(|shared| ready(shared.catalogues.remove(&tag)))).await
    }

    /// Asks the blocker.
    pub async fn object(&self, request: ObjectRequest, data: &[u8]) -> (ObjectReply, Vec<u8>) {
        let ticket = self.with(|shared| shared.start(Owner::Task, request, data));
        poll_fn(|_context| self.with(|shared| ready(shared.objects.remove(&ticket)))).await
    }

    /// Waits until `condition` holds; something else has to make it so.
    pub async fn until(&self, condition: impl Fn() -> bool) {
        poll_fn(|_context| {
            if condition() {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

fn ready<T>(reply: Option<T>) -> Poll<T> {
    reply.map_or(Poll::Pending, Poll::Ready)
}

/// A mapper over a backend, and tasks.
pub struct Machine {
    link: Link,
    tasks: Vec<Task>,
    random: Random,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("tasks", &self.tasks.len())
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts the processes on what `point` left.
    #[must_use]
    pub fn start(point: CrashPoint, region: Region, seed: u64) -> Self {
        let CrashPoint {
            backend,
            journals,
            oracle,
            firsts,
        } = point;
        let shared = Shared {
            mapper: crate::journal::mapper(&journals),
            backend,
            journals,
            oracle,
            region,
            owners: BTreeMap::new(),
            next: 0,
            maps: BTreeMap::new(),
            catalogues: BTreeMap::new(),
            objects: BTreeMap::new(),
            firsts,
            writing: BTreeSet::new(),
            points: None,
        };
        let link = Link {
            shared: Rc::new(RefCell::new(shared)),
        };
        Machine {
            link,
            tasks: Vec::new(),
            random: Random::new(seed),
        }
    }

    /// For tasks.
    #[must_use]
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// Adds a task.
    pub fn spawn(&mut self, task: impl Future<Output = Result<(), Trouble>> + 'static) {
        self.tasks.push(Box::pin(task));
    }

    /// Tasks that have not ended.
    #[must_use]
    pub fn busy(&self) -> usize {
        self.tasks.len()
    }

    /// Runs everything that can run, then lets one backend call complete. `false`: nothing is left to do.
    ///
    /// # Errors
    /// What a task found wrong, or that it waits for nothing.
    pub fn step(&mut self) -> Result<bool, Trouble> {
        loop {
            let before = self.tasks.len();
            self.poll_tasks()?;
            let asked = self.link.with(Shared::drain);
            if !asked && before == self.tasks.len() {
                break;
            }
        }
        let in_flight = self.link.with(|shared| shared.backend.in_flight());
        if in_flight == 0 {
            return if self.tasks.is_empty() {
                Ok(false)
            } else {
                Err(Trouble::Wrong("a task waits for nothing".to_owned()))
            };
        }
        let index = self.random.below(in_flight as u64);
        self.link
            .with(|shared| shared.complete(usize::try_from(index).expect("an index")));
        Ok(true)
    }

    /// Runs until nothing is left to do.
    ///
    /// # Errors
    /// What a task found wrong.
    pub fn finish(&mut self) -> Result<(), Trouble> {
        while self.step()? {}
        Ok(())
    }

    /// Crash points since they were last taken.
    pub fn take_points(&mut self) -> Vec<CrashPoint> {
        self.link.with(|shared| {
            shared
                .points
                .as_mut()
                .map(std::mem::take)
                .unwrap_or_default()
        })
    }

    fn poll_tasks(&mut self) -> Result<(), Trouble> {
        let mut context = Context::from_waker(Waker::noop());
        let mut failed = Ok(());
        self.tasks
            .retain_mut(|task| match task.as_mut().poll(&mut context) {
                Poll::Pending => true,
                Poll::Ready(result) => {
                    failed = std::mem::replace(&mut failed, Ok(())).and(result);
                    false
                }
            });
        failed
    }
}
