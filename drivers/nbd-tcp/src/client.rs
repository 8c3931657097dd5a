//! One client, from its connection to its end.

use std::rc::Rc;
use std::time::Duration;

use archipelago_nbd_protocol::handshake::Handshake;
use archipelago_nbd_protocol::request::Terms;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use crate::end::End;
use crate::exports::Lease;
use crate::link::Link;
use crate::listener::{Accepted, tune};
use crate::negotiation::{HANDSHAKE_MAX, Handshaking, Negotiated, Negotiation};
use crate::receiver::Receiver;
use crate::sender::send;
use crate::shared::Shared;

/// Timeout for the last replies once a client sends no more requests: a write that waits for space in its pool might take for ever.
const ANSWERS_MAX: Duration = Duration::from_secs(30);

/// Serves the client that was `accepted`, which has a place among the handshakes and the name `client` in the log.
pub(crate) async fn serve_client(
    accepted: Accepted,
    client: String,
    place: Handshaking,
    shared: Rc<Shared>,
) {
    let begun = match accepted {
        Accepted::Tcp(socket) => match tune(&socket) {
            Ok(()) => begin(socket, &client, place, &shared).await,
            Err(end) => return tracing::debug!("{client}: {end}"),
        },
        Accepted::Unix(socket) => begin(socket, &client, place, &shared).await,
    };
    match begun {
        Ok(()) => {}
        // The client has no other way to learn it.
        Err(end @ End::Refused { .. }) => tracing::info!("{client}: {end}"),
        // At the level for debugging only: a client can cause any number of these lines.
        Err(end) => tracing::debug!("{client}: the handshake ends: {end}"),
    }
}

async fn begin<S: AsyncRead + AsyncWrite + Unpin>(
    mut socket: S,
    client: &str,
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
                transmit(socket, client, terms, lease, shared).await;
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
        transmit(stream, client, terms, lease, shared).await;
    }
    Ok(())
}

/// Serves the requests of a client until it ends its side, disconnects or is evicted.
async fn transmit<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    client: &str,
    terms: Terms,
    lease: Lease,
    shared: &Shared,
) {
    let volume = Rc::clone(lease.volume());
    tracing::info!("{client} uses `{}`", volume.name());
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
            // All requests are answered.
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
        Ok(()) | Err(End::Disconnected) => tracing::info!("{client} has left `{}`", volume.name()),
        Err(end) => tracing::warn!(
            "{client}, which uses `{}`, is cut off: {end}",
            volume.name()
        ),
    }
    drop(volume);
    drop(link);
    shared.exports.take_back(lease).await;
}
