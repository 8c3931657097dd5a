//! The marker of a loss: an endpoint that stops reports by it to the client of a channel that acknowledged writes are lost.
//!
//! The channel has ended then, so the endpoint cannot report the loss as an answer. A client that opens the volume again looks for the
//! marker.

use std::path::{Path, PathBuf};

/// The file that an endpoint leaves when it stops, if it could not make data durable that came over the channel at `socket`. Its reader
/// removes it.
#[must_use]
pub fn loss_marker(socket: &Path) -> PathBuf {
    socket.with_extension("lost")
}
