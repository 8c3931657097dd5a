//! Block devices of this host that volumes are served at: what only a privileged process may do with them. What a device asks for is
//! served by the pool's endpoint, which is handed the device's queue.
//!
//! Invariants
//! - A device of this node that no attachment names is a left-over of an attach that was cut short, and removed at the start.
//! - Another server's device, whatever its number, is never touched.
//! - A device is never stopped while anybody but this node has it open, and not before what the host's page cache holds of it has
//!   been written.
//! - A device whose server died keeps its requests until the next server: nothing here answers them in its place.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use archipelago_api::layout::Layout;
use archipelago_protocol::control::{ControlReply, ControlRequest, Role};
use archipelago_protocol::{AttachmentId, EndpointSpec, Error, ErrorCode, Lineage, ServedVolume};
use archipelago_ublk::control::DeviceState;
use archipelago_ublk::{Control, Device, DeviceMark};

use super::pool::{Pool, unexpected_reply};
use super::process::{AskError, RunState};

/// How long the remains of a dead server may take to go: its last calls on the storage have to return.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at that.
const RECOVERY_LOOK: Duration = Duration::from_millis(5);
/// How long the data process may take to ask for a device's first requests, and to answer an attach.
const SERVE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a device may take to be written back and stopped.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long its server may take to close a device that is removed.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the endpoint needs to serve a device, and what follows when it does.
enum Prepared {
    /// It is served already.
    Served,
    /// By this queue; then the device is started.
    Start(OwnedFd),
    /// By this queue; then the device gets its requests again.
    Recover(OwnedFd),
}

/// Says that a call is given up, however its wait ends: also when what waits is dropped.
struct GivesUp(Arc<AtomicBool>);

impl Drop for GivesUp {
    fn drop(&mut self) {
        // Relaxed: a hint, which hands nothing over.
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Calls that block, and are given up after a time, or with whoever waits for them.
async fn blocking<T: Send + 'static>(
    timeout: Duration,
    call: impl FnOnce(&dyn Fn() -> bool) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let given_up = Arc::new(AtomicBool::new(false));
    let watched = Arc::clone(&given_up);
    let _gives_up = GivesUp(given_up);
    let called = tokio::task::spawn_blocking(move || call(&|| !watched.load(Ordering::Relaxed)));
    tokio::pin!(called);
    match tokio::time::timeout(timeout, &mut called).await {
        Ok(Ok(result)) => result,
        Ok(Err(panicked)) => Err(Error::new(ErrorCode::Internal, panicked.to_string())),
        Err(_late) => Err(late(timeout)),
    }
}

fn late(timeout: Duration) -> Error {
    let seconds = timeout.as_secs();
    let message = format!("a command on a ublk device has not returned for {seconds} s");
    Error::new(ErrorCode::Unavailable, message)
}

/// A number that no device and no attachment has.
pub(super) fn free_number(attached: impl Iterator<Item = u32>) -> u32 {
    let mut taken = Control::numbers();
    taken.extend(attached);
    // One of so many is free.
    let count = u32::try_from(taken.len()).unwrap_or(u32::MAX - 1);
    (0..=count)
        .find(|number| !taken.contains(number))
        .unwrap_or(u32::MAX)
}

/// The endpoint of the device `number`.
pub(super) fn endpoint(number: u32) -> EndpointSpec {
    EndpointSpec::Ublk {
        device: number,
        path: Device::path(number),
    }
}

/// Whether this node can have devices at all.
///
/// # Errors
/// Why not, with what to use in their place.
pub(super) async fn check() -> Result<(), Error> {
    blocking(SERVE_TIMEOUT, |_goes_on| Control::open().map(drop)).await
}

/// A device that this node has made, or is about to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct OwnDevice {
    number: u32,
    mark: DeviceMark,
}

