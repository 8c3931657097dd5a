//! Reaching a reactor from other threads.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::reactor::Context;

pub(crate) type Call = Box<dyn FnOnce(&mut Context<'_>) + Send>;

/// The reactor has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reactor has ended")]
pub struct Ended;

/// A way to a reactor from any thread.
#[derive(Clone)]
pub struct Handle {
    calls: Sender<Call>,
    bell: Arc<EventFd>,
    stop: Arc<AtomicBool>,
}

/// The reactor's end of its handles.
pub(crate) struct Inbox {
    pub(crate) calls: Receiver<Call>,
    pub(crate) handle: Handle,
}

impl Handle {
    pub(crate) fn open() -> io::Result<Inbox> {
        let (sender, calls) = mpsc::channel();
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let handle = Handle {
            calls: sender,
            bell: Arc::new(bell),
            stop: Arc::default(),
        };
        Ok(Inbox { calls, handle })
    }

    /// Runs `call` on the reactor's thread, soon.
    ///
    /// # Errors
    /// [`Ended`]: it will never run.
    pub fn call(&self, call: impl FnOnce(&mut Context<'_>) + Send + 'static) -> Result<(), Ended> {
        self.calls.send(Box::new(call)).map_err(|_gone| Ended)?;
        self.ring();
        Ok(())
    }

    /// Runs `call` on the reactor's thread and waits for what it returns. Never from that thread itself.
    ///
    /// # Errors
    /// [`Ended`]: the reactor ended first, or the call panicked.
    pub fn ask<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Context<'_>) -> R + Send + 'static,
    ) -> Result<R, Ended> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.call(move |context| {
            // A caller that has gone does not want the answer.
            let _ = sender.send(call(context));
        })?;
        receiver.recv().map_err(|_dropped| Ended)
    }

    /// Asks the reactor to end; its thread can be joined then.
    pub fn stop(&self) {
        // Release: pairs with the Acquire in `is_stopping`; what was called before is seen.
        self.stop.store(true, Ordering::Release);
        self.ring();
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(crate) fn bell(&self) -> &EventFd {
        &self.bell
    }

    fn ring(&self) {
        // EAGAIN: the counter is full, so the bell has been rung and not been heard yet.
        let _ = self.bell.write(1);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}
