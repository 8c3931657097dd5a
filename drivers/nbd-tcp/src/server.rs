//! The listening socket: who is let in, how many at a time, and the end.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::client::Client;
use archipelago_protocol::{Error, ErrorCode, Name};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinSet, LocalSet};

use crate::client::serve_client;
use crate::exports::Exports;
use crate::shared::Shared;
use crate::tls::TlsFiles;

/// Clients in their handshakes at a time; more wait in the socket's queue, for as long as a handshake may take.
const HANDSHAKES_MAX: usize = 32;
/// How long requests in flight may take at the end.
const ENDING_MAX: Duration = Duration::from_secs(30);
/// How long nobody is let in when the kernel has no descriptor or memory for another client.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is served, and to whom.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Address and port; port 0: any.
    pub listen: SocketAddr,
    /// What is served; empty: whatever a client asks for.
    pub names: Vec<Name>,
    /// Nobody writes through this server.
    pub read_only: bool,
    /// Encryption, without which nothing is served.
    pub tls: Option<TlsFiles>,
    /// Other hosts are served without encryption.
    pub insecure: bool,
}

/// Serves things of the node that `client` asks, calls `ready` with the address once clients are let in, and goes on until SIGTERM or
/// SIGINT: then requests in flight are finished and volumes closed.
///
/// # Errors
/// [`ErrorCode::Invalid`] for an address of other hosts without encryption, and for a bad certificate; what the node says to the opening
/// of a volume that is named; [`ErrorCode::Unavailable`] if clients' requests have not finished in time at the end.
pub fn serve(
    client: Client,
    options: ServeOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let listen = options.listen;
    if options.tls.is_none() && !options.insecure && !listen.ip().is_loopback() {
        let message = format!(
            "{} is not an address of this host alone, and nothing is encrypted",
            listen.ip()
        );
        return Err(Error::new(ErrorCode::Invalid, message).with_hint(
            "give --tls-certificate and --tls-key, listen on 127.0.0.1, or say --insecure",
        ));
    }
    let tls = options.tls.as_ref().map(TlsFiles::acceptor).transpose()?;
    let failed = |error: std::io::Error| Error::new(ErrorCode::Io, format!("{listen}: {error}"));
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let (end, ending) = watch::channel(false);
    let shared = Rc::new(Shared::new(
        Exports::new(client, options.names, options.read_only),
        tls,
        ending,
    ));
    let result = LocalSet::new().block_on(&runtime, async {
        shared.exports.check().await?;
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            let code = match error.kind() {
                std::io::ErrorKind::AddrInUse => ErrorCode::InUse,
                std::io::ErrorKind::PermissionDenied => ErrorCode::Denied,
                _ => ErrorCode::Io,
            };
            Error::new(code, format!("listening on {listen}: {error}"))
        })?;
        let signals = Signals::new().map_err(failed)?;
        ready(listener.local_addr().map_err(failed)?);
        let clients = accept(listener, signals, &shared).await;
        // All receivers are in `shared`, or gone.
        let _told = end.send(true);
        finish(clients).await
    });
    // A call to the node that has not returned keeps nobody waiting.
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

/// Lets clients in until a signal; those that are there then.
async fn accept(listener: TcpListener, mut signals: Signals, shared: &Rc<Shared>) -> JoinSet<()> {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = signals.next() => return clients,
            accepted = next_client(&listener, &handshakes) => match accepted {
                Ok((socket, address, place)) => {
                    clients.spawn_local(serve_client(socket, address, place, Rc::clone(shared)));
                }
                Err(error) => {
                    tracing::warn!("a client cannot be let in: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = clients.join_next() => {}
        }
    }
}

async fn next_client(
    listener: &TcpListener,
    handshakes: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(handshakes).acquire_owned().await;
    let place = place.expect("nobody closes it");
    let (socket, address) = listener.accept().await?;
    Ok((socket, address, place))
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
