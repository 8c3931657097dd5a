//! The two ends of a channel, over any transport: one type for each end, so that peers need no type parameter.
//!
//! Calls are dispatched by a match on the transport, which is chosen when the channel is made.

use std::os::fd::BorrowedFd;

use crate::entry::{Completion, Submission};
use crate::local::{LocalClient, LocalServer};
use crate::port::{ClientPort, PortError, ServerPort};
use crate::region::{Region, RegionId, RegionTable};
use crate::shared::{SharedClient, SharedServer};

/// The end that sends requests.
#[derive(Debug)]
#[non_exhaustive]
pub enum Client {
    /// The server is on the same thread.
    Local(LocalClient),
    /// The server is in another process.
    Shared(Box<SharedClient>),
}

/// The end that answers requests.
#[derive(Debug)]
#[non_exhaustive]
pub enum Server {
    /// The client is on the same thread.
    Local(LocalServer),
    /// The client is in another process.
    Shared(Box<SharedServer>),
}

/// The state of a channel, for status and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChannelFigures {
    /// `local` or `shared`.
    pub transport: &'static str,
    /// Connections of the port so far, see [`ClientPort::incarnation`].
    pub incarnation: u64,
    /// Requests submitted so far.
    pub submitted: u64,
    /// Requests submitted whose completions have not been collected.
    pub in_flight: usize,
    /// Number of violations of the protocol by servers.
    pub violations: u64,
}

macro_rules! each {
    ($self:ident, $port:ident => $call:expr) => {
        match $self {
            Self::Local($port) => $call,
            Self::Shared($port) => $call,
        }
    };
}

impl Client {
    /// The channel's figures.
    #[must_use]
    pub fn figures(&self) -> ChannelFigures {
        ChannelFigures {
            transport: match self {
                Client::Local(_) => "local",
                Client::Shared(_) => "shared",
            },
            incarnation: self.incarnation(),
            submitted: each!(self, port => port.submitted()),
            in_flight: each!(self, port => port.in_flight()),
            violations: match self {
                Client::Local(_) => 0,
                Client::Shared(port) => port.violations().0,
            },
        }
    }
}

impl Client {
    /// Descriptors to watch for reading, if the server is in another process: see [`SharedClient::fds`].
    #[must_use]
    pub fn fds(&self) -> Option<[BorrowedFd<'_>; 2]> {
        match self {
            Client::Local(_) => None,
            Client::Shared(port) => Some(port.fds()),
        }
    }

    /// See [`SharedClient::service`]; nothing to do for a local port.
    pub fn service(&mut self) -> bool {
        match self {
            Client::Local(_) => false,
            Client::Shared(port) => port.service(),
        }
    }
}

impl Server {
    /// Descriptors to watch for reading, if the client is in another process: see [`SharedServer::fds`].
    #[must_use]
    pub fn fds(&self) -> Option<[BorrowedFd<'_>; 2]> {
        match self {
            Server::Local(_) => None,
            Server::Shared(port) => Some(port.fds()),
        }
    }

    /// See [`SharedServer::service`]; nothing to do for a local port.
    pub fn service(&mut self) -> bool {
        match self {
            Server::Local(_) => false,
            Server::Shared(port) => port.service(),
        }
    }
}

impl From<LocalClient> for Client {
    fn from(port: LocalClient) -> Client {
        Client::Local(port)
    }
}

impl From<SharedClient> for Client {
    fn from(port: SharedClient) -> Client {
        Client::Shared(Box::new(port))
    }
}

impl From<SharedServer> for Server {
    fn from(port: SharedServer) -> Server {
        Server::Shared(Box::new(port))
    }
}

impl From<LocalServer> for Server {
    fn from(port: LocalServer) -> Server {
        Server::Local(port)
    }
}

impl ClientPort for Client {
    fn credits(&self) -> usize {
        each!(self, port => port.credits())
    }

    fn submit(&mut self, cookie: u64, submission: Submission) -> Result<(), PortError> {
        each!(self, port => port.submit(cookie, submission))
    }

    fn publish(&mut self) {
        each!(self, port => port.publish());
    }

    fn complete(&mut self) -> Option<(u64, Completion)> {
        each!(self, port => port.complete())
    }

    fn add_region(&mut self, id: RegionId, region: Region) -> Result<(), PortError> {
        each!(self, port => port.add_region(id, region))
    }

    fn region_ready(&self, id: RegionId) -> bool {
        each!(self, port => port.region_ready(id))
    }

    fn remove_region(&mut self, id: RegionId) {
        each!(self, port => port.remove_region(id));
    }

    fn arena(&self) -> &Region {
        each!(self, port => port.arena())
    }

    fn incarnation(&self) -> u64 {
        each!(self, port => port.incarnation())
    }

    fn is_connected(&self) -> bool {
        each!(self, port => port.is_connected())
    }

    fn announce(&mut self, number: u32, cookie: u64, submission: Submission) {
        each!(self, port => port.announce(number, cookie, submission));
    }

    fn withdraw(&mut self, number: u32) {
        each!(self, port => port.withdraw(number));
    }

    fn prepare_sleep(&mut self) -> bool {
        each!(self, port => port.prepare_sleep())
    }

    fn wake(&mut self) {
        each!(self, port => port.wake());
    }
}

impl ServerPort for Server {
    fn accept(&mut self) -> Option<Submission> {
        each!(self, port => port.accept())
    }

    fn complete(&mut self, completion: Completion) {
        each!(self, port => port.complete(completion));
    }

    fn publish(&mut self) {
        each!(self, port => port.publish());
    }

    fn regions(&self) -> &RegionTable {
        each!(self, port => port.regions())
    }

    fn break_channel(&mut self, why: &str) {
        each!(self, port => port.break_channel(why));
    }

    fn is_closed(&self) -> bool {
        each!(self, port => port.is_closed())
    }

    fn prepare_sleep(&mut self) -> bool {
        each!(self, port => port.prepare_sleep())
    }

    fn wake(&mut self) {
        each!(self, port => port.wake());
    }
}
