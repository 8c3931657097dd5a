//! A request of a volume peer that is answered later.

use archipelago_protocol::journaled::JournaledData;
use archipelago_protocol::map::MapRequest;

use crate::effect::ClientId;

/// All that is needed to take the request up again.
#[derive(Debug)]
pub(crate) struct WaitingRequest {
    pub(crate) client: ClientId,
    pub(crate) tag: u64,
    pub(crate) request: MapRequest,
    /// The blocks that a flush has the log keep.
    pub(crate) data: JournaledData,
}
