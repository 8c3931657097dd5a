//! Why a connection ends without a request of its client.

use std::io;

use archipelago_nbd_protocol::handshake::Broken;
use archipelago_nbd_protocol::request::Violation;
use archipelago_protocol::Error;

/// Why a connection ends without a request of its client.
#[derive(Debug)]
pub(crate) enum End {
    /// The client has disconnected, or the network has failed.
    Disconnected,
    /// The client exceeds a timeout.
    Stalled,
    /// The volume exceeds a timeout, for a client that sends no more requests.
    Unanswered,
    /// Another client needs its place.
    Evicted,
    /// The handshake is invalid.
    Broken(Broken),
    /// The export is refused to a client that has selected it by `EXPORT_NAME`, which has no error reply.
    Refused { name: String, why: Error },
    /// A request is invalid.
    Violation(Violation),
    /// The error of TLS.
    Tls(io::Error),
    /// The volume's channel has ended, and no other one follows.
    Volume,
    /// The server is about to end.
    Ending,
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            End::Disconnected => f.write_str("the connection has ended"),
            End::Stalled => f.write_str("the client took too long"),
            End::Unanswered => f.write_str("its requests have not finished"),
            End::Evicted => {
                f.write_str("others have begun more handshakes than there are places for")
            }
            End::Broken(why) => write!(f, "{why}"),
            // Both texts may come from the client.
            End::Refused { name, why } => write!(
                f,
                "the export `{}` is refused: {}",
                name.escape_debug(),
                why.message.escape_debug()
            ),
            End::Violation(why) => write!(f, "{why}"),
            End::Tls(why) => write!(f, "TLS: {why}"),
            End::Volume => f.write_str("the volume is not served any more"),
            End::Ending => f.write_str("the server ends"),
        }
    }
}

impl From<io::Error> for End {
    fn from(_lost: io::Error) -> End {
        End::Disconnected
    }
}
