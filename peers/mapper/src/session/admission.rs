//! Whether a client may ask something.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::{FLAG_WRITE, MapOp, MapRequest};

use crate::effect::ClientId;
use crate::parts::Parts;
use crate::sessions::Session;
use crate::volume::Volume;

/// The session of a request, if it may ask that.
pub(super) fn admit(
    parts: &Parts,
    client: ClientId,
    request: &MapRequest,
) -> Result<Session, ErrorCode> {
    let session = parts.sessions.of_client(request.handle, client);
    let session = session.ok_or(ErrorCode::NotFound)?;
    if let Some(code) = session.volume.access.poisoned()
        && !matches!(request.op, MapOp::Close | MapOp::Abandon)
    {
        return Err(code);
    }
    let reads = match request.op {
        MapOp::Locate => request.flags & FLAG_WRITE == 0,
        op => matches!(op, MapOp::Close | MapOp::Lineage | MapOp::Status),
    };
    if session.write || reads {
        Ok(session)
    } else {
        Err(ErrorCode::ReadOnly)
    }
}

/// Whether `request` has to wait until what is due was written.
pub(super) fn waits_for_begin(volume: &Volume, request: &MapRequest) -> bool {
    let reads = match request.op {
        MapOp::Locate => request.flags & FLAG_WRITE == 0,
        op => matches!(
            op,
            MapOp::Lineage | MapOp::Status | MapOp::Close | MapOp::Abandon
        ),
    };
    !reads && volume.start.due().is_some()
}
