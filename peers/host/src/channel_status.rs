//! The figures of a channel, for the status of a process.

use archipelago_protocol::control::ChannelStatus;
use xseg::Client;

/// The figures of a channel.
pub(crate) fn channel_status(client: &str, server: &str, port: &Client) -> ChannelStatus {
    let figures = port.figures();
    ChannelStatus {
        client: client.to_owned(),
        server: server.to_owned(),
        transport: figures.transport.to_owned(),
        requests: figures.submitted,
        in_flight: figures.in_flight as u64,
        incarnation: figures.incarnation,
    }
}
