//! The listening socket: which clients are accepted, how many at a time, and the end.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_protocol::{Error, ErrorCode, Name};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::client::serve_client;
use crate::exports::Exports;
use crate::listener::{Listener, Place};
use crate::negotiation::Handshaking;
use crate::shared::Shared;
use crate::tls::TlsFiles;

/// Handshakes at a time. A further one evicts the oldest: an honest client has finished its handshake by then.
const HANDSHAKES_MAX: usize = 128;
/// How long requests in flight may take at the end.
const ENDING_MAX: Duration = Duration::from_secs(30);
/// Pause after the kernel had no descriptor or memory for another client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served, to which clients.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Where clients connect.
    pub listen: Place,
    /// Names to serve; empty: every name that a client selects.
    pub names: Vec<Name>,
    /// Writes are refused.
    pub read_only: bool,
    /// Encryption, which is then required.
    pub tls: Option<TlsFiles>,
    /// Serve other hosts without encryption.
    pub insecure: bool,
    /// How long requests wait for a node that is away, before they fail.
    pub wait_max: Duration,
}

/// Serves volumes of the node behind `client`, calls `ready` with the place once clients are accepted, and goes on until SIGTERM or SIGINT:
/// then requests in flight are finished and volumes closed.
///
/// # Errors
/// [`ErrorCode::Invalid`] for an address of other hosts without encryption, and for a bad certificate; the node's error if a named volume
/// cannot be opened; [`ErrorCode::Unavailable`] if clients' requests have not finished in time at the end; why a volume could not be
/// closed.
pub fn serve(
    client: Client,
    options: ServeOptions,
    ready: impl FnOnce(Place),
) -> Result<(), Error> {
    let listen = options.listen;
    if let Place::Address(address) = listen
        && options.tls.is_none()
        && !options.insecure
        && !address.ip().is_loopback()
    {
        let message = format!(
            "{} is not an address of this host alone, and nothing is encrypted",
            address.ip()
        );
        return Err(Error::new(ErrorCode::Invalid, message).with_hint(
            "give --tls-certificate and --tls-key, listen on 127.0.0.1, or use --insecure",
        ));
    }
    let tls = options.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
    let failed = |error: std::io::Error| Error::new(ErrorCode::Io, format!("{listen}: {error}"));
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (end, ending) = watch::channel(false);
    let shared = Rc::new(Shared::new(
        Exports::new(client, options.names, options.read_only, options.wait_max),
        tls,
        ending,
    ));
    let result = LocalSet::new().block_on(&runtime, async {
        shared.exports.check().await?;
        let listener = Listener::bind(&listen).await?;
        let signals = Signals::new().map_err(failed)?;
        ready(listener.place(&listen).map_err(failed)?);
        let clients = accept(listener, signals, &shared).await;
        // The send fails if there is no receiver: then there is no client.
        let _sent = end.send(true);
        finish(clients).await?;
        shared.exports.outcome()
    });
    // A call to the node that has not returned does not delay the end.
    runtime.shutdown_background();
    result
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Accepts clients until a signal; returns the clients that are connected then.
async fn accept(listener: Listener, mut signals: Signals, shared: &Rc<Shared>) -> JoinSet<()> {
    let mut handshakes = Handshakes::default();
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = signals.next() => return clients,
            accepted = listener.accept() => match accepted {
                Ok((accepted, client)) => {
                    let place = handshakes.take_place();
                    clients.spawn_local(serve_client(accepted, client, place, Rc::clone(shared)));
                }
                Err(error) => {
                    tracing::warn!("accepting a client failed: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = clients.join_next() => {}
        }
    }
}

/// Clients in their handshakes, the oldest first: a further one replaces it.
#[derive(Default)]
struct Handshakes(VecDeque<oneshot::Sender<()>>);

impl Handshakes {
    /// A place, until it is dropped, or another client needs it: then the receiver is completed.
    fn take_place(&mut self) -> Handshaking {
        self.0.retain(|place| !place.is_closed());
        if self.0.len() >= HANDSHAKES_MAX {
            self.0.pop_front();
        }
        let (held, place) = oneshot::channel();
        self.0.push_back(held);
        place
    }
}

async fn finish(mut clients: JoinSet<()>) -> Result<(), Error> {
    let finished = tokio::time::timeout(ENDING_MAX, async {
        while clients.join_next().await.is_some() {}
    });
    finished.await.map_err(|_late| {
        let message = format!(
            "{} clients were cut off: their requests have not finished within {} s",
            clients.len(),
            ENDING_MAX.as_secs()
        );
        Error::new(ErrorCode::Unavailable, message).with_hint("archipelago node status")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_handshake_than_there_are_places_ends_the_oldest_that_is_left() {
        let mut handshakes = Handshakes::default();
        let mut places: Vec<_> = (0..HANDSHAKES_MAX)
            .map(|_| handshakes.take_place())
            .collect();
        drop(places.remove(0));
        let mut new = [handshakes.take_place(), handshakes.take_place()];
        let is_ended =
            |place: &mut Handshaking| place.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        assert!(is_ended(&mut places[0]));
        let mut others = places[1..].iter_mut().chain(&mut new);
        assert!(!others.any(is_ended));
    }
}
