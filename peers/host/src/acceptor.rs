//! Accepts the clients of a peer: the sockets of shared channels.
//!
//! Invariant: the successor of a client is served only when no request of its predecessor is under way any more, so an old request can
//! never overtake a new one.

use std::path::Path;
use std::time::Duration;

use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode};
use nix::poll::PollTimeout;
use xseg::Server;
use xseg::shared::{Admission, Listener, SharedServer};

use crate::Identity;
use crate::event_loop::{EventLoop, WatchId};

/// Timeout for a dying predecessor, which still has the socket.
const DEATH_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause between two tries to get the socket meanwhile.
const BIND_RETRY_MS: u16 = 5;

/// The owner of a channel: a user in a role has one channel, and the next client of that user and role succeeds the last one. The client's
/// own id does not matter, so no client is treated as the successor of another one. Mappers of our own user are an exception, since they
/// have all rights anyway: each data thread has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) role: u8,
    /// The number of a mapper of our own user.
    pub(crate) mapper: u64,
}

impl Caller {
    /// A peer of this process.
    pub(crate) fn within(role: Role) -> Caller {
        Caller {
            uid: nix::unistd::geteuid().as_raw(),
            role: role as u8,
            mapper: 0,
        }
    }

    /// Whether it is an endpoint with a user of its own, `endpoint`.
    pub(crate) fn is(self, endpoint: Option<Identity>) -> bool {
        endpoint.is_some_and(|user| user.uid == self.uid)
    }

    fn of(port: &SharedServer) -> Caller {
        let (uid, role) = (port.peer_uid(), port.role());
        let ours = Caller::within(Role::Mapper);
        let mapper = match (uid, role) == (ours.uid, ours.role) {
            true => port.client_id(),
            false => 0,
        };
        Caller { uid, role, mapper }
    }
}

/// A client that is being served.
#[derive(Debug)]
struct Served<C> {
    client: Caller,
    channel: C,
    watches: Vec<WatchId>,
}

/// A client that waits for the end of its predecessor.
#[derive(Debug)]
struct Waiting {
    port: SharedServer,
    watches: Vec<WatchId>,
}

/// The functions of a peer that an acceptor uses.
pub(crate) trait Channels {
    /// A channel of the peer.
    type Channel: Copy;

    /// Serves `port`, with the rights of `caller`.
    fn add(&mut self, port: Server, caller: Caller) -> Self::Channel;

    /// Accepts no more requests of `channel`.
    fn remove(&mut self, channel: Self::Channel);

    /// Whether it has ended and all its requests have finished.
    fn is_idle(&self, channel: Self::Channel) -> bool;
}

/// The clients of one peer.
#[derive(Debug)]
pub(crate) struct Acceptor<C> {
    listener: Listener,
    served: Vec<Served<C>>,
    waiting: Vec<Waiting>,
}

