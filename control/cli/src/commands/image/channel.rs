//! The channel of a copy: an open volume, whose waits end when the command is interrupted, and errors as people read them.

use archipelago_api::types::Bulk;
use archipelago_protocol::error::TOO_LARGE_HINT;
use archipelago_protocol::{Error, ErrorCode};
use archipelago_segment::{Buffer, Finished, Request, SubmitError, VolumeClient, VolumeOptions};

use super::interrupt::Interrupt;

/// Large enough that a request costs little beside its data; enough of them to keep a disk busy, few enough to stay in a cache.
const OPTIONS: VolumeOptions = VolumeOptions {
    buffers: 8,
    buffer_len: 1 << 20,
};

/// An open volume that is copied.
#[derive(Debug)]
pub(super) struct Channel<'a> {
    volume: VolumeClient,
    interrupt: &'a Interrupt,
}

impl<'a> Channel<'a> {
    /// Opens the channel that the node has offered.
    pub(super) fn connect(bulk: &Bulk, interrupt: &'a Interrupt) -> Result<Channel<'a>, Error> {
        let (socket, server) = (&bulk.socket, bulk.uid);
        let volume = VolumeClient::connect_while(socket, server, OPTIONS, || interrupt.check())?;
        Ok(Channel { volume, interrupt })
    }

    /// Bytes of a buffer.
    pub(super) fn buffer_len(&self) -> usize {
        self.volume.buffers().buffer_len()
    }

    /// A buffer that is free.
    pub(super) fn acquire(&self) -> Option<Buffer> {
        self.volume.buffers().acquire()
    }

    /// Requests without an answer yet.
    pub(super) fn in_flight(&self) -> usize {
        self.volume.in_flight()
    }

    /// Sends a request; [`Channel::wait`] returns its `token`.
    pub(super) fn submit(&mut self, token: u64, request: Request) -> Result<(), Error> {
        self.volume
            .submit(token, request)
            .map_err(|refused| match refused {
                SubmitError::Full(_) => {
                    Error::new(ErrorCode::Internal, "a copy has more requests than buffers")
                }
                SubmitError::Gone(_) => gone(),
            })
    }

    /// Waits for the next request that has succeeded, while one is in flight.
    ///
    /// # Errors
    /// What the endpoint answered; [`ErrorCode::Unavailable`] if it has gone, or the wait was interrupted.
    pub(super) fn wait(&mut self) -> Result<Finished, Error> {
        loop {
            if let Some(finished) = self.volume.next() {
                return match finished.result {
                    Ok(()) => Ok(finished),
                    Err(_) if self.volume.is_gone() => Err(gone()),
                    Err(code) => Err(failed(code)),
                };
            }
            debug_assert!(self.in_flight() > 0, "nothing comes back");
            let waited = match self.volume.prepare_sleep() {
                true => self.interrupt.wait_for(&self.volume),
                false => self.interrupt.check(),
            };
            self.volume.wake();
            waited?;
        }
    }

    /// Waits for what is in flight, makes it durable and closes the volume.
    pub(super) fn close(mut self) -> Result<(), Error> {
        while self.in_flight() > 0 {
            self.wait()?;
        }
        self.submit(0, Request::Close)?;
        self.wait().map(drop)
    }
}

fn gone() -> Error {
    let message = "the endpoint disconnected during the copy";
    Error::new(ErrorCode::Unavailable, message).with_hint("try again")
}

/// What the endpoint has answered, as people read it.
fn failed(code: ErrorCode) -> Error {
    let what = match code {
        ErrorCode::NoSpace => "the pool's file system is full",
        ErrorCode::NoDescriptors => "no file descriptor is free",
        ErrorCode::NoMemory => "the host has no memory for it",
        ErrorCode::NoRunSpace => "the run directory is full",
        ErrorCode::TooLarge => "a file of the pool may not get so large",
        ErrorCode::Damaged => "the volume is damaged",
        ErrorCode::UnsupportedFormat => "the volume has a format that this program does not know",
        ErrorCode::Io => "the pool reports an input or output error",
        ErrorCode::SyncFailed => "the pool failed to make it durable",
        ErrorCode::Stale => "another session has taken over the volume",
        ErrorCode::ReadOnly => "it is read-only",
        ErrorCode::Unavailable => "a peer is unavailable",
        ErrorCode::Denied => "the endpoint may not do that",
        ErrorCode::Invalid | ErrorCode::Unsupported => "the endpoint refuses the request",
        ErrorCode::NotFound
        | ErrorCode::Exists
        | ErrorCode::InUse
        | ErrorCode::Internal
        | ErrorCode::NotOpen => "internal error",
    };
    let error = Error::new(code, format!("copying failed: {what}"));
    match code {
        ErrorCode::NoSpace => {
            error.with_hint("free some space in the pool, or grow its file system, and try again")
        }
        ErrorCode::TooLarge => error.with_hint(TOO_LARGE_HINT),
        _ => error,
    }
}
