//! Figures of one export.

use archipelago_endpoint::counters;

use archipelago_nbd_protocol::command::Command;
use archipelago_nbd_protocol::wire::Errno;

counters! {
    /// Connections in their transmission now.
    connected,
    /// Pieces of requests in flight now.
    in_flight,
    /// Read requests answered.
    reads,
    /// Write requests answered.
    writes,
    /// Flush requests answered.
    flushes,
    /// Trim requests answered.
    trims,
    /// Write-zeroes requests answered.
    write_zeroes,
    /// Block-status requests answered.
    block_statuses,
    /// Cache requests answered.
    caches,
    /// Bytes read with success.
    read_bytes,
    /// Bytes written with success.
    written_bytes,
    /// Requests answered with an error.
    errors,
    /// Of these, because the request itself was invalid.
    errors_refused,
    /// Of these, by the volume's answer: no space.
    errors_no_space,
    /// Of these, by any other answer of the volume.
    errors_volume,
    /// Connections broken off because of invalid input.
    violations,
    /// Clients that were refused: too many connections.
    turned_away,
    /// Handshakes that took too long.
    handshake_timeouts,
    /// Calls to receive.
    receives,
    /// Calls to send.
    sends,
    /// Times the volume could not take a request at once.
    volume_refusals,
    /// Times the volume could not be opened.
    open_failures,
    /// Transmissions begun.
    connections,
}

impl Metrics {
    /// Counts a request that is answered with `result`.
    pub(crate) fn count(&self, command: Command, len: u32, result: Result<(), Errno>) {
        let len = u64::from(len);
        let kind = match command {
            Command::Read => &self.reads,
            Command::Write { .. } => &self.writes,
            Command::Flush => &self.flushes,
            Command::Trim { .. } => &self.trims,
            Command::WriteZeroes { .. } => &self.write_zeroes,
            Command::BlockStatus { .. } => &self.block_statuses,
            Command::Cache => &self.caches,
            Command::Disconnect => return,
        };
        kind.add(1);
        match (result, command) {
            (Ok(()), Command::Read) => self.read_bytes.add(len),
            (Ok(()), Command::Write { .. }) => self.written_bytes.add(len),
            (Ok(()), _) => {}
            (Err(errno), _) => {
                self.errors.add(1);
                match errno {
                    Errno::NoSpc => self.errors_no_space.add(1),
                    _ => self.errors_volume.add(1),
                }
            }
        }
    }

    /// Counts a request that is refused without the volume.
    pub(crate) fn count_refused(&self) {
        self.errors.add(1);
        self.errors_refused.add(1);
    }
}
