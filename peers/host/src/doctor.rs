//! A check of a pool that nobody serves: blocker and mapper in this thread, for one question.
//!
//! Invariants
//! - The pool's lock is taken first: nobody serves the pool meanwhile.
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

use crate::acceptor::{Caller, Channels};
use crate::blocker::BlockerHost;
use crate::containment;
use crate::control::{Answer, Answered};
use crate::mapper::MapperHost;
use crate::pool::Purpose;
use crate::port::Attention;
use crate::{PeerSettings, pool};

/// Requests in flight between mapper and blocker.
const REQUESTS: usize = 64;
/// Bytes of their channel: a log of 4 MiB is read in parts.
const ARENA_LEN: usize = 16 << 20;

/// Checks the pool of `settings`, which nobody serves. With `repair`, what provably nobody needs is deleted.
///
/// The ring, and so the pool's files, are closed when this returns, as far as this process can: the kernel closes them some
/// time later.
///
/// # Errors
/// [`ErrorCode::InUse`] if the pool is served, or why the pool cannot be opened. Damage is not an error: the report has it.
pub fn check_offline(settings: &PeerSettings, repair: bool) -> Result<Report, Error> {
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
    let mut mapper = MapperHost::new(mapper, Client::from(client), &Attention::default(), None);
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
            pool::add_foreign(&settings.pool.directory, &mut report);
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
    mapper: MapperHost,
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
