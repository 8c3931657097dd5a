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
    /// The client takes too long.
    Stalled,
    /// The volume takes too long, for a client that asks for no more.
    Unanswered,
    /// Another client needs its place.
    Evicted,
    /// The handshake makes no sense.
    Broken(Broken),
    /// The client does not get the export that it has asked for in a way that has no answer.
    Refused { name: String, why: Error },
    /// A request makes no sense.
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
            // Both may have what the client has sent.
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
