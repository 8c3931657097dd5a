//! Hosts peers in a process: the shells around mapper, blocker and endpoint, on one data thread or several.
//!
//! * [`run`]: hosts a set of roles with the pool's own backend; [`run_with`]: with another backend around it.
//! * [`PeerSettings`]: the settings of the process; [`Pool`]: the kind of pool that it serves.
//! * [`check_offline`]: a check of a pool that nobody serves.
//!
//! | module | subject |
//! |---|---|
//! | `data_thread` | a data thread: its reactor, channels and peers |
//! | `threads` | assigns volumes to data threads |
//! | `host` | all peers of a data thread as one, and the loop that polls them |
//! | `endpoint`, `mapper`, `blocker` | the shell of each role |
//! | `journal` | presence journals in mapped files |
//! | `acceptor`, `port`, `channel_status` | shared channels: their clients, successors of clients, figures |
//! | `control`, `attached` | requests of the daemon, on threads of their own |
//! | `drivers` | the driver of each kind of endpoint |
//! | `doctor` | a check of a pool that nobody serves |
//! | `descriptors` | the number of attached volumes for which the process has file descriptors |
//! | `owner` | the identity of this host and of its mapper |
//! | `identity` | the user that the process runs as |
//! | `confine`, [`sandbox`] | what a confined process keeps; how it is confined |
//! | `last_words` | reports why the process ends |
//! | `containment` | which faults end the process |
//! | `event_loop`, `readiness`, `pool` | what wakes a thread; which drivers it polls; how its backend is opened |
//!
//! One design decision: a process hosts any set of roles with the same code. Roles in one process are connected by local channels, others
//! by shared ones; above the ports there is no difference.
//!
//! ```no_run
//! use archipelago_host::{PeerSettings, Pool, die_with, run};
//! use archipelago_protocol::control::Role;
//!
//! fn data_process<P: Pool + Sync>(parent: i32, settings: PeerSettings<P>) -> Result<(), archipelago_protocol::Error> {
//!     die_with(parent)?;
//!     run(&[Role::Blocker], settings)
//! }
//! ```
//!
//! This crate reads no configuration file, contains no volume's name and starts no process.

#![forbid(unsafe_code)]

mod acceptor;
mod attached;
mod blocker;
mod channel_status;
mod confine;
mod containment;
mod control;
mod data_thread;
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
mod threads;

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use archipelago_blocker::Backend;
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::Reactor;

pub use archipelago_mapper::Sharing;
use attached::AttachedEndpoints;
pub use confine::confine;
pub use containment::end_with;
use data_thread::{DataThread, ThreadPlan};
pub use doctor::check_offline;
pub use identity::Identity;
pub use journal::JOURNAL_LEN_BYTES;
pub use owner::{HostIdentity, host_identity};
pub use pool::{Pool, Purpose};
pub use settings::{DataPathSettings, PeerSettings, QUEUES_MAX};

/// Timeout for sending the answer to a stop.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Has the kernel kill this process when its parent dies.
///
/// # Errors
/// [`ErrorCode::Unavailable`] if the parent has ended already: nobody would stop this process.
pub fn die_with(parent: i32) -> Result<(), Error> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
        .map_err(|errno| Error::new(ErrorCode::Internal, format!("PR_SET_PDEATHSIG: {errno}")))?;
    // Checked after the call above: a parent that died before it is noticed here; one that dies later makes the kernel kill this process.
    if nix::unistd::getppid().as_raw() != parent {
        return Err(Error::new(
            ErrorCode::Unavailable,
            "the parent process ended while this process started",
        ));
    }
    Ok(())
}

/// Hosts `roles` until asked to stop. The standard input is the control socket, on which the daemon listens.
///
/// # Errors
/// Why they cannot be served.
pub fn run<P: Pool + Sync>(roles: &[Role], settings: PeerSettings<P>) -> Result<(), Error> {
    run_with(roles, settings, |backend, _reactor| backend)
}

/// As [`run`], with another backend around the pool's own, of each data thread: tests inject delays and failures in this way.
///
/// # Errors
/// As [`run`].
pub fn run_with<P: Pool + Sync, B: Backend>(
    roles: &[Role],
    settings: PeerSettings<P>,
    wrap: impl Fn(P::Backend, &Reactor) -> B + Sync,
) -> Result<(), Error> {
    let failed =
        |what: &str, error: std::io::Error| Error::new(ErrorCode::Io, format!("{what}: {error}"));
    let grants = match (settings.endpoint, roles) {
        (Some(user), [Role::Endpoint]) => {
            user.take_on()?;
            user.check_reach(&settings.volumes)?;
            None
        }
        // Read now: the file cannot be read after `confine`.
        _ => settings.read_grants()?,
    };
    confine(roles, &settings)?;
    let listener = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed("control socket", error))?;
    containment::contain()?;
    let plan = ThreadPlan::new(roles, &settings)?;
    let (mut first, joined) = DataThread::first(&plan, &wrap)?;
    if let Some(grants) = grants {
        first.set_grants(grants);
    }
    std::thread::scope(|scope| {
        let threads = first.start_others(joined, scope, &plan, &wrap)?;
        let endpoints = AttachedEndpoints::new(threads.clone(), &settings);
        let serving = control::serve(
            UnixListener::from(listener),
            move |request, descriptor, answer| {
                endpoints.deliver(request, descriptor, answer);
            },
        );
        let answered = serving
            .inspect_err(|_error| threads.end())
            .map_err(|error| Error::of_thread("control socket", &error))?;
        first.run(&plan);
        // The process ends, whether the answer was sent in time or not.
        let _answered = answered.recv_timeout(ANSWER_TIMEOUT);
        Ok(())
    })
}
