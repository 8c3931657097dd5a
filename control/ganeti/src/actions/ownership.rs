//! Whose disk a volume is, as labels of it: Ganeti's names of volumes do not say.
//!
//! | labels | the volume |
//! |---|---|
//! | `ganeti.disk` | was made by `create`, which Ganeti may have forgotten since |
//! | `ganeti.disk`, `ganeti.instance` | was a disk of that instance when Ganeti last said so: at its creation, and when the instance is renamed |
//!
//! A label is a hint: Ganeti's configuration alone knows what is a disk of whom.

use archipelago_protocol::{Error, Label, LabelChanges, LabelKey, LabelValue, Labels, Name};

use crate::call::{Owner, disk_number};

/// What our labels begin with.
const PREFIX: &str = "ganeti.";
/// The instance.
const INSTANCE: &str = "ganeti.instance";
/// The number that the disk had when it was made.
const DISK: &str = "ganeti.disk";

/// Labels of `volume` when it is made.
pub(super) fn of_new(volume: &Name) -> Result<Labels, Error> {
    let mut labels = Labels::default();
    labels.apply(&number(disk_number(volume))?)?;
    Ok(labels)
}

/// Those of `labels` that are ours.
pub(super) fn ours(labels: &Labels) -> Result<Labels, Error> {
    let ours = labels
        .iter()
        .filter(|(key, _)| key.as_str().starts_with(PREFIX));
    let ours = ours.map(|(key, value)| Label {
        key: key.clone(),
        value: value.clone(),
    });
    Labels::from_list(ours.collect())
}

/// What is noted of a disk of `owner`.
pub(super) fn of_owner(owner: &Owner) -> Result<LabelChanges, Error> {
    let mut changes = number(owner.disk)?;
    changes.set(Label {
        key: INSTANCE.parse()?,
        value: owner.instance.parse()?,
    })?;
    Ok(changes)
}

fn number(disk: Option<u32>) -> Result<LabelChanges, Error> {
    let mut changes = LabelChanges::default();
    let key: LabelKey = DISK.parse()?;
    match disk {
        Some(number) => changes.set(Label {
            key,
            value: number.to_string().parse::<LabelValue>()?,
        })?,
        None => changes.unset(key)?,
    }
    Ok(changes)
}
