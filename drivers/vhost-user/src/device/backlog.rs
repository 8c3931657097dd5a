//! Parts of requests that the volume could not take at once, and whether it refuses for now.

use crate::config::RANGES_MAX;
use crate::request::{Kind, Range};

/// A part of a request that the volume could not take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deferred {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) range: Range,
    pub(super) kind: Kind,
}

/// The parts, and the refusal that they wait behind.
#[derive(Debug)]
pub(super) struct Backlog {
    parts: Vec<Deferred>,
    /// The volume has refused a request since its last event.
    refused: bool,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Backlog {
            parts: Vec::with_capacity(RANGES_MAX),
            refused: false,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    pub(super) fn push(&mut self, part: Deferred) {
        self.parts.push(part);
    }

    /// The next part to submit; it stays until [`Backlog::pop`].
    pub(super) fn next(&self) -> Option<Deferred> {
        self.parts.last().copied()
    }

    pub(super) fn pop(&mut self) -> Option<Deferred> {
        self.parts.pop()
    }

    /// Removes the parts of requests of `queue`; returns their heads.
    pub(super) fn take_of(&mut self, queue: u16) -> Vec<u16> {
        let theirs = self.parts.extract_if(.., |part| part.queue == queue);
        theirs.map(|part| part.head).collect()
    }

    /// Records that the volume has refused a request.
    pub(super) fn refuse(&mut self) {
        self.refused = true;
    }

    /// Records that the volume may have a free slot again.
    pub(super) fn retry(&mut self) {
        self.refused = false;
    }

    /// Whether the volume refuses for now.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether no part waits for the volume.
    pub(super) fn is_clear(&self) -> bool {
        !self.refused && self.parts.is_empty()
    }
}
