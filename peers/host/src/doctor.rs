//! Checks a pool that nobody serves: runs blocker and mapper in this thread, for one request.
//!
//! Invariants
//! - The pool's lock is taken first: no other process serves the pool meanwhile.
//! - The mapper is never started: it takes no ownership of the catalogue, removes nothing, and answers only the check.

use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::{Backend, BlockerPeer};
use archipelago_mapper::journal::NoJournals;
use archipelago_mapper::{Mapper, MapperConfig, MapperPeer};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::check::Report;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_runtime::{Config, Handle, Peer, Progress, Reactor, SystemClock};
use xseg::{Client, Server};

use crate::pool::{Pool, Purpose};
use crate::{PeerSettings, containment};

/// Requests in flight between mapper and blocker.
const REQUESTS: usize = 64;
/// Bytes of their channel: a log of 4 MiB is read in parts.
const ARENA_LEN: usize = 16 << 20;

/// Checks the pool of `settings`, which nobody serves. With `repair`, objects that are provably not needed are deleted.
///
/// The ring, and so the pool's files, are closed when this returns, as far as this process can: the kernel closes them some time later.
///
/// # Errors
/// [`ErrorCode::InUse`] if the pool is served, or why the pool cannot be opened. Damage is not an error: it is in the report.
pub fn check_offline<P: Pool>(settings: &PeerSettings<P>, repair: bool) -> Result<Report, Error> {
    let failed = |error: std::io::Error| Error::new(ErrorCode::Io, format!("check: {error}"));
    let config = Config {
        poll: Duration::ZERO,
        ..Config::default()
    };
    let mut reactor = Reactor::new(config, Arc::new(SystemClock))
        .map_err(|failure| containment::ring_failed(&failure))?;
    let mut blocker = BlockerPeer::new(settings.pool.open(
        &reactor,
        Purpose::Check,
        &settings.node,
    )?);
    let (client, server) = xseg::local::channel(REQUESTS, ARENA_LEN).map_err(failed)?;
    blocker.add_channel(Server::from(server), archipelago_blocker::Rights::All);
    let mapper = Mapper::new(MapperConfig::default(), Box::new(NoJournals));
    let mut mapper = MapperPeer::new(mapper, Client::from(client));
    mapper.ask(CatalogueRequest::Check { repair });
    let mut doctor = Doctor {
        mapper,
        blocker,
        reply: None,
        handle: reactor.handle(),
    };
    reactor.run(&mut doctor);
    match doctor.reply.take() {
        Some(CatalogueReply::Report(mut report)) => {
            settings.pool.look_for_foreign(&mut report);
            Ok(report)
        }
        Some(CatalogueReply::Failed(error)) => Err(error),
        other => {
            tracing::error!("the mapper answered {other:?} to a check");
            let message = "the mapper's answer to a check is not understood";
            Err(Error::new(ErrorCode::Internal, message))
        }
    }
}

/// Blocker and mapper, until the check is answered.
struct Doctor<B> {
    mapper: MapperPeer<Server, Client>,
    blocker: BlockerPeer<B, Server>,
    reply: Option<CatalogueReply>,
    handle: Handle,
}

impl<B: Backend> Peer for Doctor<B> {
    fn name(&self) -> &str {
        "doctor"
    }

    fn poll(&mut self) -> Progress {
        let progress = self.mapper.poll().or(self.blocker.poll());
        if let Some((_tag, reply)) = self.mapper.next_reply() {
            self.reply = Some(reply);
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
