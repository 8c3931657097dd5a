//! Figures of one device.

use archipelago_endpoint::counters;
use archipelago_protocol::volume::VolumeOp;
use nix::errno::Errno;

use crate::request::Request;

counters! {
    /// Requests in flight now.
    in_flight,
    /// Read requests answered.
    reads,
    /// Write requests answered.
    writes,
    /// Of these, durable when answered.
    durable_writes,
    /// Flush requests answered.
    flushes,
    /// Discard requests answered.
    discards,
    /// Write-zeroes requests answered.
    write_zeroes,
    /// Bytes read with success.
    read_bytes,
    /// Bytes written with success.
    written_bytes,
    /// Requests answered with an error.
    errors,
    /// Of these, because there was no space.
    errors_no_space,
    /// Times the volume could not take a request at once.
    volume_refusals,
    /// Times the volume could not be opened.
    open_failures,
    /// Requests left to the next server, because this one was about to end.
    kept,
}

impl Metrics {
    /// Counts a request that is answered with `result`.
    pub(crate) fn count(&self, request: &Request, result: Result<(), Errno>) {
        match request.op {
            VolumeOp::Read => self.reads.add(1),
            VolumeOp::Write { durable } => {
                self.writes.add(1);
                self.durable_writes.add(u64::from(durable));
            }
            VolumeOp::Flush => self.flushes.add(1),
            VolumeOp::Discard => self.discards.add(1),
            VolumeOp::WriteZeroes { .. } => self.write_zeroes.add(1),
            VolumeOp::BlockStatus => {}
        }
        match (result, request.op) {
            (Ok(()), VolumeOp::Read) => self.read_bytes.add(request.len),
            (Ok(()), VolumeOp::Write { .. }) => self.written_bytes.add(request.len),
            (Ok(()), _) => {}
            (Err(errno), _) => self.count_error(errno),
        }
    }

    /// Counts an error.
    pub(crate) fn count_error(&self, errno: Errno) {
        self.errors.add(1);
        self.errors_no_space.add(u64::from(errno == Errno::ENOSPC));
    }
}
