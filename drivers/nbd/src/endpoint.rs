//! Attaching a volume: the socket, and the seed of the server.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use archipelago_endpoint::{Detach, SocketFile};
use archipelago_protocol::{Error, ErrorCode};
use nix::sys::eventfd::EventFd;

use crate::config::AttachConfig;
use crate::metrics::Counters;
use crate::server::ServerSeed;
use crate::shared::{DetachRequest, Detached, Shared, doorbell, ring};

/// An attached volume, as the node sees it.
#[derive(Debug)]
pub struct Endpoint {
    shared: Arc<Shared>,
    requests: Sender<DetachRequest>,
    doorbell: EventFd,
    /// The socket's file, which is removed with the endpoint.
    _file: SocketFile,
}

impl Endpoint {
    /// Makes the socket. The seed becomes the server on the data thread; until then clients wait.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for a configuration out of range, [`ErrorCode::Io`] if the socket cannot be made.
    pub fn attach(config: AttachConfig) -> Result<(Endpoint, ServerSeed), Error> {
        config.check()?;
        let failed = |cause: std::io::Error| {
            let path = config.socket.display();
            Error::new(ErrorCode::Io, format!("cannot attach at {path}: {cause}"))
        };
        let (listener, file) =
            SocketFile::listen(&config.socket, config.socket_mode).map_err(failed)?;
        let (doorbell, watched) = doorbell().map_err(failed)?;
        let shared = Arc::new(Shared::new(config.volume.size));
        let (requests, received) = channel();
        let seed = ServerSeed {
            config,
            shared: Arc::clone(&shared),
            listener,
            requests: received,
            doorbell: watched,
        };
        let endpoint = Endpoint {
            shared,
            requests,
            doorbell,
            _file: file,
        };
        Ok((endpoint, seed))
    }

    /// Figures since the volume was attached.
    #[must_use]
    pub fn status(&self) -> Counters {
        self.shared.metrics.read()
    }
}

impl archipelago_endpoint::Endpoint for Endpoint {
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.status().named()
    }

    fn clients(&self) -> Option<u64> {
        Some(self.status().connected)
    }

    fn problem(&self) -> Option<String> {
        None
    }

    fn resized(&self, size: u64) {
        self.shared.set_size(size);
    }

    fn detach(&mut self, how: Detach) -> Result<(), Error> {
        let (reply, answer) = channel();
        // A data thread that has ended drops the request, and with it the other end of `answer`: the wait below ends, too.
        if self.requests.send(DetachRequest { how, reply }).is_err() {
            return Ok(());
        }
        ring(&self.doorbell);
        match answer.recv() {
            Ok(Detached::InUse(clients)) => {
                let text = match clients {
                    1 => "an NBD client is connected to it".to_owned(),
                    _ => format!("{clients} NBD clients are connected to it"),
                };
                Err(Error::new(ErrorCode::InUse, text).with_hint(
                    "disconnect its clients (`qemu-nbd -d`, `nbd-client -d`), then detach",
                ))
            }
            // A data thread that has ended has no clients.
            Ok(Detached::Done) | Err(_) => Ok(()),
        }
    }
}
