//! Attaching a volume: the socket, its thread, and the seed of the device.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use archipelago_endpoint::{Detach, SocketFile};
use archipelago_protocol::{Error, ErrorCode};
use crossbeam_channel::unbounded;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::command::{Command, CommandChannel};
use crate::config::AttachConfig;
use crate::device::DeviceSeed;
use crate::metrics::Counters;
use crate::ring_check::Problem;
use crate::session::Session;
use crate::shared::Shared;
use crate::stop::Stop;
use crate::throttle::Allowance;

/// An attached volume, as the node sees it.
#[derive(Debug)]
pub struct Endpoint {
    config: AttachConfig,
    shared: Arc<Shared>,
    device: CommandChannel,
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
    /// The socket's file, which is removed with the endpoint.
    _file: SocketFile,
}

impl Endpoint {
    /// Makes the socket and starts its thread. The seed becomes the device on the data thread; until then front ends
    /// wait.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] for a configuration out of range, [`ErrorCode::Io`] if the socket cannot be made,
    /// [`ErrorCode::Unavailable`] if there can be no thread.
    pub fn attach(config: AttachConfig) -> Result<(Endpoint, DeviceSeed), Error> {
        config.check()?;
        let failed = |cause: std::io::Error| {
            let path = config.socket.display();
            Error::new(ErrorCode::Io, format!("cannot attach at {path}: {cause}"))
        };
        let (listener, file) =
            SocketFile::listen(&config.socket, config.socket_mode).map_err(failed)?;
        let [notice, doorbell, stop] = [eventfd(), eventfd(), eventfd()];
        let notice = notice.map_err(failed)?;
        let doorbell = doorbell.map_err(failed)?;
        let received = notice.try_clone().map_err(failed)?;
        let watched = doorbell.try_clone().map_err(failed)?;
        let shared = Arc::new(Shared::new(config.volume.size, notice));
        let (sender, commands) = unbounded();
        let device = CommandChannel::new(sender, doorbell);
        let stop = Arc::new(Stop::new(stop.map_err(failed)?));
        let session = Session {
            config: config.clone(),
            shared: Arc::clone(&shared),
            device: device.clone(),
            stop: Arc::clone(&stop),
            notice: received,
            allowance: Arc::new(Allowance::new(config.start_interval)),
        };
        let thread = std::thread::Builder::new()
            .name("vhost-user".to_owned())
            .spawn(move || session.run(&listener))
            .map_err(|cause| {
                let path = config.socket.display();
                Error::of_thread(format_args!("cannot attach at {path}"), &cause)
            })?;
        let seed = DeviceSeed {
            config: config.clone(),
            shared: Arc::clone(&shared),
            commands,
            doorbell: OwnedFd::from(watched),
        };
        let endpoint = Endpoint {
            config,
            shared,
            device,
            stop,
            thread: Some(thread),
            _file: file,
        };
        Ok((endpoint, seed))
    }

    /// How it is attached.
    #[must_use]
    pub fn config(&self) -> &AttachConfig {
        &self.config
    }

    /// Whether a front end is connected.
    #[must_use]
    pub fn in_use(&self) -> bool {
        self.stop.in_use()
    }

    /// Figures since the volume was attached.
    #[must_use]
    pub fn status(&self) -> Counters {
        self.shared.metrics.read()
    }

    /// Why the guest cannot be served, although nothing has failed.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.shared.problem()
    }
}

impl archipelago_endpoint::Endpoint for Endpoint {
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.status().named()
    }

    fn clients(&self) -> Option<u64> {
        Some(u64::from(self.in_use()))
    }

    fn problem(&self) -> Option<String> {
        self.shared.problem().map(|problem| problem.to_string())
    }

    fn resized(&self, size: u64) {
        self.shared.set_size(size);
    }

    fn detach(&mut self, how: Detach) -> Result<(), Error> {
        if how == Detach::IfUnused && self.in_use() {
            return Err(
                Error::new(ErrorCode::InUse, "a virtual machine is connected to it")
                    .with_hint("stop the virtual machine or unplug the disk, then detach"),
            );
        }
        self.stop.request();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
        let _gone_already = self.device.call(Command::Detach);
        Ok(())
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.request();
    }
}

pub(crate) fn eventfd() -> std::io::Result<File> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let made = EventFd::from_value_and_flags(0, flags)?;
    Ok(File::from(OwnedFd::from(made)))
}
