//! A node that restarts while an image is imported: the command waits for it and begins again. The source is still there; what the
//! node had of the import it deletes when it starts.

use archipelago_api::client::Client;
use archipelago_api::types::NodeStatus;
use archipelago_protocol::{Error, ErrorCode};

use super::interrupt::Interrupt;
use crate::output::Output;

/// How long a node may be away: a restart with a slow pool, an upgrade of the programs.
const ABSENCE_MS_MAX: u32 = 120_000;
/// Between two looks.
const STEP_MS: u16 = 500;
/// Tries in all: a node that dies of the import itself does not get it for ever.
const RESTARTS_MAX: u32 = 5;

/// Whether `error` says that node, or the process that serves the copy, has gone.
pub(super) fn is_absence(error: &Error) -> bool {
    error.code == ErrorCode::Unavailable && error.message != super::interrupt::INTERRUPTED
}

/// The restarts that an import has seen.
#[derive(Debug)]
pub(super) struct Restarts<'a> {
    client: &'a Client,
    interrupt: &'a Interrupt,
    output: Output,
    seen: u32,
    /// Whether the node has served this command before.
    begun: bool,
}

impl<'a> Restarts<'a> {
    /// None yet.
    pub(super) fn new(client: &'a Client, interrupt: &'a Interrupt, output: Output) -> Self {
        let begun = client.get::<NodeStatus>("/v1/node/status").is_ok();
        Restarts {
            client,
            interrupt,
            output,
            seen: 0,
            begun,
        }
    }

    /// Waits for the node if `error` says that it has gone.
    ///
    /// # Errors
    /// `error`, if it says something else, or the node does not come back.
    pub(super) fn wait(&mut self, error: Error) -> Result<(), Error> {
        if !is_absence(&error) || !self.begun || self.seen == RESTARTS_MAX {
            return Err(error);
        }
        self.seen += 1;
        self.output.note(&format!(
            "note: {}; waiting for the node for up to {} s",
            error.message,
            ABSENCE_MS_MAX / 1000
        ));
        for _ in 0..ABSENCE_MS_MAX / u32::from(STEP_MS) {
            self.interrupt.pause(STEP_MS)?;
            if self.is_serving() {
                self.output
                    .note("note: the node is back: the import begins again");
                return Ok(());
            }
        }
        let hint = "start the node and import again: nothing of this import is kept";
        Err(error.with_hint(hint))
    }

    fn is_serving(&self) -> bool {
        let status = self.client.get::<NodeStatus>("/v1/node/status");
        status.is_ok_and(|status| status.processes.iter().all(|process| process.serving))
    }
}
