//! Requests of control: names, and what is done to volumes that nobody has open.

use std::rc::Rc;

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind};
use archipelago_protocol::{Epoch, ErrorCode, LabelChanges, Name, OnFull};

use super::diff::diff;
use super::named::{
    check_free, check_fresh, check_size, clone_of, entry, find, in_use, not_found, same_volume,
    volume_named,
};
use super::rollback::rollback;
use super::usage::usage;
use crate::catalogue::{
    Attributes, Change, FrozenRoot, Item, Names, PreparedSnapshot, SnapshotFields,
};
use crate::check;
use crate::failure::{Failure, Outcome};
use crate::parts::Parts;
use crate::session::{check_owner, freeze_closed, shrink};
use crate::tree::Root;

/// Answers `request`.
pub(crate) async fn answer(parts: &Rc<Parts>, request: CatalogueRequest) -> CatalogueReply {
    match serve(parts, request).await {
        Ok(reply) => reply,
        Err(failure) => CatalogueReply::Failed(failure.into()),
    }
}

async fn serve(parts: &Rc<Parts>, request: CatalogueRequest) -> Outcome<CatalogueReply> {
    if let CatalogueRequest::Check { repair } = request {
        // Reads for itself: a damaged catalogue is what it may be asked about.
        return check::run(parts, repair).await.map(CatalogueReply::Report);
    }
    parts.catalogue.ready().await?;
    match request {
        CatalogueRequest::Create {
            name,
            lineage,
            kind,
            size,
            object_size,
            created,
            on_full,
            labels,
        } => {
            if !matches!(kind, Kind::Volume | Kind::Importing) {
                return Err(Failure::new(
                    ErrorCode::Invalid,
                    "only volumes and imports are created",
                ));
            }
            let size = check_size(size)?;
            let importer = match kind {
                Kind::Importing => parts.pool.config.owner,
                _ => 0,
            };
            let item = Item {
                name: Some(name),
                kind,
                lineage,
                sources: Vec::new(),
                size,
                object_size,
                created,
                epoch: Epoch(0),
                removed: 0,
                root: Root::default(),
                attributes: Attributes::new(on_full, labels).with_importer(importer),
            };
            enter(parts, |_names| Ok(item.clone())).await
        }
        CatalogueRequest::Clone {
            source,
            name,
            lineage,
            size,
            created,
            on_full,
            labels,
        } => {
            enter(parts, |names| {
                let mut clone = clone_of(names, &source, &name, lineage, size, created)?;
                clone.attributes = clone.attributes.with_labels(labels.clone());
                if let Some(on_full) = on_full {
                    clone.attributes = clone.attributes.with_on_full(on_full);
                }
                Ok(clone)
            })
            .await
        }
        CatalogueRequest::Snapshot {
            volume,
            name,
            lineage,
            created,
            labels,
        } => {
            let asked = SnapshotFields {
                name,
                lineage,
                created,
                labels,
            };
            snapshot_closed(parts, volume, asked).await
        }
        CatalogueRequest::PrepareSnapshot {
            volume,
            name,
            lineage,
            created,
            labels,
        } => {
            let asked = SnapshotFields {
                name,
                lineage,
                created,
                labels,
            };
            prepare(parts, &volume, asked)
        }
        CatalogueRequest::Publish { name } => publish(parts, name).await,
        CatalogueRequest::Lookup { name } => {
            let names = parts.catalogue.names();
            let item = names.find(&name).ok_or_else(|| not_found(&name))?;
            names
                .entry(item)
                .map(CatalogueReply::Entry)
                .ok_or_else(|| not_found(&name))
        }
        CatalogueRequest::List {
            prefix,
            after,
            limit,
            label,
        } => {
            let names = parts.catalogue.names();
            let page = names.list(&prefix, after.as_ref(), limit, label.as_ref());
            Ok(CatalogueReply::Page(page))
        }
        CatalogueRequest::Resize { name, size, force } => resize(parts, name, size, force).await,
        CatalogueRequest::Set {
            name,
            on_full,
            labels,
        } => set(parts, name, on_full, labels).await,
        CatalogueRequest::Rename { from, to } => rename(parts, from, to).await,
        CatalogueRequest::Rollback {
            name,
            snapshot,
            lineage,
        } => rollback(parts, &name, &snapshot, lineage).await,
        CatalogueRequest::Remove { name } => remove(parts, name).await,
        CatalogueRequest::Fence { incarnation } => {
            parts.catalogue.fence(incarnation.0).await?;
            Ok(CatalogueReply::Done)
        }
        CatalogueRequest::Usage { name } => {
            let item = find(&parts.catalogue.names(), &name)?;
            usage(parts, &item).await.map(CatalogueReply::Usage)
        }
        CatalogueRequest::Diff {
            name,
            from,
            start,
            limit,
        } => {
            let page = diff(parts, &name, from.as_ref(), start, limit).await?;
            Ok(CatalogueReply::Diff(page))
        }
        CatalogueRequest::PoolInfo => {
            let [free, total] = parts.pool.disk.stat_pool().await?;
            let names = parts.catalogue.names();
            Ok(CatalogueReply::Pool {
                free,
                total,
                entries: names.len(),
                provisioned: names.provisioned(),
            })
        }
        CatalogueRequest::Check { .. } => Err(Failure::new(
            ErrorCode::Internal,
            "a check is begun without the catalogue",
        )),
    }
}

