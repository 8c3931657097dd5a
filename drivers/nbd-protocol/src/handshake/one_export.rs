//! Handshakes of a server with a single export.

use super::Handshake;
use super::progress::{Broken, Progress};
use super::replies::Refusal;
use crate::offer::Offer;

impl Handshake {
    /// As [`Handshake::take`], for a server whose only export is `offer`.
    ///
    /// # Errors
    /// [`Broken`]: the connection ends.
    pub fn take_with(&mut self, bytes: &[u8], offer: &Offer<'_>) -> Result<Progress, Broken> {
        match self.take(bytes)? {
            Progress::Names => {
                self.list(Ok([offer.name].into_iter()));
                Ok(Progress::Continues)
            }
            Progress::Described | Progress::Chosen => {
                let found = match offer.is_called(self.name()) {
                    true => Ok(offer),
                    false => Err(Refusal::Unknown),
                };
                self.answer(found)
            }
            progress => Ok(progress),
        }
    }
}