impl<C: Copy> Acceptor<C> {
    /// Listens at `path` for the users in `admission`, in place of a predecessor. A dying predecessor listens until the kernel has freed
    /// its memory, which takes longer the more volumes it served.
    pub(crate) fn listen(
        path: &Path,
        admission: &Admission,
        events: &mut EventLoop,
    ) -> Result<Acceptor<C>, Error> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorCode::Io, format!("{}: {error}", path.display()))
        };
        let deadline = events.now() + DEATH_TIMEOUT;
        let listener = loop {
            match Listener::bind(path, admission.clone()) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::AddrInUse && events.now() < deadline =>
                {
                    let _interrupted = nix::poll::poll(&mut [], PollTimeout::from(BIND_RETRY_MS));
                }
                result => break result.map_err(failed)?,
            }
        };
        events.watch(listener.fd()).map_err(failed)?;
        Ok(Acceptor {
            listener,
            served: Vec::new(),
            waiting: Vec::new(),
        })
    }

    /// Accepts new clients. To be called after a signal, and after each poll while a client waits.
    pub(crate) fn service(
        &mut self,
        channels: &mut impl Channels<Channel = C>,
        events: &mut EventLoop,
    ) {
        while let Some(port) = self.listener.accept() {
            let watches = port
                .fds()
                .into_iter()
                .filter_map(|fd| events.watch(fd).ok())
                .collect();
            self.waiting.push(Waiting { port, watches });
        }
        self.forget_ended(channels, events);
        let mut index = 0;
        while index < self.waiting.len() {
            let client = Caller::of(&self.waiting[index].port);
            // Of several, only the newest is alive.
            let superseded = self.waiting[index + 1..]
                .iter()
                .any(|later| Caller::of(&later.port) == client);
            let predecessor = self.served.iter().find(|served| served.client == client);
            match predecessor {
                Some(served) if !superseded => {
                    channels.remove(served.channel);
                    while self.waiting[index].port.service() {}
                    index += 1;
                }
                _ => {
                    let Waiting { mut port, watches } = self.waiting.remove(index);
                    if superseded {
                        watches.into_iter().for_each(|watch| events.unwatch(watch));
                        continue;
                    }
                    port.start();
                    let channel = channels.add(Server::from(port), client);
                    self.served.push(Served {
                        client,
                        channel,
                        watches,
                    });
                }
            }
        }
    }

    /// Whether a client waits for its predecessor's end.
    pub(crate) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    fn forget_ended(&mut self, channels: &impl Channels<Channel = C>, events: &mut EventLoop) {
        self.served.retain_mut(|served| {
            let idle = channels.is_idle(served.channel);
            if idle {
                served
                    .watches
                    .drain(..)
                    .for_each(|watch| events.unwatch(watch));
            }
            !idle
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use archipelago_runtime::{Config, Reactor, SystemClock};
    use xseg::ClientPort;
    use xseg::shared::{ConnectOptions, OnServerDeath, SharedClient};

    use super::*;

    /// Serves every client, and keeps a list.
    #[derive(Default)]
    struct Peer {
        ports: Vec<(Server, Caller)>,
        removed: Vec<usize>,
    }

    impl Channels for Peer {
        type Channel = usize;

        fn add(&mut self, port: Server, caller: Caller) -> usize {
            self.ports.push((port, caller));
            self.ports.len() - 1
        }

        fn remove(&mut self, channel: usize) {
            self.removed.push(channel);
        }

        fn is_idle(&self, channel: usize) -> bool {
            self.removed.contains(&channel)
        }
    }

    fn reactor() -> (Reactor, Arc<SystemClock>) {
        let clock = Arc::new(SystemClock);
        let config = Config::default();
        let reactor = Reactor::new(config, clock.clone());
        (reactor.unwrap(), clock)
    }

    #[test]
    fn a_client_takes_the_place_of_its_own_role_and_of_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (reactor, clock) = reactor();
        let mut events = EventLoop::new(reactor.source(), clock);
        let admission = Admission::own([1, 2]);
        let mut acceptor = Acceptor::listen(&path, &admission, &mut events).unwrap();
        let mut peer = Peer::default();
        let mut connect = |role: u8, client_id: u64| {
            let options = ConnectOptions {
                role,
                client_id,
                ring_size: 4,
                arena_len: 4096,
                on_server_death: OnServerDeath::Report,
                allowed_uids: Vec::new(),
            };
            let mut client = SharedClient::connect(&path, options).unwrap();
            acceptor.service(&mut peer, &mut events);
            // Once more for a successor: its predecessor is idle by then.
            acceptor.service(&mut peer, &mut events);
            client.service();
            assert!(client.is_connected());
            let callers: Vec<u8> = peer.ports.iter().map(|(_, caller)| caller.role).collect();
            (client, callers, peer.removed.clone())
        };
        let (_first, callers, removed) = connect(1, 7);
        assert_eq!((callers, removed), (vec![1], vec![]));
        // Has the id of the first client.
        let (_second, callers, removed) = connect(2, 7);
        assert_eq!((callers, removed), (vec![1, 2], vec![]));
        // Has another id, and is the successor all the same.
        let (_third, callers, removed) = connect(2, 8);
        assert_eq!((callers, removed), (vec![1, 2, 2], vec![1]));
    }

    #[test]
    fn a_successor_waits_until_its_predecessor_has_released_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let predecessor = Listener::bind(&path, Admission::own([1])).unwrap();
        let (reactor, clock) = reactor();
        let mut events = EventLoop::new(reactor.source(), clock);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Dies while it is waited for, or before: both are fine.
                let _waited = nix::poll::poll(&mut [], PollTimeout::from(50_u16));
                drop(predecessor);
            });
            Acceptor::<()>::listen(&path, &Admission::own([1]), &mut events).unwrap();
        });
    }
}
