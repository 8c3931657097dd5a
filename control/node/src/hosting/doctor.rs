//! A check of a pool that nobody serves: blocker and mapper in this thread, for one question.
//!
//! Invariants
//! - The node's lock is taken first, then the pool's: no daemon starts meanwhile, and no other node's serves the pool.
//! - The pool is closed when the check returns, so that its file system can be unmounted.
//! - The mapper is never started: it takes no ownership of the catalogue, removes nothing, and answers only the check.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_mapper::journal::NoJournals;
use archipelago_mapper::{Mapper, MapperConfig};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::check::Report;
use archipelago_protocol::control::{ControlReply, Role};
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Config, Handle, Panicked, Peer, Progress, Reactor, SystemClock};
use xseg::{Client, Server};

use super::acceptor::{Caller, Channels};
use super::blocker::BlockerHost;
use super::containment;
use super::control::{Answer, Answered};
use super::mapper::MapperPeer;
use super::pool::Purpose;
use super::port::Attention;
use super::{PeerSettings, pool};
use crate::config;
use crate::daemon::{NodeLock, PoolUser, RELEASE_TIMEOUT};
use crate::layout::Layout;

/// Requests in flight between mapper and blocker.
const REQUESTS: usize = 64;
/// Bytes of their channel: a log of 4 MiB is read in parts.
const ARENA_LEN: usize = 16 << 20;

/// Checks the pool of the node at `layout`, which no daemon serves; with `repair` it deletes what provably nobody needs.
///
/// # Errors
/// [`ErrorCode::InUse`] if the node or the pool is served, or why the pool cannot be opened. Damage is no error: it stands
/// in the report.
pub fn check_offline(
    layout: &Layout,
    config: &config::Config,
    repair: bool,
) -> Result<Report, Error> {
    let _lock = NodeLock::take(layout)?;
    let settings = PeerSettings::new(layout, config, None);
    let checked = check(&settings, repair);
    // The ring is gone, but the kernel closes its files some time later: whoever asked may want to unmount the pool.
    let config::Pool::File { directory, .. } = &settings.pool;
    if let Err(left) = PoolUser::wait_free(directory, RELEASE_TIMEOUT) {
        tracing::warn!("{left}");
    }
    checked
}

/// The check itself; the ring, and so the pool's files, are closed when this returns, as far as this process can.
fn check(settings: &PeerSettings, repair: bool) -> Result<Report, Error> {
    let failed = |error: std::io::Error| Error::new(ErrorCode::Io, format!("check: {error}"));
    let told = Rc::new(RefCell::new(None));
    let reactor_config = Config {
        name: "doctor".to_owned(),
        poll: Duration::ZERO,
        ..Config::default()
    };
    let hook = Box::new(|panicked: &Panicked| {
        tracing::error!("`{}` panicked: {}", panicked.name, panicked.message);
        std::process::abort();
    });
    let mut reactor = Reactor::new(reactor_config, Arc::new(SystemClock), hook)
        .map_err(|failure| containment::ring_failed(&failure))?;
    let mut context = reactor.context();
    let mut blocker = BlockerHost::new(
        pool::open(settings, &context, Purpose::Check)?,
        &Attention::default(),
        None,
    );
    let (client, server) = xseg::local::channel(REQUESTS, ARENA_LEN).map_err(failed)?;
    blocker.add(Server::from(server), Caller::within(Role::Mapper));
    let mapper = Mapper::new(MapperConfig::default(), Box::new(NoJournals));
    let mut mapper = MapperPeer::new(mapper, Client::from(client), &Attention::default(), None);
    let (answer, answered) = Answer::pair();
    mapper.ask(CatalogueRequest::Check { repair }, answer);
    let reply = Rc::clone(&told);
    context.add_peer(Box::new(Doctor {
        mapper,
        blocker,
        answered,
        reply,
        handle: context.handle(),
    }));
    reactor.run();
    let reply = told.borrow_mut().take();
    match reply {
        Some(ControlReply::Catalogue(CatalogueReply::Report(mut report))) => {
            pool::add_foreign(&settings.pool, &mut report);
            Ok(report)
        }
        Some(ControlReply::Catalogue(CatalogueReply::Failed(error))) => Err(error),
        other => {
            tracing::error!("the mapper answered {other:?} to a check");
            let message = "the mapper's answer to a check is not understood";
            Err(Error::new(ErrorCode::Internal, message))
        }
    }
}

/// Mapper and blocker until the check is answered.
struct Doctor<B> {
    mapper: MapperPeer,
    blocker: BlockerHost<B>,
    answered: Answered,
    reply: Rc<RefCell<Option<ControlReply>>>,
    handle: Handle,
}

impl<B: archipelago_blocker::Backend> Peer for Doctor<B> {
    fn name(&self) -> &str {
        "doctor"
    }

    fn poll(&mut self) -> Progress {
        let progress = self.mapper.poll().or(self.blocker.poll());
        if let Some(reply) = self.answered.take() {
            *self.reply.borrow_mut() = Some(reply);
            self.handle.stop();
        }
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        let quiet = self.mapper.prepare_sleep();
        self.blocker.prepare_sleep() && quiet
    }

    fn wake(&mut self) {
        self.mapper.wake();
        self.blocker.wake();
    }
}
