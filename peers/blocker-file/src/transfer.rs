//! Reads and writes of one file: aligned ones go to the medium as they are, others through a buffer.

use std::rc::Rc;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::{FLAG_DURABLE, ObjectOp, ObjectRequest};
use archipelago_runtime::Durability;
use xseg::{Region, Span};

use crate::files::Open;

/// Times that a write without room is tried again at once: the first has always been enough, each costs a full pool a call.
const REFUSALS_MAX: u8 = 3;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// How a transfer fits the medium.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fit {
    /// As it is.
    Whole,
    /// Its place does, its memory does not: through a buffer.
    Memory,
    /// Its place does not: the blocks around it are read, changed and written, while nobody else uses the file.
    Place,
}

/// A read or write on its way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) ticket: u64,
    pub(crate) open: Rc<Open>,
    pub(crate) way: Way,
    /// Byte of the file.
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) durable: bool,
    pub(crate) memory: Vec<Span>,
    /// The buffer that stands for `memory`.
    pub(crate) bounce: Option<Region>,
    /// Bytes moved so far: the kernel may do less than was asked.
    pub(crate) moved: u32,
    /// Answers that are still to come before a durable write is one.
    pub(crate) waiting: u32,
    /// How often the file system has said that it has no room.
    pub(crate) refusals: u8,
    /// A thread makes it, with room from the reserve.
    pub(crate) from_reserve: bool,
    /// Why it is no durable write, though its bytes were moved.
    pub(crate) failed: Option<ErrorCode>,
}

impl Transfer {
    pub(crate) fn new(
        ticket: u64,
        open: Rc<Open>,
        request: &ObjectRequest,
        offset: u64,
        memory: Vec<Span>,
    ) -> Self {
        Transfer {
            ticket,
            open,
            way: if request.op == ObjectOp::Read {
                Way::Read
            } else {
                Way::Write
            },
            offset,
            len: request.len,
            durable: request.flags & FLAG_DURABLE != 0,
            memory,
            bounce: None,
            moved: 0,
            waiting: 0,
            refusals: 0,
            from_reserve: false,
            failed: None,
        }
    }

    pub(crate) fn fit(&self, alignment: u32) -> Fit {
        let (unit, wide) = (alignment as usize, u64::from(alignment));
        if !self.offset.is_multiple_of(wide) || !self.len.is_multiple_of(alignment) {
            return Fit::Place;
        }
        let fits = |span: &Span| {
            span.address().addr().is_multiple_of(unit) && span.len().is_multiple_of(unit)
        };
        if self.memory.iter().all(fits) {
            Fit::Whole
        } else {
            Fit::Memory
        }
    }

    /// Whether a write that failed with `errno` is to be tried again at once; counts it.
    ///
    /// A file system whose free blocks are reserved by others for a moment says that it has none: ext4 does so for a few of
    /// 100,000 writes that allocate in many sparse files at once, and not a second time.
    pub(crate) fn may_retry(&mut self, errno: i32) -> bool {
        let retry = errno == libc::ENOSPC && self.way == Way::Write && self.refusals < REFUSALS_MAX;
        self.refusals += u8::from(retry);
        retry
    }

    pub(crate) fn durability(&self) -> Durability {
        if self.durable {
            Durability::Now
        } else {
            Durability::Later
        }
    }

    /// The memory of what is still to be moved.
    pub(crate) fn rest(&self) -> Vec<Span> {
        let whole = match &self.bounce {
            Some(bounce) => vec![
                bounce
                    .span(0, u64::from(self.len))
                    .expect("a buffer is as long as its transfer"),
            ],
            None => self.memory.clone(),
        };
        let mut skip = self.moved as usize;
        let mut rest = Vec::with_capacity(whole.len());
        for span in whole {
            let done = skip.min(span.len());
            skip -= done;
            if done < span.len() {
                rest.push(
                    span.part(done, span.len() - done)
                        .expect("a part of itself"),
                );
            }
        }
        rest
    }

    /// Copies what is to be written into `bytes`, or what was read out of them.
    pub(crate) fn copy(&self, bytes: &mut [u8]) {
        let mut rest = bytes;
        for span in &self.memory {
            let (part, after) = rest.split_at_mut(span.len());
            match self.way {
                Way::Read => span.write(part),
                Way::Write => span.read(part),
            }
            rest = after;
        }
    }

    /// Beyond the end of a file there are zeros.
    pub(crate) fn zero_rest(&self) {
        for span in self.rest() {
            // Some pages at a time: the end of a file is rare.
            span.write(&vec![0; span.len()]);
        }
    }
}
