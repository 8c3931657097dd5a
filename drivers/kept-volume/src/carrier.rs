//! What requests are sent over, as a table of requests in flight sees it.

use archipelago_segment::{Buffer, Request, SubmitError};

use crate::channel::Channel;

/// What requests are sent over.
pub trait Carrier {
    /// Whether it takes requests.
    fn is_live(&mut self) -> bool;

    /// Whether it is being opened again.
    fn is_away(&self) -> bool;

    /// Whether requests that it does not take wait until it is back.
    fn is_kept(&self) -> bool;

    /// A buffer; `None`: all are in use.
    fn buffer(&mut self) -> Option<Buffer>;

    /// Sends `request`.
    ///
    /// # Errors
    /// It has no room, or has ended.
    fn submit(&mut self, token: u64, request: Request) -> Result<(), SubmitError>;
}

impl Carrier for Channel {
    fn is_live(&mut self) -> bool {
        self.live().is_some()
    }

    fn is_away(&self) -> bool {
        Channel::is_away(self)
    }

    fn is_kept(&self) -> bool {
        Channel::is_kept(self)
    }

    fn buffer(&mut self) -> Option<Buffer> {
        self.live()?.buffers().acquire()
    }

    fn submit(&mut self, token: u64, request: Request) -> Result<(), SubmitError> {
        match self.live() {
            Some(client) => client.submit(token, request),
            None => Err(SubmitError::Gone(request)),
        }
    }
}
