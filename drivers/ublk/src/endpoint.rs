//! An attached volume as the control side sees it; its driver runs on a data thread.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use archipelago_endpoint::Detach;
use archipelago_protocol::{Error, ErrorCode};
use nix::sys::eventfd::EventFd;

use crate::config::AttachConfig;
use crate::driver::DriverSeed;
use crate::metrics::Counters;
use crate::shared::{DetachRequest, Shared, doorbell};

/// An attached volume, as the node sees it.
#[derive(Debug)]
pub struct Endpoint {
    device: u32,
    shared: Arc<Shared>,
    requests: Sender<DetachRequest>,
    doorbell: EventFd,
}

impl Endpoint {
    /// Prepares to serve a device. The seed becomes its driver on the data thread, which fetches requests at once; the first ones come when
    /// the device is started, or its recovery is ended.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] without a descriptor to spare.
    pub fn attach(config: AttachConfig) -> Result<(Endpoint, DriverSeed), Error> {
        let failed = |cause: std::io::Error| {
            let device = config.device;
            Error::new(
                ErrorCode::Io,
                format!("cannot serve /dev/ublkb{device}: {cause}"),
            )
        };
        let (doorbell, watched) = doorbell().map_err(failed)?;
        let shared = Arc::new(Shared::default());
        let (requests, received) = channel();
        let device = config.device;
        let seed = DriverSeed {
            config,
            shared: Arc::clone(&shared),
            requests: received,
            doorbell: watched,
        };
        let endpoint = Endpoint {
            device,
            shared,
            requests,
            doorbell,
        };
        Ok((endpoint, seed))
    }

    /// Figures since the volume was attached to this process.
    #[must_use]
    pub fn status(&self) -> Counters {
        self.shared.metrics.read()
    }
}

impl archipelago_endpoint::Endpoint for Endpoint {
    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.status().named()
    }

    fn problem(&self) -> Option<String> {
        self.shared.has_lost_device().then(|| {
            let device = self.device;
            format!("/dev/ublkb{device} was stopped by somebody else: detach the volume, and attach it again")
        })
    }

    /// The daemon sets the device's size.
    fn resized(&self, _size: u64) {}

    fn detach(&mut self, how: Detach) -> Result<(), Error> {
        let (reply, answer) = channel();
        // A data thread that has ended drops the request, and with it the other end of `answer`: the wait below ends, too.
        if self.requests.send(DetachRequest { how, reply }).is_ok() {
            // The write fails only if the counter is full: then the thread is being woken already.
            let _full = self.doorbell.write(1);
            // A data thread that has ended has no clients.
            let _ended = answer.recv();
        }
        Ok(())
    }
}