impl OwnDevice {
    /// The device `number` of the volume `lineage` of the node at `layout`.
    pub(super) fn new(layout: &Layout, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice {
            number,
            mark: DeviceMark::new(&identity(layout), lineage.0),
        }
    }

    /// How it is; `None`: there is none, or the number is another server's by now.
    fn look(self, control: &Control) -> Result<Option<DeviceState>, Error> {
        let found = control.device(self.number).look()?;
        Ok(found.and_then(|(state, mark)| (mark == self.mark).then_some(state)))
    }
}

/// What tells the node at `layout` from others of this kernel: also one in another container, with the same path.
fn identity(layout: &Layout) -> Vec<u8> {
    let mut identity = layout.run().as_os_str().as_encoded_bytes().to_vec();
    if let Ok(found) = std::fs::metadata(layout.state()) {
        identity.extend(found.dev().to_le_bytes());
        identity.extend(found.ino().to_le_bytes());
    }
    identity
}

/// Removes the devices of the node at `layout` that `attached` does not name. Without ublk there are none.
pub(super) async fn remove_left_over(layout: &Layout, attached: Vec<u32>) {
    let numbers: Vec<u32> = Control::numbers()
        .into_iter()
        .filter(|number| !attached.contains(number))
        .collect();
    if numbers.is_empty() {
        return;
    }
    let ours = DeviceMark::new(&identity(layout), 0);
    let removed = blocking(STOP_TIMEOUT, move |goes_on| {
        let control = Control::open()?;
        for number in numbers {
            if let Err(error) = remove_unused(&control, number, ours, goes_on) {
                tracing::warn!("/dev/ublkb{number}, which no attachment names, stays: {error}");
            }
        }
        Ok(())
    });
    if let Err(error) = removed.await {
        tracing::warn!("left-over ublk devices: {error}");
    }
}

/// Removes the device `number`, if it is of the node that `ours` is of and nobody uses it.
fn remove_unused(
    control: &Control,
    number: u32,
    ours: DeviceMark,
    goes_on: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let device = control.device(number);
    let state = match device.look()? {
        Some((state, mark)) if mark.is_of_node(ours) => state,
        _ => return Ok(()),
    };
    let claimed = match state {
        DeviceState::Dead => None,
        DeviceState::Served(_) | DeviceState::Waits => Some(claim(&device, number)?),
    };
    tracing::warn!("/dev/ublkb{number} is a left-over of this node and is removed");
    device.stop()?;
    // The kernel removes nothing that somebody has open.
    drop(claimed);
    device.remove(goes_on)
}

/// The device `number`, which nobody uses.
fn claim(device: &Device<'_>, number: u32) -> Result<File, Error> {
    let claimed = device.claim()?;
    match users::of(number) {
        None => Ok(claimed),
        Some(user) => {
            let message = format!("/dev/ublkb{number} is open: {user} uses it");
            Err(Error::new(ErrorCode::InUse, message)
                .with_hint("stop the program that uses it, then detach"))
        }
    }
}

