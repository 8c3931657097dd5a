//! Serving a device: it is made, or recovered from a dead server, and its endpoint gets its queue.

use std::os::fd::OwnedFd;
use std::time::Duration;

use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{AttachmentId, Error, ErrorCode, Lineage, ServedVolume};
use archipelago_ublk::Control;
use archipelago_ublk::control::DeviceState;

use super::device::{OwnDevice, endpoint};
use crate::daemon::block::calls::{blocking, late, pause};
use crate::daemon::pool::Pool;
use crate::daemon::pool_requests::unexpected_reply;
use crate::daemon::process::{AskError, RunState};

/// How long the remains of a dead server may take to go: its last calls on the storage have to return.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at that.
const RECOVERY_LOOK: Duration = Duration::from_millis(5);
/// How long the data process may take to ask for a device's first requests, and to answer an attach.
const SERVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint needs to serve a device, and what follows when it does.
enum Prepared {
    /// It is served already.
    Served,
    /// By this queue; then the device is started.
    Start(OwnedFd),
    /// By this queue; then the device gets its requests again.
    Recover(OwnedFd),
}

/// Makes `own`, which is of `volume`, ready for the endpoint, in whatever state it is.
fn prepare(
    own: OwnDevice,
    volume: &ServedVolume,
    goes_on: &dyn Fn() -> bool,
) -> Result<Prepared, Error> {
    let (number, mark) = (own.number(), own.mark());
    let control = Control::open()?;
    let device = control.device(number);
    loop {
        let found = device.look()?;
        if let Some((_, other)) = found
            && other != mark
        {
            let message = format!("/dev/ublkb{number} belongs to another server or another volume");
            return Err(Error::new(ErrorCode::Exists, message)
                .with_hint("detach the volume, and attach it again: it gets another device"));
        }
        match found.map(|(state, _)| state) {
            Some(DeviceState::Served(by)) if by == opener() => return Ok(Prepared::Served),
            Some(DeviceState::Waits) if device.begin_recovery()? => match device.open_queue() {
                Ok(queue) => return Ok(Prepared::Recover(queue)),
                // By an endpoint that does not serve it yet, or by one that ends.
                Err(error) if error.code == ErrorCode::InUse => {}
                Err(error) => return Err(error),
            },
            // The kernel has not noticed yet that its server is dead, or not closed all that it had open.
            Some(DeviceState::Served(_) | DeviceState::Waits) => {}
            // Not started, or stopped: it has no requests, and a queue that another process may have had.
            Some(DeviceState::Dead) => device.remove(goes_on)?,
            None => {
                control.make(number, volume, mark)?;
                return Ok(Prepared::Start(device.open_queue()?));
            }
        }
        if !goes_on() {
            let message =
                format!("/dev/ublkb{number} is still held by its previous server process");
            return Err(Error::new(ErrorCode::Unavailable, message));
        }
        pause(RECOVERY_LOOK);
    }
}

/// The process id that is given to the kernel as that of a device's server. From Linux 6.17 on (6.16.1) the kernel accepts only the process
/// that has opened the queue, which is this one.
fn opener() -> u32 {
    std::process::id()
}

impl Pool {
    /// The device `number` of the volume `lineage`.
    pub(crate) fn own_device(&self, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice::new(&self.context.layout, lineage, number)
    }

    /// Has the endpoint serve the device `number`, which is made, or recovered from a dead server, as needed.
    pub(crate) async fn serve_device(
        &self,
        attachment: AttachmentId,
        volume: &ServedVolume,
        number: u32,
    ) -> Result<(), Error> {
        let own = self.own_device(volume.lineage, number);
        let request = ControlRequest::Attach {
            attachment,
            volume: volume.clone(),
            endpoint: endpoint(number),
        };
        let prepared = self.prepare_device(own, volume, &request);
        let prepared = tokio::time::timeout(RECOVERY_TIMEOUT, prepared).await;
        match prepared.map_err(|_elapsed| late(RECOVERY_TIMEOUT))?? {
            Prepared::Served => Ok(()),
            Prepared::Recover(queue) => self.hand_over(number, &request, queue, true).await,
            Prepared::Start(queue) => {
                let started = self.hand_over(number, &request, queue, false).await;
                if started.is_err() {
                    // The device has had no user. The next attempt makes another one.
                    self.abandon_device(attachment, own).await;
                }
                started
            }
        }
    }

    /// Makes `own` ready for `request`, which its endpoint has got already when it serves it.
    async fn prepare_device(
        &self,
        own: OwnDevice,
        volume: &ServedVolume,
        request: &ControlRequest,
    ) -> Result<Prepared, Error> {
        loop {
            let volume = volume.clone();
            let prepared = blocking(RECOVERY_TIMEOUT, move |goes_on| {
                prepare(own, &volume, goes_on)
            });
            match prepared.await? {
                Prepared::Served => {}
                queue => return Ok(queue),
            }
            match self.tell(Role::Endpoint, request).await {
                // It does not have the queue: another has, whose death the kernel has not noticed yet.
                Err(error) if error.code == ErrorCode::Unavailable => {
                    tokio::time::sleep(RECOVERY_LOOK).await;
                }
                reply => return reply.map(|()| Prepared::Served),
            }
        }
    }

    /// Gives the endpoint the `queue` of the device `number`, and has the device send its requests there.
    async fn hand_over(
        &self,
        number: u32,
        request: &ControlRequest,
        queue: OwnedFd,
        recovers: bool,
    ) -> Result<(), Error> {
        let process = self.process(Role::Endpoint);
        let server = process.pid();
        // Not repeated: the queue goes with it, once.
        match process.ask_with(request, queue, SERVE_TIMEOUT).await {
            Ok(ControlReply::Done) => {}
            // It may come to it yet, and has the queue then.
            Err(AskError::Failed(error)) if recovers => {
                tracing::debug!("serving /dev/ublkb{number}: {error}");
            }
            Ok(ControlReply::Failed(error)) | Err(AskError::Failed(error)) => return Err(error),
            Ok(other) => return Err(unexpected_reply(&other)),
            Err(AskError::Lost) => {
                let message = format!("the {} process died over this request", process.title());
                return Err(Error::new(ErrorCode::Unavailable, message));
            }
        }
        let state = process.run_state();
        let serves = move || *state.borrow() == RunState::Running(server);
        blocking(SERVE_TIMEOUT, move |goes_on| {
            let control = Control::open()?;
            let device = control.device(number);
            match recovers {
                // While this server runs, only this call can get the requests served, so it goes on after its caller has stopped waiting.
                true => device.end_recovery(opener(), serves),
                false => device.start(opener(), || goes_on() && serves()),
            }
        })
        .await
    }
}