/// Puts a new item that `make` derives from the catalogue as it is.
async fn enter(
    parts: &Rc<Parts>,
    make: impl Fn(&Names) -> Outcome<Item>,
) -> Outcome<CatalogueReply> {
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let item = make(names)?;
        if let Some(name) = &item.name {
            check_fresh(names, name, item.lineage)?;
        }
        item.attributes.check_len()?;
        let lineage = item.lineage;
        Ok((vec![Change::Put(item)], lineage))
    };
    let lineage = parts.catalogue.change(&guard, decide).await?;
    Ok(entry(parts, lineage))
}

async fn snapshot_closed(
    parts: &Rc<Parts>,
    volume: Name,
    asked: SnapshotFields,
) -> Outcome<CatalogueReply> {
    let item = volume_named(&parts.catalogue.names(), &volume)?;
    let _alone = parts.volumes.lock(item.lineage).await;
    if parts.volumes.is_open(item.lineage) {
        return Err(in_use(&volume));
    }
    // What was prepared for a session that never took it up: its name is free.
    parts.catalogue.forget_prepared(item.lineage);
    check_fresh(&parts.catalogue.names(), &asked.name, asked.lineage)?;
    let frozen = freeze_closed(parts, item.lineage).await?;
    let root = frozen.root;
    let entered = enter(parts, |names| {
        let now = same_volume(names, &volume, item.lineage)?;
        Ok(now.snapshot(asked.clone(), root))
    })
    .await;
    frozen.release(parts).await;
    entered
}

fn prepare(parts: &Rc<Parts>, volume: &Name, asked: SnapshotFields) -> Outcome<CatalogueReply> {
    let volume = {
        let names = parts.catalogue.names();
        volume_named(&names, volume)?
    };
    parts.catalogue.forget_prepared(volume.lineage);
    let (name, lineage) = (asked.name.clone(), asked.lineage);
    // Before anything of the map is frozen for it.
    volume
        .attributes
        .with_labels(asked.labels.clone())
        .check_len()?;
    let snapshot = PreparedSnapshot {
        volume: volume.lineage,
        snapshot: asked,
    };
    let check = |names: &Names| check_fresh(names, &name, lineage);
    let token = parts.catalogue.prepare_snapshot(snapshot, check)?;
    Ok(CatalogueReply::Token { token })
}

async fn publish(parts: &Rc<Parts>, name: Name) -> Outcome<CatalogueReply> {
    let item = find(&parts.catalogue.names(), &name)?;
    let _alone = parts.volumes.lock(item.lineage).await;
    if item.kind != Kind::Importing {
        return Err(Failure::new(
            ErrorCode::Invalid,
            format!("`{name}` is not being imported"),
        ));
    }
    if parts.volumes.is_open(item.lineage) {
        return Err(in_use(&name));
    }
    let frozen = freeze_closed(parts, item.lineage).await?;
    let FrozenRoot { root, epoch } = frozen.root;
    let lineage = item.lineage;
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let item = find(names, &name)?;
        if item.kind != Kind::Importing || item.lineage != lineage {
            return Err(not_found(&name));
        }
        let image = Item {
            kind: Kind::Image,
            epoch,
            root,
            attributes: item.attributes.with_importer(0),
            ..item
        };
        Ok((vec![Change::Put(image)], ()))
    };
    let changed = parts.catalogue.change(&guard, decide).await;
    drop(guard);
    frozen.release(parts).await;
    changed?;
    Ok(entry(parts, lineage))
}

