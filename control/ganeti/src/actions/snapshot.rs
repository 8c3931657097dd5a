//! `snapshot`: freezes the present state of a volume, for an export.

use archipelago_protocol::{Error, ErrorCode, Name};

use super::ownership;
use crate::volume::Volume;

/// Makes `snapshot` of `volume`, a disk of the same instance.
pub(super) fn snapshot(volume: &Volume<'_>, snapshot: &Name) -> Result<(), Error> {
    let labels = ownership::ours(&volume.view()?.entry.labels)?;
    let made = volume.snapshot(snapshot, labels);
    made.map(|_made| ()).map_err(|error| match error.code {
        // Ganeti always uses the same name, and removes the snapshot at the end of an export.
        ErrorCode::Exists => error.with_hint(format!(
            "left by an interrupted export? `archipelago volume detach {snapshot}`, `archipelago volume remove {snapshot}`"
        )),
        _ => error,
    })
}
