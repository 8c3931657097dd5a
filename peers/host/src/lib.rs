//! Hosts peers in a process: the shells around mapper, blocker and endpoint, on one thread.
//!
//! * [`run`]: hosts a set of roles with the pool's own backend; [`run_with`]: with another backend around it.
//! * [`PeerSettings`]: what the process needs to know; [`Pool`]: the kind of pool that it serves.
//! * [`check_offline`]: a check of a pool that nobody serves.
//!
//! | module | subject |
//! |---|---|
//! | `host` | all peers of the process as one, and the loop that polls them |
//! | `endpoint`, `mapper`, `blocker` | the shell of each role |
//! | `journal` | presence journals in mapped files |
//! | `acceptor`, `port`, `channel_status` | shared channels: who connects, who succeeds whom, their figures |
//! | `control`, `attached` | requests of the daemon, on threads of their own |
//! | `drivers` | which driver serves a kind of endpoint |
//! | `doctor` | a check of a pool that nobody serves |
//! | `descriptors` | how many attached volumes the process has file descriptors for |
//! | `owner` | what this host and its mapper are called |
//! | `identity` | the user that the process runs as |
//! | `confine`, [`sandbox`] | what the process may still do; how a process is confined |
//! | `last_words` | how the process reports why it ends |
//! | `containment` | what a panic ends, and what a hostile front end does not |
//! | `event_loop`, `readiness`, `pool` | what a thread sleeps on; which drivers it polls; how its backend is opened |
//!
//! One design decision: a process hosts any set of roles with the same code. Roles that live together are joined by local
//! channels, the others by shared ones; nothing above the ports sees a difference.
//!
//! ```no_run
//! use archipelago_host::{PeerSettings, Pool, die_with, run};
//! use archipelago_protocol::control::Role;
//!
//! fn data_process<P: Pool>(parent: i32, settings: PeerSettings<P>) -> Result<(), archipelago_protocol::Error> {
//!     die_with(parent)?;
//!     run(&[Role::Blocker], settings)
//! }
//! ```
//!
//! This crate reads no configuration file, knows no volume's name and starts no process.

#![forbid(unsafe_code)]

mod acceptor;
mod attached;
mod blocker;
mod channel_status;
mod confine;
mod containment;
mod control;
mod descriptors;
mod doctor;
mod drivers;
mod endpoint;
mod event_loop;
mod host;
mod identity;
mod journal;
pub mod last_words;
mod mapper;
mod owner;
mod pool;
mod port;
mod readiness;
pub mod sandbox;
mod settings;

use std::cell::RefCell;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_mapper::{Mapper, MapperConfig};
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Config, Reactor, SystemClock};
use xseg::shared::{Admission, ConnectOptions, OnServerDeath, SharedClient};
use xseg::{Client, Server};

use acceptor::{Acceptor, Caller, Channels};
pub use archipelago_mapper::Sharing;
use attached::AttachedEndpoints;
use blocker::BlockerHost;
pub use confine::confine;
pub use containment::end_with;
pub use doctor::check_offline;
use endpoint::EndpointHost;
use event_loop::EventLoop;
use host::Host;
pub use identity::Identity;
use journal::FileJournals;
pub use journal::JOURNAL_LEN_BYTES;
use mapper::MapperHost;
pub use owner::{HostIdentity, host_identity};
pub use pool::{Pool, Purpose};
use port::Attention;
pub use settings::{DataPathSettings, PeerSettings, QUEUES_MAX};

/// How long a process waits after a stop for its answer to be sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of the arena of a channel to the mapper: what small flushes of 15 volumes carry at a time. A flush that
/// finds no room is an ordinary one.
const MAPPER_ARENA_LEN: usize = 1 << 20;

