//! The marker of a loss: how a process that stops reports to the client of a channel that acknowledged writes are lost.
//!
//! The channel is at its end then, and nobody would read an answer. A client that opens the volume again looks for the marker.

use std::path::{Path, PathBuf};

/// Where an endpoint that stops leaves a file if it could not make durable what came over the channel at `socket`. Whoever reads the marker
/// removes it.
#[must_use]
pub fn loss_marker(socket: &Path) -> PathBuf {
    socket.with_extension("lost")
}