async fn resize(parts: &Rc<Parts>, name: Name, size: u64, force: bool) -> Outcome<CatalogueReply> {
    let size = check_size(size)?;
    let known = volume_named(&parts.catalogue.names(), &name)?;
    let _alone = parts.volumes.lock(known.lineage).await;
    let now = same_volume(&parts.catalogue.names(), &name, known.lineage)?;
    check_owner(parts, &now).await?;
    if size < now.size {
        if parts.volumes.is_open(now.lineage) {
            return Err(in_use(&name));
        }
        if !force {
            let why = format!(
                "shrinking `{name}` from {} to {size} bytes needs force",
                now.size
            );
            return Err(Failure::new(ErrorCode::Invalid, why));
        }
        // The map first: a crash in between leaves zeros at the old end, never old data behind a new one.
        shrink(parts, now.lineage, size).await?;
    }
    let lineage = known.lineage;
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let now = same_volume(names, &name, lineage)?;
        Ok((vec![Change::Put(Item { size, ..now })], ()))
    };
    parts.catalogue.change(&guard, decide).await?;
    if let Some(volume) = parts.volumes.get(lineage) {
        volume.set_size(size);
    }
    Ok(entry(parts, lineage))
}

async fn set(
    parts: &Rc<Parts>,
    name: Name,
    on_full: Option<OnFull>,
    labels: LabelChanges,
) -> Outcome<CatalogueReply> {
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let item = match on_full {
            Some(_) => volume_named(names, &name)?,
            None => find(names, &name)?,
        };
        let mut all = item.attributes.labels().cloned().unwrap_or_default();
        all.apply(&labels)
            .map_err(|error| Failure::new(error.code, error.message))?;
        let on_full = on_full.unwrap_or_else(|| item.attributes.on_full());
        let attributes = item.attributes.with_labels(all).with_on_full(on_full);
        let lineage = item.lineage;
        // The same again costs nothing, not even room.
        if attributes == item.attributes {
            return Ok((Vec::new(), lineage));
        }
        attributes.check_len()?;
        Ok((vec![Change::Put(Item { attributes, ..item })], lineage))
    };
    let lineage = parts.catalogue.change(&guard, decide).await?;
    Ok(entry(parts, lineage))
}

async fn rename(parts: &Rc<Parts>, from: Name, to: Name) -> Outcome<CatalogueReply> {
    let guard = parts.catalogue.locked().await?;
    let decide = |names: &Names| {
        let item = find(names, &from)?;
        if from != to {
            check_free(names, &to)?;
        }
        let lineage = item.lineage;
        let name = Some(to.clone());
        Ok((vec![Change::Put(Item { name, ..item })], lineage))
    };
    let lineage = parts.catalogue.change(&guard, decide).await?;
    Ok(entry(parts, lineage))
}

async fn remove(parts: &Rc<Parts>, name: Name) -> Outcome<CatalogueReply> {
    let known = find(&parts.catalogue.names(), &name)?;
    let _alone = parts.volumes.lock(known.lineage).await;
    check_owner(parts, &known).await?;
    let guard = parts.catalogue.locked().await?;
    let (lineage, own) = (known.lineage, parts.pool.config.owner);
    let decide = |names: &Names| {
        let item = find(names, &name)?;
        if item.lineage != lineage {
            return Err(not_found(&name));
        }
        if parts.volumes.is_open(lineage) {
            return Err(in_use(&name));
        }
        // Another node may just be opening it: the collection looks who owns it when nobody finds it any more. And it needs the map
        // of a snapshot, to find what that had alone.
        let needed = names.has_children(lineage)
            || item.kind == Kind::Snapshot
            || names.incarnations().others(own).next().is_some();
        let change = match needed {
            true => Change::Put(Item { name: None, ..item }),
            false => Change::Delete { lineage, by: own },
        };
        Ok((vec![change], ()))
    };
    parts.catalogue.change(&guard, decide).await?;
    parts.catalogue.forget_prepared(lineage);
    parts.forget(lineage);
    parts.catalogue.want_collection();
    Ok(CatalogueReply::Done)
}
