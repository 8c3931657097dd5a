//! Replies to a client: all waiting replies together, in as few calls as the socket allows.

use std::time::Duration;

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::end::End;
use crate::link::Link;

/// Timeout for a client to receive a part: a client that reads nothing for so long is cut off.
const STALL_MAX: Duration = Duration::from_secs(30);
/// Bytes of a part.
const PART_LEN: usize = 256 << 10;

/// Sends replies until there will be no more.
///
/// # Errors
/// Why the connection ends.
pub(crate) async fn send(mut output: impl AsyncWrite + Unpin, link: &Link) -> Result<(), End> {
    let mut sending = Vec::new();
    while link.take_replies(&mut sending).await {
        for part in sending.chunks(PART_LEN) {
            let sent = timeout(STALL_MAX, output.write_all(part)).await;
            sent.map_err(|_late| End::Stalled)??;
        }
        let flushed = timeout(STALL_MAX, output.flush()).await;
        flushed.map_err(|_late| End::Stalled)??;
    }
    // Ends the TLS session properly. It fails if the client has disconnected first.
    let _disconnected = timeout(STALL_MAX, output.shutdown()).await;
    Ok(())
}