/// Makes the device `number` of `volume` ready for the endpoint, in whatever state it is.
fn prepare(
    OwnDevice { number, mark }: OwnDevice,
    volume: &ServedVolume,
    goes_on: &dyn Fn() -> bool,
) -> Result<Prepared, Error> {
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

/// The process that the kernel is told as a device's server. From Linux 6.17 on (6.16.1) it takes none but the process that
/// has opened the queue, which is this one.
fn opener() -> u32 {
    std::process::id()
}

/// On a thread for calls that block.
fn pause(time: Duration) {
    let time = nix::poll::PollTimeout::try_from(time).unwrap_or(nix::poll::PollTimeout::ZERO);
    // Waiting for nothing: a signal that ends it early does no harm.
    let _interrupted = nix::poll::poll(&mut [], time);
}

impl Pool {
    /// The device `number` of the volume `lineage`.
    pub(super) fn own_device(&self, lineage: Lineage, number: u32) -> OwnDevice {
        OwnDevice::new(&self.context.layout, lineage, number)
    }

    /// Has the endpoint serve the device `number`, which is made, or recovered from a dead server, as needed.
    pub(super) async fn serve_device(
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
                    // Nobody has had it. Whoever tries again makes another one.
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
                told => return told.map(|()| Prepared::Served),
            }
        }
    }

    /// Gives the endpoint the `queue` of the device `number`, and the device its requests.
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
                // As long as this server lives there is no other way to get the requests served, so this outlasts whoever waits.
                true => device.end_recovery(opener(), serves),
                false => device.start(opener(), || goes_on() && serves()),
            }
        })
        .await
    }

    /// Stops `own`, so that its endpoint can be detached: refused while anybody uses it. Unless the node has its pool no more
    /// (`is_orphan`), what waits for a server is waited for.
    pub(super) async fn stop_device(&self, own: OwnDevice, is_orphan: bool) -> Result<(), Error> {
        blocking(STOP_TIMEOUT, move |goes_on| {
            let Some(control) = opened()? else {
                return Ok(());
            };
            let number = own.number;
            let device = control.device(number);
            let is_served = match own.look(&control)? {
                Some(DeviceState::Served(_)) => true,
                Some(DeviceState::Waits) if is_orphan => false,
                Some(DeviceState::Waits) => {
                    let message = format!(
                        "/dev/ublkb{number} is not served at the moment, and may hold unwritten data"
                    );
                    return Err(Error::new(ErrorCode::Unavailable, message));
                }
                Some(DeviceState::Dead) | None => return Ok(()),
            };
            let claimed = claim(&device, number)?;
            // A stopped device takes nothing more from the page cache.
            if is_served {
                claimed.sync_all().map_err(|error| {
                    Error::new(
                        ErrorCode::Io,
                        format!("writing back /dev/ublkb{number}: {error}"),
                    )
                })?;
            }
            if !goes_on() {
                return Ok(());
            }
            device.stop()
        })
        .await
    }

    /// Takes back `own`, which could not be served.
    pub(super) async fn abandon_device(&self, attachment: AttachmentId, own: OwnDevice) {
        let stopped = blocking(STOP_TIMEOUT, move |_goes_on| match opened()? {
            Some(control) if own.look(&control)?.is_some() => control.device(own.number).stop(),
            Some(_) | None => Ok(()),
        });
        if let Err(error) = stopped.await {
            tracing::debug!("stopping /dev/ublkb{}: {error}", own.number);
        }
        let detach = ControlRequest::Detach {
            attachment,
            force: true,
        };
        if let Err(error) = self.tell(Role::Endpoint, &detach).await
            && error.code != ErrorCode::NotFound
        {
            tracing::warn!("taking back /dev/ublkb{}: {error}", own.number);
        }
        self.remove_device(own).await;
    }

    /// Removes `own`, which is stopped and which no process serves any more.
    pub(super) async fn remove_device(&self, own: OwnDevice) {
        let removed = blocking(REMOVE_TIMEOUT, move |goes_on| match opened()? {
            Some(control) if own.look(&control)?.is_some() => {
                control.device(own.number).remove(goes_on)
            }
            Some(_) | None => Ok(()),
        });
        if let Err(error) = removed.await {
            tracing::warn!("removing /dev/ublkb{}: {error}", own.number);
        }
    }

    /// Gives `own`, if it is there, the size of its volume.
    pub(super) async fn resize_device(&self, own: OwnDevice, size: u64) -> Result<(), Error> {
        blocking(SERVE_TIMEOUT, move |_goes_on| {
            let control = Control::open()?;
            match own.look(&control)? {
                Some(DeviceState::Served(_) | DeviceState::Waits) => {
                    control.device(own.number).resize(size)
                }
                // It is made anew, with the size that the volume has then.
                Some(DeviceState::Dead) | None => Ok(()),
            }
        })
        .await
    }
}