/// Has the kernel kill this process when its parent dies.
///
/// # Errors
/// [`ErrorCode::Unavailable`] if the parent is gone already: nobody would stop us.
pub fn die_with(parent: i32) -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|errno| Error::new(ErrorCode::Internal, format!("PR_SET_PDEATHSIG: {errno}")))?;
    // Asked after the call above: a parent that died before it is noticed here, one that dies later kills us.
    if nix::unistd::getppid().as_raw() != parent {
        return Err(Error::new(
            ErrorCode::Unavailable,
            "the parent process ended while this process started",
        ));
    }
    Ok(())
}

/// Hosts `roles` until asked to stop. The standard input is the control socket, which the daemon listens on.
///
/// # Errors
/// Why they cannot be served.
pub fn run<P: Pool>(roles: &[Role], settings: PeerSettings<P>) -> Result<(), Error> {
    run_with(roles, settings, |backend, _reactor| backend)
}

/// The same with another backend around the pool's own: how tests delay and fail.
///
/// # Errors
/// As [`run`].
pub fn run_with<P: Pool, B: Backend>(
    roles: &[Role],
    settings: PeerSettings<P>,
    wrap: impl FnOnce(P::Backend, &Reactor) -> B,
) -> Result<(), Error> {
    let failed =
        |what: &str, error: std::io::Error| Error::new(ErrorCode::Io, format!("{what}: {error}"));
    let grants = match (settings.endpoint, roles) {
        (Some(user), [Role::Endpoint]) => {
            user.take_on()?;
            user.check_reach(&settings.volumes)?;
            None
        }
        // Out of reach afterwards.
        _ => settings.read_grants()?,
    };
    confine(roles, &settings)?;
    let listener = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed("control socket", error))?;
    let config = Config {
        poll: Duration::from_micros(u64::from(settings.data.poll_us)),
        submit_chunk: settings.data.submission_chunk as usize,
        ..Config::default()
    };
    containment::contain()?;
    let mut reactor = Reactor::new(config, Arc::new(SystemClock))
        .map_err(|failure| containment::ring_failed(&failure))?;
    let (sender, jobs) = mpsc::channel();
    let endpoints = AttachedEndpoints::new(sender, reactor.handle(), &settings);
    let mut host = build(roles, &settings, &reactor, jobs, wrap)?;
    if let Some(grants) = grants {
        host.set_grants(grants);
    }
    let answered = control::serve(
        UnixListener::from(listener),
        move |request, descriptor, answer| {
            endpoints.deliver(request, descriptor, answer);
        },
    )
    .map_err(|error| Error::of_thread("control socket", &error))?;
    reactor.run(&mut host);
    drop(host);
    // Whether it was sent in time or not: the process is done.
    let _answered = answered.recv_timeout(ANSWER_TIMEOUT);
    Ok(())
}

/// Makes channels and peers.
struct Builder<'a, P> {
    roles: &'a [Role],
    settings: &'a PeerSettings<P>,
    events: Rc<RefCell<EventLoop>>,
    attention: Attention,
}

