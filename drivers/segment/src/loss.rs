//! The marker of a loss: how a process that stops reports to the client of a channel that acknowledged writes are lost.
//!
//! The channel is at its end then, and nobody would read an answer. A client that opens the volume again looks for the marker.

use std::path::{Path, PathBuf};

/// The file that an endpoint leaves when it stops, if it could not make data durable that came over the channel at `socket`. Its reader
/// removes it.
#[must_use]
pub fn loss_marker(socket: &Path) -> PathBuf {
    socket.with_extension("lost")
}
