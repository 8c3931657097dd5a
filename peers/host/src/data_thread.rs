//! A data thread: its reactor, its channels and its peers.
//!
//! A process that hosts all roles may have several. Each has an endpoint, a mapper and a blocker of its own, joined by local channels, and
//! serves volumes of its own; no request of a guest touches two threads.
//!
//! | is shared | by |
//! |---|---|
//! | the pool's lock, its reserve, failed syncs, deletions | the backends: [`Pool::join`] |
//! | the catalogue's objects | the first thread's blocker, to which the other mappers have a channel |
//! | what the catalogue says | its log: each mapper is an incarnation of its own ([`Sharing::Siblings`]) |

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::thread::{Builder, Scope};
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_mapper::{Mapper, MapperConfig, Sharing};
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode, Grants};
use archipelago_runtime::{Config, Reactor, SystemClock};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use xseg::shared::{Admission, ConnectOptions, OnServerDeath, SharedClient};
use xseg::{Client, Server};

use crate::acceptor::{Acceptor, Caller, Channels};
use crate::blocker::BlockerHost;
use crate::endpoint::EndpointHost;
use crate::event_loop::EventLoop;
use crate::host::{Host, Job};
use crate::journal::FileJournals;
use crate::mapper::MapperHost;
use crate::pool::{Pool, Purpose};
use crate::port::Attention;
use crate::threads::{DataThreads, ThreadQueue};
use crate::{PeerSettings, containment, journal, owner};

/// Bytes of the arena of a channel to the mapper: what small flushes of 15 volumes carry at a time. A flush that
/// finds no room is an ordinary one. Of one between threads, for the catalogue: four of the mapper's longest requests.
const SMALL_ARENA_LEN: usize = 1 << 20;

/// What all data threads of a process are made of.
#[derive(Debug)]
pub(crate) struct ThreadPlan<'a, P> {
    roles: &'a [Role],
    settings: &'a PeerSettings<P>,
    /// Of their mappers: one for each thread.
    incarnations: Vec<u128>,
}

impl<'a, P: Pool> ThreadPlan<'a, P> {
    /// # Errors
    /// If the kernel gives no random numbers.
    pub(crate) fn new(
        roles: &'a [Role],
        settings: &'a PeerSettings<P>,
    ) -> Result<ThreadPlan<'a, P>, Error> {
        let all_here = Role::ALL.iter().all(|role| roles.contains(role));
        let threads = if all_here { settings.data.threads } else { 1 };
        let incarnations = match roles.contains(&Role::Mapper) {
            true => (0..threads)
                .map(|_| owner::fresh_incarnation())
                .collect::<Result<_, _>>()?,
            false => vec![0],
        };
        Ok(ThreadPlan {
            roles,
            settings,
            incarnations,
        })
    }

    fn threads(&self) -> usize {
        self.incarnations.len()
    }

    fn hosts(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    fn socket(&self, role: Role) -> PathBuf {
        self.settings
            .run
            .join(format!("segment-{}.sock", role.name()))
    }

    fn reactor(&self) -> Result<Reactor, Error> {
        let data = &self.settings.data;
        let config = Config {
            poll: Duration::from_micros(u64::from(data.poll_us)),
            submit_chunk: data.submission_chunk as usize,
            ..Config::default()
        };
        Reactor::new(config, Arc::new(SystemClock))
            .map_err(|failure| containment::ring_failed(&failure))
    }

    /// Who else serves the pool beside the mapper of thread `number`.
    fn sharing(&self, number: usize) -> Sharing {
        match self.settings.pool.sharing() {
            Sharing::Alone if self.threads() > 1 => {
                let mut siblings = self.incarnations.clone();
                siblings.remove(number);
                Sharing::Siblings(siblings)
            }
            sharing => sharing,
        }
    }

    /// Binds this thread to its CPU, if it has one. What the thread has started before is not bound.
    fn bind(&self, number: usize) {
        let cpus = &self.settings.data.cpus;
        if cpus.is_empty() {
            return;
        }
        let cpu = cpus[number % cpus.len()];
        let mut set = CpuSet::new();
        let bound = set.set(cpu as usize);
        let bound = bound.and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
        if let Err(errno) = bound {
            tracing::warn!("data thread {number} is not bound to CPU {cpu} (`data.cpus`): {errno}");
        }
    }
}

