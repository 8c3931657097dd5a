//! Serving a device: it is created, or recovered from a dead server, and its endpoint receives its queue.

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

/// Longest wait until a dead server has ended completely: its last calls on the storage must return.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of these checks.
const RECOVERY_LOOK: Duration = Duration::from_millis(5);
/// Longest time in which the data process may fetch a device's first requests, and answer an attach.
const SERVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint needs in order to serve a device, and the next step.
enum Prepared {
    /// Nothing: it is served already.
    Served,
    /// This queue; then the device is started.
    Start(OwnedFd),
    /// This queue; then the device gets its waiting requests again.
    Recover(OwnedFd),
}

/// Prepares `own`, a device of `volume` in any state, for the endpoint.
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
                // An endpoint that does not serve it yet, or one that is ending, has it open.
                Err(error) if error.code == ErrorCode::InUse => {}
                Err(error) => return Err(error),
            },
            // The kernel has not noticed yet that the server is dead, or has not closed all its files.
            Some(DeviceState::Served(_) | DeviceState::Waits) => {}
            // It was not started, or it was stopped: it has no requests, and another process may have used its queue.
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

/// The process id that is passed to the kernel as that of the device's server. From Linux 6.17 on (and 6.16.1), the kernel accepts only the
/// process that has opened the queue, which is this one.
fn opener() -> u32 {
    std::process::id()
}

impl Pool {
    /// The device `number` of the volume `lineage`.
    pub(crate) fn own_device(&self, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice::new(&self.context.layout, lineage, number)
    }

    /// Makes the endpoint serve the device `number`, which is created, or recovered from a dead server, as needed.
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
                    // The device has not been used. The next attempt creates another one.
                    self.abandon_device(attachment, own).await;
                }
                started
            }
        }
    }

    /// Prepares `own` for `request`. If its endpoint serves it already, the endpoint has received `request`.
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
                // The endpoint does not have the queue: another process has it, whose death the kernel has not noticed yet.
                Err(error) if error.code == ErrorCode::Unavailable => {
                    tokio::time::sleep(RECOVERY_LOOK).await;
                }
                reply => return reply.map(|()| Prepared::Served),
            }
        }
    }

    /// Passes the `queue` of the device `number` to the endpoint, and makes the device send its requests there.
    async fn hand_over(
        &self,
        number: u32,
        request: &ControlRequest,
        queue: OwnedFd,
        recovers: bool,
    ) -> Result<(), Error> {
        let process = self.process(Role::Endpoint);
        let server = process.pid();
        // Not repeated: the request passes the queue, which can be passed only once.
        match process.ask_with(request, queue, SERVE_TIMEOUT).await {
            Ok(ControlReply::Done) => {}
            // The endpoint may still receive the request, and the queue with it.
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
                // While this server runs, only this call can make the requests served, so it continues after its caller has stopped
                // waiting.
                true => device.end_recovery(opener(), serves),
                false => device.start(opener(), || goes_on() && serves()),
            }
        })
        .await
    }
}