/// Refuses to resize what a device shows, where the kernel could not show it.
///
/// # Errors
/// [`ErrorCode::Unsupported`] with what to do.
pub(super) async fn check_resizes(number: u32) -> Result<(), Error> {
    blocking(SERVE_TIMEOUT, move |_goes_on| {
        if Control::open()?.resizes() {
            return Ok(());
        }
        let message = format!(
            "this kernel cannot change the size of /dev/ublkb{number} while it is attached: that takes Linux 6.16"
        );
        Err(Error::new(ErrorCode::Unsupported, message)
            .with_hint("detach the volume, resize it, and attach it again"))
    })
    .await
}

/// The control device; `None`: the kernel has no devices any more, so there is nothing to stop.
fn opened() -> Result<Option<Control>, Error> {
    match Control::open() {
        Ok(control) => Ok(Some(control)),
        Err(error) if error.code == ErrorCode::Unsupported => Ok(None),
        Err(error) => Err(error),
    }
}

/// Who has a block device open.
mod users {
    use std::fs;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    use std::path::Path;

    use archipelago_ublk::Device;

    /// A process, other than this one, or a loop device that has the device `number` open; `None` also where /proc does not show it.
    pub(super) fn of(number: u32) -> Option<String> {
        let path = Device::path(number);
        let device = fs::metadata(&path).ok()?.rdev();
        if let Some(loop_device) = loop_device_on(&path) {
            return Some(loop_device);
        }
        let own = std::process::id().to_string();
        let processes = fs::read_dir("/proc").ok()?.flatten();
        for process in processes {
            let name = process.file_name();
            let is_other =
                name != own.as_str() && name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
            if is_other && has_open(&process.path().join("fd"), device) {
                let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                return Some(format!(
                    "`{}` (process {})",
                    command.trim_end(),
                    name.to_string_lossy()
                ));
            }
        }
        None
    }

    /// The loop device on `path`: the kernel has it open then, and no process.
    fn loop_device_on(path: &Path) -> Option<String> {
        let blocks = fs::read_dir("/sys/block").ok()?.flatten();
        blocks.map(|entry| entry.path()).find_map(|block| {
            let file = fs::read_to_string(block.join("loop/backing_file")).ok()?;
            let name = block.file_name()?.to_str()?;
            (Path::new(file.trim_end()) == path).then(|| format!("the loop device `{name}`"))
        })
    }

    fn has_open(descriptors: &Path, device: u64) -> bool {
        let open = fs::read_dir(descriptors).into_iter().flatten().flatten();
        open.map(|entry| entry.path()).any(|path| {
            // Only what is a device is looked at: a file system that does not answer must not be asked.
            fs::read_link(&path).is_ok_and(|target| target.starts_with("/dev"))
                && fs::metadata(&path).is_ok_and(|found| {
                    found.file_type().is_block_device() && found.rdev() == device
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_that_nobody_has_is_given() {
        assert_eq!(free_number([0, 1, 3].into_iter()), 2);
        assert_eq!(free_number([1, 2].into_iter()), 0);
        assert_eq!(free_number(std::iter::empty()), 0);
    }

    #[tokio::test]
    async fn a_call_is_given_up_with_whoever_waits_for_it() {
        let (sender, given_up) = std::sync::mpsc::channel();
        let call = blocking(SERVE_TIMEOUT, move |goes_on| {
            // Ends by itself, so that a failure is one.
            let ended = (0..2000).any(|_look| {
                pause(RECOVERY_LOOK);
                !goes_on()
            });
            let sent = sender.send(ended);
            sent.map_err(|gone| Error::new(ErrorCode::Internal, gone.to_string()))
        });
        let dropped = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(dropped.is_err(), "it had not begun, or has ended");
        assert_eq!(given_up.recv_timeout(Duration::from_secs(5)), Ok(true));
    }
}