/// A data thread, before it runs.
pub(crate) struct DataThread<B> {
    reactor: Reactor,
    host: Host<B>,
    queue: ThreadQueue,
    number: usize,
}

impl<B: Backend> DataThread<B> {
    /// The first one, on this thread: it opens the pool, if the process has the blocker.
    ///
    /// # Errors
    /// Why it cannot serve.
    pub(crate) fn first<P: Pool>(
        plan: &ThreadPlan<'_, P>,
        wrap: &impl Fn(P::Backend, &Reactor) -> B,
    ) -> Result<(DataThread<B>, Option<P::Joined>), Error> {
        let reactor = plan.reactor()?;
        let mut joined = None;
        let backend = match plan.hosts(Role::Blocker) {
            true => {
                let purpose = Purpose::Serve {
                    threads: plan.threads(),
                };
                let settings = plan.settings;
                let backend = settings.pool.open(&reactor, purpose, &settings.node)?;
                joined = P::join(&backend);
                Some(wrap(backend, &reactor))
            }
            false => None,
        };
        let first = DataThread::build(plan, reactor, backend, 0)?;
        Ok((first, joined))
    }

    fn build<P: Pool>(
        plan: &ThreadPlan<'_, P>,
        reactor: Reactor,
        backend: Option<B>,
        number: usize,
    ) -> Result<DataThread<B>, Error> {
        let (sender, jobs) = mpsc::channel();
        let queue = ThreadQueue::new(sender, reactor.handle());
        let host = ThreadBuilder::new(plan, &reactor, number).build(&reactor, jobs, backend)?;
        Ok(DataThread {
            reactor,
            host,
            queue,
            number,
        })
    }

    /// Starts the other threads of the process, which end with a stop. The ways to all threads.
    ///
    /// # Errors
    /// Why one of them cannot serve; none runs then.
    pub(crate) fn start_others<'scope, P: Pool + Sync>(
        &self,
        joined: Option<P::Joined>,
        scope: &'scope Scope<'scope, '_>,
        plan: &'scope ThreadPlan<'scope, P>,
        wrap: &'scope (impl Fn(P::Backend, &Reactor) -> B + Sync),
    ) -> Result<DataThreads, Error>
    where
        P::Joined: 'scope,
    {
        let mut queues = vec![self.queue.clone()];
        for number in 1..plan.threads() {
            let started = match joined.clone() {
                Some(joined) => start(scope, plan, wrap, joined, number),
                None => Err(Error::new(
                    ErrorCode::Unsupported,
                    "this kind of pool is served by one data thread: set `data.threads` to 1",
                )),
            };
            match started {
                Ok(queue) => queues.push(queue),
                Err(error) => {
                    queues.iter().for_each(ThreadQueue::end);
                    return Err(error);
                }
            }
        }
        Ok(DataThreads::new(queues))
    }

    pub(crate) fn set_grants(&mut self, grants: Grants) {
        self.host.set_grants(grants);
    }

    /// Serves until it is stopped.
    pub(crate) fn run<P: Pool>(mut self, plan: &ThreadPlan<'_, P>) {
        plan.bind(self.number);
        self.reactor.run(&mut self.host);
    }
}

