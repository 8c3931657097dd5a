//! What a request names, found and checked in the catalogue as it is.

use archipelago_protocol::catalogue::{CatalogueReply, Kind};
use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{Epoch, ErrorCode, Lineage, Name};

use crate::catalogue::{Item, Names};
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;

pub(super) fn not_found(name: &Name) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("there is no volume, snapshot or image `{name}`"),
    )
}

/// What has the name.
pub(super) fn find(names: &Names, name: &Name) -> Outcome<Item> {
    names.find(name).cloned().ok_or_else(|| not_found(name))
}

/// Refuses a name that is taken.
pub(super) fn check_free(names: &Names, name: &Name) -> Outcome<()> {
    match names.is_taken(name) {
        true => Err(Failure::new(
            ErrorCode::Exists,
            format!("the name `{name}` is taken"),
        )),
        false => Ok(()),
    }
}

/// Refuses a name that is taken, and an id that was used before.
pub(super) fn check_fresh(names: &Names, name: &Name, lineage: Lineage) -> Outcome<()> {
    check_free(names, name)?;
    check_fresh_lineage(names, lineage)
}

/// Refuses an id that was used before.
pub(super) fn check_fresh_lineage(names: &Names, lineage: Lineage) -> Outcome<()> {
    match names.is_used(lineage) {
        true => Err(Failure::new(
            ErrorCode::Exists,
            format!("the lineage {lineage} was used before"),
        )),
        false => Ok(()),
    }
}

/// Refuses a size that no volume has.
pub(super) fn check_size(bytes: u64) -> Outcome<u64> {
    check_volume_size(bytes).map_err(|error| Failure::new(error.code, error.message))
}

pub(super) fn in_use(name: &Name) -> Failure {
    Failure::new(ErrorCode::InUse, format!("`{name}` is open"))
}

/// The reply that shows an entry as it is now.
pub(super) fn entry(parts: &Parts, lineage: Lineage) -> CatalogueReply {
    let names = parts.catalogue.names();
    names
        .get(lineage)
        .and_then(|item| names.entry(item))
        .map_or(CatalogueReply::Done, CatalogueReply::Entry)
}

/// A volume that begins as the snapshot or image `source`.
pub(super) fn clone_of(
    names: &Names,
    source: &Name,
    name: &Name,
    lineage: Lineage,
    size: Option<u64>,
    created: u64,
) -> Outcome<Item> {
    let parent = find(names, source)?;
    if !matches!(parent.kind, Kind::Snapshot | Kind::Image) {
        let why =
            format!("`{source}` is neither a snapshot nor an image: make a snapshot of it first");
        return Err(Failure::new(ErrorCode::Invalid, why));
    }
    let size = check_size(size.unwrap_or(parent.size))?;
    if size < parent.size {
        let why = format!(
            "size {size} is less than the {} bytes of `{source}`",
            parent.size
        );
        return Err(Failure::new(ErrorCode::Invalid, why));
    }
    Ok(Item {
        name: Some(name.clone()),
        kind: Kind::Volume,
        lineage,
        sources: vec![parent.lineage],
        size,
        created,
        epoch: Epoch(0),
        removed: 0,
        ..parent
    })
}

/// The volume that has the name.
pub(super) fn volume_named(names: &Names, name: &Name) -> Outcome<Item> {
    let item = find(names, name)?;
    if item.kind != Kind::Volume {
        return Err(Failure::new(
            ErrorCode::Invalid,
            format!("`{name}` is not a volume"),
        ));
    }
    Ok(item)
}

/// The volume, unless its name stands for another one by now.
pub(super) fn same_volume(names: &Names, name: &Name, lineage: Lineage) -> Outcome<Item> {
    let item = volume_named(names, name)?;
    match item.lineage == lineage {
        true => Ok(item),
        false => Err(not_found(name)),
    }
}
