//! `setinfo`: labels a volume with its owner.

use archipelago_protocol::Error;

use super::ownership;
use crate::call::Owner;
use crate::volume::Volume;

/// Labels `volume` as a disk of `owner`. Ganeti reports the new name of a renamed instance by this call only.
pub(super) fn set_info(volume: &Volume<'_>, owner: &Owner) -> Result<(), Error> {
    let labels = ownership::of_owner(owner)?;
    volume.label(labels).map(|_labelled| ())
}
