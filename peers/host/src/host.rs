//! The peers that a data thread hosts, as one peer of its reactor.
//!
//! Requests of control arrive as [`Job`]s from other threads and are answered from here, so that only one thread touches the peers.
//!
//! Stop: the control thread has ended bulk copies and detached endpoints. When all volumes are closed and nothing is in flight any more,
//! the stop is answered and the reactor ends.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use archipelago_blocker::{Backend, ChannelId};
use archipelago_mapper::ClientId;
use archipelago_protocol::control::{ControlReply, ControlRequest, ProcessStatus};
use archipelago_protocol::{Error, ErrorCode, Grants};
use archipelago_runtime::{Handle, Peer, Progress};
use archipelago_volume::SPACE_INTERVAL;

use crate::acceptor::Acceptor;
use crate::blocker::BlockerHost;
use crate::control::Answer;
use crate::endpoint::{DriverSeed, EndpointHost};
use crate::event_loop::EventLoop;
use crate::mapper::MapperHost;
use crate::port::Attention;

/// How often the thread services its connections without a signal.
const TICK: Duration = Duration::from_secs(1);
/// The same while a server is not connected or a client waits.
const TICK_UNCONNECTED: Duration = Duration::from_millis(10);

/// A request of a control thread to the data thread.
#[derive(Debug)]
pub(crate) enum Job {
    /// A request that concerns peers.
    Request(ControlRequest, Answer),
    /// An endpoint to serve.
    Serve(DriverSeed, Answer),
}

/// The peers of a process. Those in other processes are `None`.
pub(crate) struct Host<B> {
    pub(crate) events: Rc<RefCell<EventLoop>>,
    pub(crate) attention: Attention,
    pub(crate) jobs: Receiver<Job>,
    pub(crate) endpoint: Option<EndpointHost>,
    pub(crate) mapper: Option<(MapperHost, Option<Acceptor<ClientId>>)>,
    pub(crate) blocker: Option<(BlockerHost<B>, Option<Acceptor<ChannelId>>)>,
    pub(crate) stopping: Option<Answer>,
    /// The mapper has begun to leave the pool.
    pub(crate) left: bool,
    /// Failed syncs of the pool, of other data threads, that the mapper knows.
    pub(crate) failed_elsewhere: u64,
    pub(crate) handle: Handle,
}

impl<B: Backend> Host<B> {
    fn unsupported(answer: Answer) {
        answer.fail(Error::new(
            ErrorCode::Unsupported,
            "another process has that role",
        ));
    }

    fn take_jobs(&mut self) -> Progress {
        let mut progress = Progress::Idle;
        loop {
            match self.jobs.try_recv() {
                Ok(Job::Request(request, answer)) => self.request(request, answer),
                Ok(Job::Serve(seed, answer)) => match &mut self.endpoint {
                    Some(endpoint) => answer.result(endpoint.add(seed)),
                    None => Self::unsupported(answer),
                },
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return progress,
            }
            progress = Progress::Busy;
        }
    }

    fn request(&mut self, request: ControlRequest, answer: Answer) {
        match (request, &mut self.endpoint, &mut self.mapper) {
            (ControlRequest::Catalogue(request), _, Some((mapper, _))) => {
                mapper.ask(request, answer);
            }
            (ControlRequest::Damage { lineage }, _, Some((mapper, _))) => {
                answer.result(mapper.damage(lineage));
            }
            (ControlRequest::Snapshot { lineage, token }, Some(endpoint), _) => {
                endpoint.snapshot(lineage, token, answer);
            }
            (ControlRequest::Resized { lineage, size }, Some(endpoint), _) => {
                endpoint.resized(lineage, size);
                answer.send(ControlReply::Done);
            }
            (ControlRequest::OnFull { lineage, policy }, Some(endpoint), _) => {
                endpoint.set_on_full(lineage, policy);
                answer.send(ControlReply::Done);
            }
            (
                ControlRequest::OpenBulk {
                    lineage,
                    write,
                    on_full,
                    socket,
                },
                Some(endpoint),
                _,
            ) => {
                if self.stopping.is_some() {
                    // The client of an interrupted open opens again at once, and the process would never be idle.
                    let error = Error::new(ErrorCode::Unavailable, "the node is stopping");
                    return answer.fail(error);
                }
                endpoint.open_bulk(lineage, write, on_full, &socket, answer);
            }
            (ControlRequest::Grants { grants }, _, _) => {
                self.set_grants(grants);
                answer.send(ControlReply::Done);
            }
            (ControlRequest::Status, _, _) => answer.send(ControlReply::Status(self.status())),
            (ControlRequest::Stop, _, _) => {
                if let Some(endpoint) = &mut self.endpoint {
                    endpoint.give_up();
                }
                if let Some((mapper, _)) = &mut self.mapper {
                    mapper.stop_background();
                }
                if let Some(earlier) = self.stopping.replace(answer) {
                    earlier.send(ControlReply::Done);
                }
            }
            (_, _, _) => Self::unsupported(answer),
        }
    }

    /// Sets what an endpoint with a user of its own may open.
    pub(crate) fn set_grants(&mut self, grants: Grants) {
        if let Some((mapper, _)) = &mut self.mapper {
            mapper.set_grants(grants.clone());
        }
        if let Some((blocker, _)) = &mut self.blocker {
            blocker.set_grants(grants);
        }
    }

