//! The drivers that a data process can host: one for each kind of endpoint. Only this file names them.

use std::os::fd::OwnedFd;
use std::path::Path;

use archipelago_endpoint::{Endpoint, EndpointSpec, ServedVolume};
use archipelago_protocol::{Error, ErrorCode};

use crate::endpoint::DriverSeed;
use crate::{Identity, PeerSettings};

/// Mode bits of sockets, unless a group shall have access: the owner alone.
const SOCKET_MODE: u32 = 0o600;

/// Settings of the process that all drivers need.
#[derive(Debug, Clone, Copy)]
pub(super) struct DriverSettings {
    /// Mode bits of sockets.
    socket_mode: u32,
}

impl DriverSettings {
    pub(super) fn new<P>(settings: &PeerSettings<P>) -> DriverSettings {
        DriverSettings {
            socket_mode: settings.endpoint.map_or(SOCKET_MODE, Identity::socket_mode),
        }
    }

    /// Makes the endpoint that `spec` describes, with the descriptor that the daemon has opened for it, if it needs one. The seed goes to
    /// the data thread.
    pub(super) fn attach(
        self,
        volume: ServedVolume,
        spec: &EndpointSpec,
        descriptor: Option<OwnedFd>,
    ) -> Result<(Box<dyn Endpoint>, DriverSeed), Error> {
        match spec {
            EndpointSpec::VhostUser { socket, queues } => {
                use archipelago_vhost_user::AttachConfig;
                let (endpoint, seed) = archipelago_vhost_user::Endpoint::attach(AttachConfig {
                    volume,
                    socket: socket.clone(),
                    socket_mode: self.socket_mode,
                    queues: *queues,
                    start_interval: AttachConfig::START_INTERVAL,
                })?;
                Ok((Box::new(endpoint), Box::new(seed)))
            }
            EndpointSpec::Nbd { socket, export } => self.export(volume, socket, export.clone()),
            // The kernel's connection uses the default export.
            EndpointSpec::NbdDevice { device, socket, .. } => {
                self.export(volume, socket, format!("nbd{device}"))
            }
            EndpointSpec::Ublk { device, .. } => {
                let queue = descriptor.ok_or_else(|| {
                    let text = "the queue of the ublk device did not come with the request";
                    Error::new(ErrorCode::Unavailable, text)
                })?;
                let (endpoint, seed) =
                    archipelago_ublk::Endpoint::attach(archipelago_ublk::AttachConfig {
                        volume,
                        device: *device,
                        queue,
                    })?;
                Ok((Box::new(endpoint), Box::new(seed)))
            }
            EndpointSpec::Fuse { .. } | EndpointSpec::Loop { .. } => Err(Error::new(
                ErrorCode::Unsupported,
                format!("the daemon serves {} itself", spec.kind()),
            )),
        }
    }

    /// An NBD export with the name `export`.
    fn export(
        self,
        volume: ServedVolume,
        socket: &Path,
        export: String,
    ) -> Result<(Box<dyn Endpoint>, DriverSeed), Error> {
        use archipelago_nbd::config::{AttachConfig, HANDSHAKE_MAX};
        let (endpoint, seed) = archipelago_nbd::Endpoint::attach(AttachConfig {
            volume,
            socket: socket.to_owned(),
            socket_mode: self.socket_mode,
            export,
            handshake_max: HANDSHAKE_MAX,
        })?;
        Ok((Box::new(endpoint), Box::new(seed)))
    }
}
