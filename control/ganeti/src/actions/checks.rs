//! `verify`, `open` and `close`: they change nothing.
//!
//! A volume is owned by its writer: the session begins when a front end starts its first queue or opens a device, and excludes every other
//! writer from then on, whatever Ganeti has requested before. So opening a volume shared, as Ganeti does on both nodes while an instance
//! moves, needs no action either.

use archipelago_api::client::Client;
use archipelago_api::types::NodeStatus;
use archipelago_protocol::{Error, ErrorCode};

use crate::call::Sharing;
use crate::volume::Volume;

/// Checks that a node answers and serves its pools.
pub(super) fn verify(client: &Client) -> Result<(), Error> {
    let status: NodeStatus = client.get("/v1/node/status")?;
    for pool in &status.pools {
        if let Some(reason) = &pool.unserved {
            let message = format!("pool `{}` is not served: {reason}", pool.name);
            return Err(Error::new(ErrorCode::Unavailable, message)
                .with_hint("archipelago pool list shows the pools"));
        }
    }
    Ok(())
}

/// Checks that `volume` is there to be used.
pub(super) fn open(volume: &Volume<'_>, sharing: Sharing) -> Result<(), Error> {
    match sharing {
        Sharing::Exclusive | Sharing::Shared => volume.view().map(|_found| ()),
    }
}

/// Checks that `volume` is there.
pub(super) fn close(volume: &Volume<'_>) -> Result<(), Error> {
    volume.view().map(|_found| ())
}