/// Starts the thread `number`; the way to it, once it can serve.
fn start<'scope, P: Pool + Sync, B: Backend>(
    scope: &'scope Scope<'scope, '_>,
    plan: &'scope ThreadPlan<'scope, P>,
    wrap: &'scope (impl Fn(P::Backend, &Reactor) -> B + Sync),
    joined: P::Joined,
    number: usize,
) -> Result<ThreadQueue, Error>
where
    P::Joined: 'scope,
{
    let (sender, built) = mpsc::channel();
    let thread = Builder::new().name(format!("data-{number}"));
    let serve = move || {
        let build = || {
            let reactor = plan.reactor()?;
            let backend = wrap(P::open_joined(joined, &reactor)?, &reactor);
            DataThread::build(plan, reactor, Some(backend), number)
        };
        match build() {
            Ok(thread) => {
                let _waits = sender.send(Ok(thread.queue.clone()));
                thread.run(plan);
            }
            Err(error) => {
                let _waits = sender.send(Err(error));
            }
        }
    };
    thread
        .spawn_scoped(scope, serve)
        .map_err(|error| Error::of_thread(format_args!("data thread {number}"), &error))?;
    // A thread that panics ends the process.
    built.recv().map_err(|_ended| {
        Error::new(
            ErrorCode::Internal,
            format!("data thread {number} has ended"),
        )
    })?
}

/// Makes channels and peers of a data thread.
struct ThreadBuilder<'a, P> {
    plan: &'a ThreadPlan<'a, P>,
    number: usize,
    events: Rc<RefCell<EventLoop>>,
    attention: Attention,
}

impl<'a, P: Pool> ThreadBuilder<'a, P> {
    fn new(plan: &'a ThreadPlan<'a, P>, reactor: &Reactor, number: usize) -> Self {
        let events = EventLoop::new(reactor.source(), reactor.clock());
        ThreadBuilder {
            plan,
            number,
            events: Rc::new(RefCell::new(events)),
            attention: Attention::default(),
        }
    }

    /// A channel from `client` to `server`, and its other end if that lives on this thread.
    fn channel(&self, client: Role, server: Role) -> Result<(Client, Option<Server>), Error> {
        if !self.plan.hosts(server) {
            return Ok((self.shared(client, server)?, None));
        }
        let requests = self.plan.settings.data.channel_requests as usize;
        let (client, server) = xseg::local::channel(requests, self.arena_len(server))
            .map_err(|error| channel_failed(client, server, &error))?;
        Ok((Client::from(client), Some(Server::from(server))))
    }

    fn arena_len(&self, server: Role) -> usize {
        match server {
            Role::Blocker => (self.plan.settings.data.channel_memory_mib as usize) << 20,
            Role::Mapper | Role::Endpoint => SMALL_ARENA_LEN,
        }
    }

    /// A channel from `client` to a `server` elsewhere.
    fn shared(&self, client: Role, server: Role) -> Result<Client, Error> {
        // On another thread there is but the catalogue.
        let arena_len = match self.number {
            0 => self.arena_len(server),
            _ => SMALL_ARENA_LEN,
        };
        let options = ConnectOptions {
            role: client as u8,
            client_id: client as u64 + 1 + ((self.number as u64) << 8),
            ring_size: self.plan.settings.data.channel_requests as usize,
            arena_len,
            // Object requests may be done twice; a new mapper knows nothing of the sessions of the old one.
            on_server_death: if server == Role::Blocker {
                OnServerDeath::Replay
            } else {
                OnServerDeath::Report
            },
            allowed_uids: Vec::new(),
        };
        let failed = |error| channel_failed(client, server, &error);
        let port = SharedClient::connect(&self.plan.socket(server), options).map_err(failed)?;
        let mut events = self.events.borrow_mut();
        for fd in port.fds() {
            events.watch(fd).map_err(failed)?;
        }
        Ok(Client::from(port))
    }

