//! The owner of a disk, as labels of its volume: Ganeti's names of volumes do not contain it.
//!
//! | labels | the volume |
//! |---|---|
//! | `ganeti.disk` | was made by `create`, which Ganeti may have forgotten since |
//! | `ganeti.disk`, `ganeti.instance` | was a disk of that instance when Ganeti last reported it: when the instance was created or renamed |
//!
//! A label is a hint: only Ganeti's configuration knows the owner of a disk.

use archipelago_protocol::{Error, Label, LabelChanges, LabelKey, LabelValue, Labels, Name};

use crate::call::{Owner, disk_number};

/// Prefix of these labels.
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

/// Those of `labels` with our prefix.
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

/// The labels of a disk of `owner`.
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
