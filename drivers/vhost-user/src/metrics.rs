//! Figures of one device.

use archipelago_endpoint::counters;
use archipelago_endpoint::counters::Counter;
use archipelago_protocol::ErrorCode;

use crate::failure::Failure;
use crate::request::Kind;

counters! {
    /// Requests in flight now.
    in_flight,
    /// Read requests completed.
    reads,
    /// Write requests completed.
    writes,
    /// Flush requests completed.
    flushes,
    /// Discard requests completed.
    discards,
    /// Write-zeroes requests completed.
    write_zeroes,
    /// Other requests completed: GET_ID and unknown ones.
    others,
    /// Bytes read with success.
    read_bytes,
    /// Bytes written with success.
    written_bytes,
    /// Requests completed with IOERR.
    errors,
    /// Of these, because the request itself was invalid.
    errors_refused,
    /// Of these, because the volume could not be opened.
    errors_not_open,
    /// Of these, by the volume's answer: no space.
    errors_no_space,
    /// The backend failed.
    errors_io,
    /// A sync failed.
    errors_sync_failed,
    /// Another session owns the volume.
    errors_stale,
    /// The mapper or the blocker was not available.
    errors_unavailable,
    /// Any other answer.
    errors_other,
    /// Requests completed with UNSUPP.
    unsupported,
    /// Chains that were not valid requests.
    malformed,
    /// Rings that were broken by their guests.
    broken_rings,
    /// Times a ring had work after its guest was asked to kick.
    kicks,
    /// Interrupts sent.
    calls,
    /// Batches published without an interrupt, because the guest wanted none.
    calls_suppressed,
    /// Requests recovered from an endpoint that died or a connection that broke.
    resubmitted,
    /// Times the volume could not take a request at once.
    volume_refusals,
    /// Times the rings were throttled because too many requests were answered without the volume.
    throttled,
    /// Times the volume could not be opened.
    open_failures,
    /// Front ends that have connected.
    connections,
}

impl Metrics {
    /// Requests of `kind`.
    pub(crate) fn of_kind(&self, kind: Kind) -> &Counter {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
            Kind::Flush => &self.flushes,
            Kind::Discard => &self.discards,
            Kind::WriteZeroes => &self.write_zeroes,
            Kind::Other => &self.others,
        }
    }

    /// Counts a request that is answered with IOERR.
    pub(crate) fn count_error(&self, failure: Failure) {
        self.errors.add(1);
        let cause: &Counter = match failure {
            Failure::NotOpen => &self.errors_not_open,
            Failure::Volume(ErrorCode::NoSpace) => &self.errors_no_space,
            Failure::Volume(ErrorCode::Io) => &self.errors_io,
            Failure::Volume(ErrorCode::SyncFailed) => &self.errors_sync_failed,
            Failure::Volume(ErrorCode::Stale) => &self.errors_stale,
            Failure::Volume(ErrorCode::Unavailable) => &self.errors_unavailable,
            Failure::Volume(_) => &self.errors_other,
            _ => &self.errors_refused,
        };
        cause.add(1);
    }
}