    /// Where clients of `role` connect, if any live elsewhere.
    fn acceptor<C: Copy>(&self, role: Role) -> Result<Option<Acceptor<C>>, Error> {
        let all_here = Role::ALL.iter().all(|role| self.plan.hosts(*role));
        // Those who have `role` for their server.
        let clients: &[Role] = match (role, all_here) {
            (Role::Blocker, false) => &[Role::Mapper, Role::Endpoint],
            (Role::Blocker, true) if self.plan.threads() > 1 && self.number == 0 => &[Role::Mapper],
            (Role::Mapper, false) => &[Role::Endpoint],
            (_, true) => return Ok(None),
            (Role::Endpoint, false) => &[],
        };
        let mut admission = Admission::own(clients.iter().map(|role| *role as u8));
        if let Some(user) = self.plan.settings.endpoint {
            admission = admission.and(user.uid, [Role::Endpoint as u8]);
        }
        let events = &mut self.events.borrow_mut();
        Acceptor::listen(&self.plan.socket(role), &admission, events).map(Some)
    }

    fn mapper(&self) -> Result<(MapperHost, Option<Server>), Error> {
        let settings = self.plan.settings;
        let (port, server) = self.channel(Role::Mapper, Role::Blocker)?;
        let journals = FileJournals::new(settings.journals.clone())?;
        let config = MapperConfig {
            owner: self.plan.incarnations[self.number],
            node: owner::host_identity().name,
            sharing: self.plan.sharing(self.number),
            pending_max: journal::RECORDS,
            ..MapperConfig::default()
        };
        let mut mapper = Mapper::new(config, Box::new(journals));
        mapper.start();
        let mut mapper = MapperHost::new(mapper, port, &self.attention, settings.endpoint);
        if self.number > 0 {
            mapper = mapper.with_catalogue_at(self.shared(Role::Mapper, Role::Blocker)?);
        }
        Ok((mapper, server))
    }

    fn build<B: Backend>(
        self,
        reactor: &Reactor,
        jobs: mpsc::Receiver<Job>,
        backend: Option<B>,
    ) -> Result<Host<B>, Error> {
        let mut host = Host {
            events: Rc::clone(&self.events),
            attention: self.attention.clone(),
            jobs,
            endpoint: None,
            mapper: None,
            blocker: None,
            stopping: None,
            left: false,
            failed_elsewhere: 0,
            handle: reactor.handle(),
        };
        if let Some(backend) = backend {
            host.blocker = Some((
                BlockerHost::new(backend, &self.attention, self.plan.settings.endpoint),
                self.acceptor(Role::Blocker)?,
            ));
        }
        if self.plan.hosts(Role::Mapper) {
            let (mapper, server) = self.mapper()?;
            if let (Some(server), Some((blocker, _))) = (server, &mut host.blocker) {
                blocker.add(server, Caller::within(Role::Mapper));
            }
            host.mapper = Some((mapper, self.acceptor(Role::Mapper)?));
        }
        if self.plan.hosts(Role::Endpoint) {
            let (to_mapper, mapper_end) = self.channel(Role::Endpoint, Role::Mapper)?;
            let (to_blocker, blocker_end) = self.channel(Role::Endpoint, Role::Blocker)?;
            let volume = Caller::within(Role::Endpoint);
            if let (Some(server), Some((mapper, _))) = (mapper_end, &mut host.mapper) {
                mapper.add(server, volume);
            }
            if let (Some(server), Some((blocker, _))) = (blocker_end, &mut host.blocker) {
                blocker.add(server, volume);
            }
            host.endpoint = Some(EndpointHost::new(
                to_mapper,
                to_blocker,
                &self.events,
                &self.attention,
            )?);
        }
        // Connections are made from here on; the alarm goes on from one to the next.
        host.service();
        host.events.borrow_mut().alarm(Duration::ZERO);
        Ok(host)
    }
}

fn channel_failed(client: Role, server: Role, error: &std::io::Error) -> Error {
    let (client, server) = (client.name(), server.name());
    Error::new(
        ErrorCode::Io,
        format!("channel {client} to {server}: {error}"),
    )
}