    fn status(&self) -> ProcessStatus {
        let mut status = ProcessStatus {
            pid: std::process::id(),
            ..ProcessStatus::default()
        };
        if let Some(endpoint) = &self.endpoint {
            (status.peers, status.channels) = endpoint.status();
            status.waits = endpoint.waits();
            status.channels_to = endpoint.channels_to();
        }
        if let Some((mapper, _)) = &self.mapper {
            status.peers.push(mapper.status());
            status.journals = mapper.journals();
            status.channels.extend(mapper.channels());
        }
        if let Some((blocker, _)) = &self.blocker {
            status.peers.push(blocker.status());
            status.pool = blocker.pool_report();
            status.waits.extend(blocker.waits());
        }
        status
    }

    pub(crate) fn service(&mut self) {
        self.attention.call();
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.service();
        }
        if let Some((mapper, acceptor)) = &mut self.mapper {
            mapper.service();
            if let Some(acceptor) = acceptor {
                acceptor.service(mapper, &mut self.events.borrow_mut());
            }
        }
        if let Some((blocker, acceptor)) = &mut self.blocker {
            blocker.look(self.events.borrow().now());
            if let Some(acceptor) = acceptor {
                acceptor.service(blocker, &mut self.events.borrow_mut());
            }
        }
    }

    /// Whether some connection is not established yet.
    fn is_unconnected(&self) -> bool {
        let endpoint = self
            .endpoint
            .as_ref()
            .is_some_and(|endpoint| !endpoint.is_connected());
        let mapper = self.mapper.as_ref().is_some_and(|(mapper, acceptor)| {
            !mapper.is_connected() || acceptor.as_ref().is_some_and(Acceptor::is_waiting)
        });
        let blocker = self
            .blocker
            .as_ref()
            .is_some_and(|(_, acceptor)| acceptor.as_ref().is_some_and(Acceptor::is_waiting));
        endpoint || mapper || blocker
    }

    fn waits_for_space(&self) -> bool {
        let endpoint = self.endpoint.as_ref();
        endpoint.is_some_and(EndpointHost::waits_for_space)
    }

    /// Reports failed syncs of the pool, of other data threads, to the mapper, before any peer of this turn relies on a sync.
    fn look_for_failed_syncs(&mut self) {
        if let (Some((mapper, _)), Some((blocker, _))) = (&mut self.mapper, &self.blocker) {
            let failed = blocker.failed_pool_syncs_elsewhere();
            if std::mem::replace(&mut self.failed_elsewhere, failed) != failed {
                mapper.pool_sync_failed();
            }
        }
    }

    fn settle_stop(&mut self) -> Progress {
        let quiet = self.endpoint.as_ref().is_none_or(EndpointHost::is_idle)
            && self
                .mapper
                .as_ref()
                .is_none_or(|(mapper, _)| mapper.is_idle())
            && self
                .blocker
                .as_ref()
                .is_none_or(|(blocker, _)| blocker.is_idle());
        if !quiet {
            return Progress::Idle;
        }
        // Last of all: it reports that this node owns nothing any more.
        if let Some((mapper, _)) = &mut self.mapper
            && !std::mem::replace(&mut self.left, true)
            && mapper.is_connected()
        {
            mapper.leave();
            return Progress::Busy;
        }
        if let Some(answer) = self.stopping.take() {
            answer.send(ControlReply::Done);
            self.handle.stop();
        }
        Progress::Idle
    }
}

impl<B: Backend> Peer for Host<B> {
    fn name(&self) -> &str {
        "host"
    }

    fn poll(&mut self) -> Progress {
        if self.events.borrow_mut().take_signals() {
            self.service();
            let interval = if self.is_unconnected() {
                TICK_UNCONNECTED
            } else if self.waits_for_space() {
                SPACE_INTERVAL
            } else {
                TICK
            };
            let mut events = self.events.borrow_mut();
            let deadline = events.now() + interval;
            events.alarm(deadline);
        }
        self.look_for_failed_syncs();
        let mut progress = self.take_jobs();
        if let Some(endpoint) = &mut self.endpoint {
            progress = progress.or(endpoint.poll());
        }
        if let Some((mapper, _)) = &mut self.mapper {
            progress = progress.or(mapper.poll());
        }
        if let Some((blocker, _)) = &mut self.blocker {
            progress = progress.or(blocker.poll());
        }
        if self.stopping.is_some() {
            progress = progress.or(self.settle_stop());
        }
        progress
    }

    fn prepare_sleep(&mut self) -> bool {
        if self.waits_for_space() {
            // For requests that began to wait in this turn: the alarm that is set may be a second away.
            let mut events = self.events.borrow_mut();
            let deadline = events.now() + SPACE_INTERVAL;
            events.alarm(deadline);
        }
        let mut quiet = !self.events.borrow().has_signals();
        if let Some(endpoint) = &mut self.endpoint {
            quiet &= endpoint.prepare_sleep();
        }
        if let Some((mapper, _)) = &mut self.mapper {
            quiet &= mapper.prepare_sleep();
        }
        if let Some((blocker, _)) = &mut self.blocker {
            quiet &= blocker.prepare_sleep();
        }
        quiet
    }

    fn wake(&mut self) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.wake();
        }
        if let Some((mapper, _)) = &mut self.mapper {
            mapper.wake();
        }
        if let Some((blocker, _)) = &mut self.blocker {
            blocker.wake();
        }
    }
}
