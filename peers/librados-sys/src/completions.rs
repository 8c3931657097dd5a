//! Calls under way, and how their completions reach the thread that started them.
//!
//! Invariants
//! - A slot belongs to one call from its start until its [`Completed`] is taken: it owns everything that librados reads or writes for the
//!   call.
//! - librados' threads only queue the number of the slot, and ring the doorbell if the owner has asked for that.
//! - If the [`Completions`] are dropped while calls are under way, the slots of these are never freed: librados may still use their memory.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sys::eventfd::{EfdFlags, EventFd};
use xseg::Span;

use crate::bindings;
use crate::error::Code;
use crate::read_op::{Found, ReadOp};
use crate::write_op::WriteOp;

/// State that librados' threads share with the owner.
#[derive(Debug)]
struct Shared {
    ended: Sender<u32>,
    /// Whether the owner wants the doorbell for the next completion.
    armed: AtomicBool,
    doorbell: EventFd,
}

impl Shared {
    /// Records that the call of a slot has ended.
    fn end(&self, slot: u32) {
        // Without a receiver nobody needs the completion.
        let _sent = self.ended.send(slot);
        // AcqRel: pairs with `Completions::poll`. Either the owner finds the slot in the queue after it has armed, or this rings.
        if self.armed.swap(false, Ordering::AcqRel) {
            // The counter of an eventfd cannot overflow while a machine runs.
            let _rung = self.doorbell.write(1);
        }
    }
}

/// The argument of a slot's callback: never moved, and never freed while a call of the slot is under way.
#[derive(Debug)]
struct Argument {
    shared: Arc<Shared>,
    slot: u32,
}

/// Resources that a call needs until its end.
#[derive(Debug)]
pub(crate) enum Held {
    /// Nothing.
    Nothing,
    /// Memory to read into or write from.
    Span(Span),
    /// A buffer to read into.
    Bytes(Vec<u8>),
    /// An operation that changes an object, with its data.
    Write(WriteOp),
    /// An operation that reads an object, with the places of its results.
    Read(ReadOp),
}

#[derive(Debug)]
struct Slot {
    argument: Box<Argument>,
    /// Null: no call is under way.
    completion: bindings::rados_completion_t,
    token: u64,
    held: Held,
    /// Why the call could not be started.
    refused: Option<Code>,
}

/// Resources that a call returns.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// The memory that was read into or written from.
    Span(Span),
    /// The buffer that was read into.
    Bytes(Vec<u8>),
    /// The results of a [`ReadOp`].
    Found(Found),
}

/// The completion of a call.
#[derive(Debug)]
pub struct Completed {
    /// The caller's token.
    pub token: u64,
    /// Bytes read by [`Pool::read`](crate::Pool::read) and the like, else 0; or the error of the call.
    pub result: Result<usize, Code>,
    /// The resources of the call, whatever its result.
    pub payload: Payload,
}

/// Calls under way. Lives on one thread.
#[derive(Debug)]
pub struct Completions {
    shared: Arc<Shared>,
    ended: Receiver<u32>,
    slots: Vec<Slot>,
    free: Vec<u32>,
}

// SAFETY: the completions in the slots are handles without ties to a thread, and only the owner of the `Completions` uses them.
unsafe impl Send for Completions {}

/// librados' threads call this at the end of each call.
unsafe extern "C" fn on_end(_completion: bindings::rados_completion_t, argument: *mut c_void) {
    // SAFETY: the argument is the one that `begin` gave to librados, and its slot keeps it until the number of the slot has been taken from
    // the queue, into which it goes below. Other threads have shared references at most.
    let argument = unsafe { &*argument.cast::<Argument>() };
    // A reference of its own: once the number is in the queue, slot and argument may be dropped.
    let shared = Arc::clone(&argument.shared);
    let slot = argument.slot;
    shared.end(slot);
}

impl Completions {
    /// No calls yet.
    ///
    /// # Errors
    /// The system's error, if there can be no eventfd.
    pub fn new() -> io::Result<Completions> {
        let (sender, ended) = unbounded();
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let shared = Arc::new(Shared {
            ended: sender,
            armed: AtomicBool::new(true),
            doorbell: EventFd::from_flags(flags)?,
        });
        Ok(Completions {
            shared,
            ended,
            slots: Vec::new(),
            free: Vec::new(),
        })
    }

