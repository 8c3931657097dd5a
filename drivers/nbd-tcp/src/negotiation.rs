//! A handshake on a stream: bytes to and from its state machine, its deadline, and the exports that it asks for.

use std::time::Duration;

use archipelago_nbd_protocol::handshake::{Broken, Handshake, Progress, Refusal};
use archipelago_nbd_protocol::offer::Offer;
use archipelago_nbd_protocol::request::Terms;
use archipelago_protocol::{Error, ErrorCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::end::End;
use crate::exports::Lease;
use crate::shared::Shared;
use crate::volume::Export;

/// Between the connection and the transmission, without the time that the node takes: a slower client is disconnected.
pub(crate) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// How long the node may take to open an export.
const OPEN_MAX: Duration = Duration::from_secs(15);

/// The place of a client in its handshake; the receiver is completed if another client needs the place.
pub(crate) type Handshaking = oneshot::Receiver<()>;

/// The result of a handshake.
pub(crate) enum Negotiated {
    /// TLS begins.
    StartTls,
    /// The transmission begins.
    Agreed(Terms, Lease),
    /// The client ends the connection.
    Aborted,
}

/// A handshake and its deadline.
pub(crate) struct Negotiation {
    handshake: Handshake,
    deadline: Instant,
    /// The received bytes of the next input.
    input: Vec<u8>,
}

impl Negotiation {
    pub(crate) fn new(handshake: Handshake, deadline: Instant) -> Self {
        Negotiation {
            handshake,
            deadline,
            input: Vec::new(),
        }
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The stream is encrypted from now on.
    pub(crate) fn encrypted(&mut self) {
        self.handshake.encrypted();
    }

    /// Runs until another protocol begins on `stream`, or the connection ends.
    ///
    /// # Errors
    /// Why the connection ends.
    pub(crate) async fn negotiate<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        shared: &Shared,
        place: &mut Handshaking,
    ) -> Result<Negotiated, End> {
        let mut ending = shared.ending.clone();
        let mut lease = None;
        let result = tokio::select! {
            result = self.go_on(stream, shared, &mut lease) => result,
            _ = ending.wait_for(|ending| *ending) => Err(End::Ending),
            _ = place => Err(End::Evicted),
        };
        match (result, lease) {
            (Ok(Progress::Agreed(terms)), Some(lease)) => Ok(Negotiated::Agreed(terms, lease)),
            (Ok(Progress::StartTls), None) => Ok(Negotiated::StartTls),
            (result, lease) => {
                if let Some(lease) = lease {
                    shared.exports.take_back(lease).await;
                }
                result.map(|_aborted| Negotiated::Aborted)
            }
        }
    }

    async fn go_on<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        shared: &Shared,
        lease: &mut Option<Lease>,
    ) -> Result<Progress, End> {
        let mut progress = Progress::Continues;
        loop {
            self.send(stream).await?;
            if progress != Progress::Continues {
                return Ok(progress);
            }
            self.receive(stream).await?;
            progress = self.handshake.take(&self.input).map_err(End::Broken)?;
            if let Progress::Names | Progress::Described | Progress::Chosen = progress {
                let asked = Instant::now();
                progress = self.answer(progress, shared, lease).await?;
                // The client's deadline does not include the node's time.
                self.deadline += asked.elapsed();
            }
        }
    }

    async fn answer(
        &mut self,
        question: Progress,
        shared: &Shared,
        lease: &mut Option<Lease>,
    ) -> Result<Progress, End> {
        if question == Progress::Names {
            let names = shared.exports.names().await;
            let names = names.as_ref().map_err(refusal);
            self.handshake
                .list(names.map(|names| names.iter().map(String::as_str)));
            return Ok(Progress::Continues);
        }
        let found = match question {
            Progress::Chosen => {
                let opened = shared.exports.open(self.handshake.name());
                let opened = timeout(OPEN_MAX, opened).await.unwrap_or_else(|_late| {
                    let message = "the node did not open the export in time";
                    Err(Error::new(ErrorCode::Unavailable, message))
                });
                opened.map(|opened| lease.insert(opened).volume().export().clone())
            }
            _ => shared.exports.describe(self.handshake.name()).await,
        };
        match found {
            Ok(export) => self.handshake.answer(Ok(&export.offer())),
            Err(why) => {
                let name = String::from_utf8_lossy(self.handshake.name()).into_owned();
                match self.handshake.answer(Err(refusal(&why))) {
                    Err(Broken::NoSuchExport) => return Err(End::Refused { name, why }),
                    answered => answered,
                }
            }
        }
        .map_err(End::Broken)
    }

    async fn send<S: AsyncWrite + Unpin>(&mut self, stream: &mut S) -> Result<(), End> {
        let output = self.handshake.output();
        let sent = timeout_at(self.deadline, async {
            stream.write_all(output).await?;
            stream.flush().await
        });
        sent.await.map_err(|_late| End::Stalled)??;
        output.clear();
        Ok(())
    }

    async fn receive<S: AsyncRead + Unpin>(&mut self, stream: &mut S) -> Result<(), End> {
        self.input.clear();
        self.input.resize(self.handshake.wants(), 0);
        let received = timeout_at(self.deadline, stream.read_exact(&mut self.input));
        received.await.map_err(|_late| End::Stalled)??;
        Ok(())
    }
}

