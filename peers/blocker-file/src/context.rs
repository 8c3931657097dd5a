//! The shared context of a backend's parts.

use std::collections::VecDeque;

use archipelago_protocol::ErrorCode;
use archipelago_protocol::object::ObjectReply;
use archipelago_runtime::Source;

use crate::files::Files;
use crate::logs::Logs;
use crate::threads::Threads;
use crate::throttle::Throttle;

/// Replies that the peer has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Replies(VecDeque<(u64, ObjectReply)>);

impl Replies {
    /// Answers the request of `ticket`.
    pub(crate) fn push(&mut self, ticket: u64, reply: ObjectReply) {
        self.0.push_back((ticket, reply));
    }

    /// Answers with `len` bytes moved, or with the error.
    pub(crate) fn push_result(&mut self, ticket: u64, len: u32, result: Result<(), ErrorCode>) {
        let reply = result.map_or_else(ObjectReply::failed, |()| ObjectReply::done(len));
        self.push(ticket, reply);
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, ObjectReply)> {
        self.0.pop_front()
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Drops the replies to `ticket`, which a test has sent.
    #[cfg(test)]
    pub(crate) fn forget(&mut self, ticket: u64) {
        self.0.retain(|(other, _)| *other != ticket);
    }
}

/// The shared context of a part while it does something.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) source: &'a Source,
    pub(crate) threads: &'a Threads,
    pub(crate) files: &'a mut Files,
    pub(crate) logs: &'a mut Logs,
    pub(crate) throttle: &'a mut Throttle,
    pub(crate) replies: &'a mut Replies,
}
