//! One client, from its connection to its end.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use archipelago_nbd_protocol::handshake::Handshake;
use archipelago_nbd_protocol::request::Terms;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::end::End;
use crate::exports::Lease;
use crate::link::Link;
use crate::negotiation::{HANDSHAKE_MAX, Handshaking, Negotiated, Negotiation};
use crate::receiver::Receiver;
use crate::sender::send;
use crate::shared::Shared;

/// A client's host that is silent for so long is asked whether it is there, so often, so many times: two minutes after a host has
/// died, it has left nothing behind.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_COUNT: u32 = 4;

/// How long what was asked may take once a client asks for no more: a write that waits for room in its pool might take for ever.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

/// Serves the client at `socket`, which has a place among those in their handshakes.
pub(crate) async fn serve_client(
    socket: TcpStream,
    address: SocketAddr,
    place: Handshaking,
    shared: Rc<Shared>,
) {
    if let Err(end) = tune(&socket) {
        return tracing::debug!("{address}: {end}");
    }
    match begin(socket, address, place, &shared).await {
        Ok(()) => {}
        // The client has no other way to learn it.
        Err(end @ End::Refused { .. }) => tracing::info!("{address}: {end}"),
        // At the level for debugging only: a client can cause any number of these lines.
        Err(end) => tracing::debug!("{address}: the handshake ends: {end}"),
    }
}

fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_COUNT);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)
}

async fn begin(
    mut socket: TcpStream,
    address: SocketAddr,
    mut place: Handshaking,
    shared: &Rc<Shared>,
) -> Result<(), End> {
    let deadline = Instant::now() + HANDSHAKE_MAX;
    let Some(tls) = &shared.tls else {
        let mut negotiation = Negotiation::new(Handshake::new(), deadline);
        return match negotiation
            .negotiate(&mut socket, shared, &mut place)
            .await?
        {
            Negotiated::Agreed(terms, lease) => {
                drop(place);
                transmit(socket, address, terms, lease, shared).await;
                Ok(())
            }
            Negotiated::StartTls | Negotiated::Aborted => Ok(()),
        };
    };
    let mut ending = shared.ending.clone();
    let mut negotiation = Negotiation::new(Handshake::with_tls(), deadline);
    let Negotiated::StartTls = negotiation
        .negotiate(&mut socket, shared, &mut place)
        .await?
    else {
        return Ok(());
    };
    let accepted = tokio::select! {
        accepted = timeout_at(negotiation.deadline(), tls.accept(socket)) => accepted,
        _ = ending.wait_for(|ending| *ending) => return Err(End::Ending),
        _ = &mut place => return Err(End::Evicted),
    };
    let mut stream = accepted.map_err(|_late| End::Stalled)?.map_err(End::Tls)?;
    negotiation.encrypted();
    if let Negotiated::Agreed(terms, lease) = negotiation
        .negotiate(&mut stream, shared, &mut place)
        .await?
    {
        drop(place);
        transmit(stream, address, terms, lease, shared).await;
    }
    Ok(())
}

/// Serves the requests of a client until it has enough, goes away or is in the way.
async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    address: SocketAddr,
    terms: Terms,
    lease: Lease,
    shared: &Shared,
) {
    let volume = Rc::clone(lease.volume());
    tracing::info!("{address} uses `{}`", volume.name());
    let link = Rc::new(Link::new(terms, Rc::clone(&volume)));
    let (input, output) = tokio::io::split(stream);
    let result = {
        let mut receiver = Receiver::new(input, &link, shared.ending.clone());
        let mut sending = std::pin::pin!(send(output, &link));
        let received = tokio::select! {
            received = receiver.receive() => received,
            sent = &mut sending => sent,
            () = volume.ended() => Err(End::Volume),
        };
        match received {
            // What was asked is answered.
            Ok(()) => {
                link.finish();
                let sent = tokio::select! {
                    sent = timeout(ANSWERS_MAX, sending) => sent.unwrap_or(Err(End::Unanswered)),
                    () = volume.ended() => Err(End::Volume),
                };
                if sent.is_ok() {
                    receiver.drain().await;
                }
                sent
            }
            Err(end) => Err(end),
        }
    };
    link.break_off();
    match result {
        Ok(()) | Err(End::Gone) => tracing::info!("{address} has left `{}`", volume.name()),
        Err(end) => tracing::warn!(
            "{address}, which uses `{}`, is cut off: {end}",
            volume.name()
        ),
    }
    drop(volume);
    drop(link);
    shared.exports.take_back(lease).await;
}