impl Export {
    fn offer(&self) -> Offer<'_> {
        Offer {
            name: self.name.as_str(),
            size: self.size,
            read_only: self.read_only,
        }
    }
}

fn refusal(error: &Error) -> Refusal<'_> {
    match error.code {
        ErrorCode::NotFound | ErrorCode::Invalid => Refusal::Unknown,
        ErrorCode::Unavailable => Refusal::Shutdown(&error.message),
        _ => Refusal::Policy(&error.message),
    }
}

#[cfg(test)]
mod tests {
    use archipelago_api::client::Client;
    use archipelago_api::layout::Layout;
    use archipelago_nbd_protocol::wire::{OPTION_MAGIC, option};
    use tokio::io::duplex;
    use tokio::runtime::Builder;
    use tokio::sync::watch;

    use super::*;
    use crate::exports::Exports;

    /// Why a server of `v`, which asks no node for other names, ends the handshake of a client that asks for `name`.
    async fn end_of(name: &[u8]) -> End {
        let node = Client::new(Layout::new(None).unwrap());
        let exports = Exports::new(node, vec!["v".parse().unwrap()], false, Duration::ZERO);
        let (_end, ending) = watch::channel(false);
        let shared = Shared::new(exports, None, ending);
        let (_place, mut place) = oneshot::channel();
        let (mut client, mut server) = duplex(4096);
        let mut asked = 1_u32.to_be_bytes().to_vec();
        asked.extend(OPTION_MAGIC.to_be_bytes());
        asked.extend(option::EXPORT_NAME.to_be_bytes());
        asked.extend(u32::try_from(name.len()).unwrap().to_be_bytes());
        asked.extend(name);
        client.write_all(&asked).await.unwrap();
        let mut negotiation = Negotiation::new(Handshake::new(), Instant::now() + HANDSHAKE_MAX);
        let negotiated = negotiation.negotiate(&mut server, &shared, &mut place);
        negotiated.await.err().expect("a refusal")
    }

    #[test]
    fn the_end_of_a_handshake_without_an_answer_says_which_export_was_refused_and_why() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        for (name, expected) in [
            (
                &b"w"[..],
                "the export `w` is refused: there is no export of this name",
            ),
            (
                b"a\nb",
                "the export `a\\nb` is refused: `a\\nb` cannot be a name: legal characters are A-Z a-z 0-9 . _ @ : + -",
            ),
        ] {
            assert_eq!(runtime.block_on(end_of(name)).to_string(), expected);
        }
    }
}