impl<P> Builder<'_, P> {
    fn hosts(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    fn socket(&self, role: Role) -> PathBuf {
        self.settings
            .run
            .join(format!("segment-{}.sock", role.name()))
    }

    /// A channel from `client` to `server`, and its other end if that lives here.
    fn channel(&self, client: Role, server: Role) -> Result<(Client, Option<Server>), Error> {
        let failed = |error: std::io::Error| {
            Error::new(
                ErrorCode::Io,
                format!("channel {} to {}: {error}", client.name(), server.name()),
            )
        };
        let requests = self.settings.data.channel_requests as usize;
        let arena_len = if server == Role::Blocker {
            (self.settings.data.channel_memory_mib as usize) << 20
        } else {
            MAPPER_ARENA_LEN
        };
        if self.hosts(server) {
            let (client, server) = xseg::local::channel(requests, arena_len).map_err(failed)?;
            return Ok((Client::from(client), Some(Server::from(server))));
        }
        let options = ConnectOptions {
            role: client as u8,
            client_id: client as u64 + 1,
            ring_size: requests,
            arena_len,
            // Object requests may be done twice; a new mapper knows nothing of the sessions of the old one.
            on_server_death: if server == Role::Blocker {
                OnServerDeath::Replay
            } else {
                OnServerDeath::Report
            },
            allowed_uids: Vec::new(),
        };
        let port = SharedClient::connect(&self.socket(server), options).map_err(failed)?;
        let mut events = self.events.borrow_mut();
        for fd in port.fds() {
            events.watch(fd).map_err(failed)?;
        }
        Ok((Client::from(port), None))
    }

    /// Where clients of `role` connect, if any live elsewhere.
    fn acceptor<C: Copy>(&self, role: Role) -> Result<Option<Acceptor<C>>, Error> {
        let all_here = Role::ALL.iter().all(|role| self.hosts(*role));
        if all_here {
            return Ok(None);
        }
        // Those who have `role` for their server.
        let clients: &[Role] = match role {
            Role::Blocker => &[Role::Mapper, Role::Endpoint],
            Role::Mapper => &[Role::Endpoint],
            Role::Endpoint => &[],
        };
        let mut admission = Admission::own(clients.iter().map(|role| *role as u8));
        if let Some(user) = self.settings.endpoint {
            admission = admission.and(user.uid, [Role::Endpoint as u8]);
        }
        let events = &mut self.events.borrow_mut();
        Acceptor::listen(&self.socket(role), &admission, events).map(Some)
    }
}

fn build<P: Pool, B: Backend>(
    roles: &[Role],
    settings: &PeerSettings<P>,
    reactor: &Reactor,
    jobs: mpsc::Receiver<host::Job>,
    wrap: impl FnOnce(P::Backend, &Reactor) -> B,
) -> Result<Host<B>, Error> {
    let events = EventLoop::new(reactor.source(), reactor.clock());
    let (events, attention) = (Rc::new(RefCell::new(events)), Attention::default());
    let builder = Builder {
        roles,
        settings,
        events: Rc::clone(&events),
        attention: attention.clone(),
    };
    let mut host = Host {
        events,
        attention,
        jobs,
        endpoint: None,
        mapper: None,
        blocker: None,
        stopping: None,
        left: false,
        handle: reactor.handle(),
    };
    if builder.hosts(Role::Blocker) {
        let backend = wrap(
            settings
                .pool
                .open(reactor, Purpose::Serve, &settings.node)?,
            reactor,
        );
        host.blocker = Some((
            BlockerHost::new(backend, &builder.attention, settings.endpoint),
            builder.acceptor(Role::Blocker)?,
        ));
    }
    if builder.hosts(Role::Mapper) {
        let (port, server) = builder.channel(Role::Mapper, Role::Blocker)?;
        if let (Some(server), Some((blocker, _))) = (server, &mut host.blocker) {
            blocker.add(server, Caller::within(Role::Mapper));
        }
        let journals = FileJournals::new(settings.journals.clone())?;
        let config = MapperConfig {
            owner: owner::fresh_incarnation()?,
            node: owner::host_identity().name,
            sharing: settings.pool.sharing(),
            pending_max: journal::RECORDS,
            ..MapperConfig::default()
        };
        let mut mapper = Mapper::new(config, Box::new(journals));
        mapper.start();
        host.mapper = Some((
            MapperHost::new(mapper, port, &builder.attention, settings.endpoint),
            builder.acceptor(Role::Mapper)?,
        ));
    }
    if builder.hosts(Role::Endpoint) {
        let (to_mapper, mapper_end) = builder.channel(Role::Endpoint, Role::Mapper)?;
        let (to_blocker, blocker_end) = builder.channel(Role::Endpoint, Role::Blocker)?;
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
            &builder.events,
            &builder.attention,
        )?);
    }
    // Connections are made from here on; the alarm goes on from one to the next.
    host.service();
    host.events.borrow_mut().alarm(Duration::ZERO);
    Ok(host)
}