    /// Becomes readable when a call ends after [`Completions::poll`] has returned `None`.
    #[must_use]
    pub fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }

    /// Calls whose completions were not taken yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The next completion; `None`: the doorbell will ring.
    pub fn poll(&mut self) -> Option<Completed> {
        if let Ok(slot) = self.ended.try_recv() {
            return Some(self.take(slot));
        }
        // AcqRel: pairs with `Shared::end`.
        self.shared.armed.swap(true, Ordering::AcqRel);
        let slot = self.ended.try_recv().ok()?;
        Some(self.take(slot))
    }

    /// Waits for the next completion: for tests and for threads that serve no requests.
    ///
    /// # Panics
    /// If no call is under way.
    pub fn wait(&mut self) -> Completed {
        assert!(self.in_flight() > 0, "a call to wait for");
        let slot = self.ended.recv().expect("the sender is ours, too");
        self.take(slot)
    }

    /// Waits for the next completion for at most `timeout`.
    pub fn wait_for(&mut self, timeout: Duration) -> Option<Completed> {
        let slot = self.ended.recv_timeout(timeout).ok()?;
        Some(self.take(slot))
    }

    /// Starts a call: `start` gets its completion and its resources, in the place where these stay until the end.
    pub(crate) fn begin(
        &mut self,
        token: u64,
        held: Held,
        start: impl FnOnce(bindings::rados_completion_t, &mut Held) -> c_int,
    ) {
        let index = self.free.pop().unwrap_or_else(|| self.add_slot());
        let slot = &mut self.slots[index as usize];
        slot.token = token;
        slot.held = held;
        slot.refused = None;
        let argument = (&raw const *slot.argument).cast_mut().cast::<c_void>();
        // SAFETY: the argument lives as long as the slot, which stays until the call has ended; the place of the result is valid.
        let created = unsafe {
            bindings::rados_aio_create_completion2(argument, Some(on_end), &raw mut slot.completion)
        };
        let started = match Code::of(created) {
            None => start(slot.completion, &mut slot.held),
            Some(_) => created,
        };
        if let Some(code) = Code::of(started) {
            // librados makes no callback for a call that it did not accept.
            slot.refused = Some(code);
            self.shared.end(index);
        }
    }

    fn add_slot(&mut self) -> u32 {
        let index = u32::try_from(self.slots.len()).expect("fewer calls than 2^32");
        let shared = Arc::clone(&self.shared);
        self.slots.push(Slot {
            argument: Box::new(Argument {
                shared,
                slot: index,
            }),
            completion: ptr::null_mut(),
            token: 0,
            held: Held::Nothing,
            refused: None,
        });
        index
    }

    fn take(&mut self, index: u32) -> Completed {
        let slot = &mut self.slots[index as usize];
        let completion = std::mem::replace(&mut slot.completion, ptr::null_mut());
        let mut result = 0;
        if !completion.is_null() {
            if slot.refused.is_none() {
                // SAFETY: the completion is ours, and its call has ended.
                result = unsafe { bindings::rados_aio_get_return_value(completion) };
            }
            // SAFETY: the completion is ours and is not used after this.
            unsafe { bindings::rados_aio_release(completion) };
        }
        let failed = slot.refused.take().or(Code::of(result));
        let result = match failed {
            Some(code) => Err(code),
            None => Ok(usize::try_from(result).unwrap_or(0)),
        };
        let payload = match std::mem::replace(&mut slot.held, Held::Nothing) {
            Held::Nothing | Held::Write(_) => Payload::None,
            Held::Span(span) => Payload::Span(span),
            Held::Bytes(bytes) => Payload::Bytes(bytes),
            Held::Read(op) => match failed {
                Some(_) => Payload::None,
                None => Payload::Found(op.found()),
            },
        };
        let token = slot.token;
        self.free.push(index);
        Completed {
            token,
            result,
            payload,
        }
    }
}

impl Drop for Completions {
    fn drop(&mut self) {
        if self.in_flight() > 0 {
            // Calls under way may still read and write this memory.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
