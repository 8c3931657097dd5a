//! `setinfo`: notes whose disk a volume is, as labels: Ganeti's names of volumes do not say.

use archipelago_protocol::{Error, Label, LabelChanges, LabelKey, LabelValue};

use crate::call::Owner;
use crate::volume::Volume;

/// The instance.
const INSTANCE: &str = "ganeti.instance";
/// The number that the disk had when it was made.
const DISK: &str = "ganeti.disk";

/// Notes that `volume` is a disk of `owner`. An instance that was renamed says so here, and only here.
pub(super) fn set_info(volume: &Volume<'_>, owner: &Owner) -> Result<(), Error> {
    volume.label(labels(owner)?).map(|_labelled| ())
}

fn labels(owner: &Owner) -> Result<LabelChanges, Error> {
    let mut changes = LabelChanges::default();
    changes.set(Label {
        key: INSTANCE.parse()?,
        value: owner.instance.parse()?,
    })?;
    let disk: LabelKey = DISK.parse()?;
    match owner.disk {
        Some(number) => changes.set(Label {
            key: disk,
            value: number.to_string().parse::<LabelValue>()?,
        })?,
        None => changes.unset(disk)?,
    }
    Ok(changes)
}
