//! `setinfo`: notes whose disk a volume is.

use archipelago_protocol::Error;

use super::ownership;
use crate::call::Owner;
use crate::volume::Volume;

/// Notes that `volume` is a disk of `owner`. An instance that was renamed says so here, and only here.
pub(super) fn set_info(volume: &Volume<'_>, owner: &Owner) -> Result<(), Error> {
    let labels = ownership::of_owner(owner)?;
    volume.label(labels).map(|_labelled| ())
}
