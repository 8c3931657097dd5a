//! Completions of the volume, and the replies to the client.

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::losses::Losses;
use archipelago_nbd_protocol::reply::{Done, errno};
use archipelago_nbd_protocol::wire::Errno;
use archipelago_protocol::ErrorCode;

use super::Transmission;
use crate::cells::NONE;
use crate::metrics::Metrics;
use crate::piece::Cookie;
use crate::replies::Replies;

impl Transmission {
    /// Handles the volume's answer to a piece.
    pub(crate) fn done(
        &mut self,
        cookie: Cookie,
        result: Result<(), ErrorCode>,
        losses: &Losses,
        metrics: &Metrics,
    ) {
        self.submissions.done();
        let command = self.command(cookie.request);
        let result = command.map_or(result, |command| {
            losses.check(&self.reported, command, result)
        });
        if self.is_served() {
            self.piece_done(cookie.request, cookie.cell, result.map_err(errno), metrics);
        }
    }

    pub(super) fn piece_done(
        &mut self,
        index: u16,
        cell: u16,
        result: Result<(), Errno>,
        metrics: &Metrics,
    ) {
        let Some((request, _)) = self.requests.get(index) else {
            debug_assert!(false, "the volume has answered what was not asked");
            return;
        };
        request.piece_done(result);
        let is_done = request.is_done();
        let (command, cookie) = (request.command(), request.cookie());
        match command {
            Command::Read if self.terms.structured => {
                let done = if is_done { Done::Yes } else { Done::No };
                self.replies().chunk(cookie, done, cell, result);
            }
            // Its cells are sent, or freed, together at the end.
            Command::Read => {}
            Command::BlockStatus { one } => self.replies().extents(cookie, one, cell, result),
            _ if cell != NONE => self.cells.put(cell),
            _ => {}
        }
        if is_done {
            self.finish(index, metrics);
        }
    }

    /// Answers a request: all its pieces are done.
    fn finish(&mut self, index: u16, metrics: &Metrics) {
        let Some((request, cells)) = self.requests.get(index) else {
            return;
        };
        let (command, cookie, result) = (request.command(), request.cookie(), request.result());
        let cells = *cells;
        metrics.count(command, request.len_bytes(), result);
        self.requests.remove(index);
        let is_answered = matches!(command, Command::BlockStatus { .. })
            || self.terms.structured && command == Command::Read;
        if !is_answered {
            self.replies().whole(cookie, cells, result);
        }
    }

    pub(super) fn command(&mut self, request: u16) -> Option<Command> {
        let (request, _) = self.requests.get(request)?;
        Some(request.command())
    }

    pub(super) fn replies(&mut self) -> Replies<'_> {
        Replies {
            terms: &self.terms,
            memory: &self.memory,
            cells: &mut self.cells,
            sender: &mut self.sender,
        }
    }
}
