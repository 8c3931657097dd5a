//! What control asks.

use std::rc::Rc;

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind};
use archipelago_protocol::ids::check_volume_size;
use archipelago_protocol::{ErrorCode, Lineage, Name, OnFull};

use super::attributes::Attributes;
use super::record::{Change, Item};
use super::{Names, sweep};
use crate::check;
use crate::core::{Core, Prepared};
use crate::failure::{Failure, Outcome};
use crate::tree::Root;
use crate::volume;

/// Answers `request`.
pub(crate) async fn answer(core: &Rc<Core>, request: CatalogueRequest) -> CatalogueReply {
    match serve(core, request).await {
        Ok(reply) => reply,
        Err(failure) => CatalogueReply::Failed(failure.into()),
    }
}

fn not_found(name: &Name) -> Failure {
    Failure::new(
        ErrorCode::NotFound,
        format!("there is no volume, snapshot or image `{name}`"),
    )
}

fn find(names: &Names, name: &Name) -> Outcome<Item> {
    names.find(name).cloned().ok_or_else(|| not_found(name))
}

fn check_free(names: &Names, name: &Name) -> Outcome<()> {
    match names.is_taken(name) {
        true => Err(Failure::new(
            ErrorCode::Exists,
            format!("the name `{name}` is taken"),
        )),
        false => Ok(()),
    }
}

fn check_fresh(names: &Names, name: &Name, lineage: Lineage) -> Outcome<()> {
    check_free(names, name)?;
    match names.is_used(lineage) {
        true => Err(Failure::new(
            ErrorCode::Exists,
            format!("the lineage {lineage} was used before"),
        )),
        false => Ok(()),
    }
}

fn check_size(bytes: u64) -> Outcome<u64> {
    check_volume_size(bytes).map_err(|error| Failure::new(error.code, error.message))
}

fn in_use(name: &Name) -> Failure {
    Failure::new(ErrorCode::InUse, format!("`{name}` is open"))
}

async fn serve(core: &Rc<Core>, request: CatalogueRequest) -> Outcome<CatalogueReply> {
    if let CatalogueRequest::Check { repair } = request {
        // Reads for itself: a damaged catalogue is what it may be asked about.
        return check::run(core, repair).await.map(CatalogueReply::Report);
    }
    core.catalogue.ready(core).await?;
    match request {
        CatalogueRequest::Create {
            name,
            lineage,
            kind,
            size,
            object_size,
            created,
            on_full,
        } => {
            if !matches!(kind, Kind::Volume | Kind::Importing) {
                return Err(Failure::new(
                    ErrorCode::Invalid,
                    "only volumes and imports are created",
                ));
            }
            let size = check_size(size)?;
            let item = Item {
                name: Some(name),
                kind,
                lineage,
                parent: None,
                size,
                object_size,
                created,
                root: Root::default(),
                attributes: Attributes::with_on_full(on_full),
            };
            enter(core, |_names| Ok(item)).await
        }
        CatalogueRequest::Clone {
            source,
            name,
            lineage,
            size,
            created,
            on_full,
        } => {
            enter(core, |names| {
                let mut clone = clone_of(names, &source, name, lineage, size, created)?;
                if let Some(on_full) = on_full {
                    clone.attributes.set_on_full(on_full);
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
        } => snapshot_closed(core, volume, name, lineage, created).await,
        CatalogueRequest::PrepareSnapshot {
            volume,
            name,
            lineage,
            created,
        } => prepare(core, &volume, name, lineage, created),
        CatalogueRequest::Publish { name } => publish(core, name).await,
        CatalogueRequest::Lookup { name } => {
            let names = core.catalogue.names.borrow();
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
        } => Ok(CatalogueReply::Page(core.catalogue.names.borrow().list(
            &prefix,
            after.as_ref(),
            limit,
        ))),
        CatalogueRequest::Resize { name, size, force } => resize(core, name, size, force).await,
        CatalogueRequest::SetOnFull { name, on_full } => set_on_full(core, name, on_full).await,
        CatalogueRequest::Rename { from, to } => rename(core, from, to).await,
        CatalogueRequest::Remove { name } => remove(core, name).await,
        CatalogueRequest::PoolInfo => {
            let [free, total] = core.disk.stat_pool().await?;
            Ok(CatalogueReply::Pool {
                free,
                total,
                entries: core.catalogue.names.borrow().len(),
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
    core: &Rc<Core>,
    make: impl FnOnce(&Names) -> Outcome<Item>,
) -> Outcome<CatalogueReply> {
    let guard = core.catalogue.locked(core).await?;
    let item = {
        let names = core.catalogue.names.borrow();
        let item = make(&names)?;
        if let Some(name) = &item.name {
            check_fresh(&names, name, item.lineage)?;
        }
        item
    };
    core.catalogue
        .change(core, &guard, vec![Change::Put(item.clone())])
        .await?;
    Ok(entry(core, item.lineage))
}

fn entry(core: &Core, lineage: Lineage) -> CatalogueReply {
    let names = core.catalogue.names.borrow();
    names
        .get(lineage)
        .and_then(|item| names.entry(item))
        .map_or(CatalogueReply::Done, CatalogueReply::Entry)
}

fn clone_of(
    names: &Names,
    source: &Name,
    name: Name,
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
        name: Some(name),
        kind: Kind::Volume,
        lineage,
        parent: Some(parent.lineage),
        size,
        created,
        ..parent
    })
}

fn snapshot_of(volume: &Item, name: Name, lineage: Lineage, created: u64, root: Root) -> Item {
    Item {
        name: Some(name),
        kind: Kind::Snapshot,
        lineage,
        parent: Some(volume.lineage),
        created,
        root,
        ..volume.clone()
    }
}

fn volume_named(names: &Names, name: &Name) -> Outcome<Item> {
    let item = find(names, name)?;
    if item.kind != Kind::Volume {
        return Err(Failure::new(
            ErrorCode::Invalid,
            format!("`{name}` is not a volume"),
        ));
    }
    Ok(item)
}

async fn snapshot_closed(
    core: &Rc<Core>,
    volume: Name,
    name: Name,
    lineage: Lineage,
    created: u64,
) -> Outcome<CatalogueReply> {
    let item = volume_named(&core.catalogue.names.borrow(), &volume)?;
    let _alone = core.lock(item.lineage).await;
    if core.is_open(item.lineage) {
        return Err(in_use(&volume));
    }
    // What was prepared for a session that never took it up: its name is free.
    core.forget_prepared(item.lineage);
    check_fresh(&core.catalogue.names.borrow(), &name, lineage)?;
    let root = volume::freeze_closed(core, item.lineage).await?;
    enter(core, |names| {
        Ok(snapshot_of(
            &volume_named(names, &volume)?,
            name,
            lineage,
            created,
            root,
        ))
    })
    .await
}

fn prepare(
    core: &Rc<Core>,
    volume: &Name,
    name: Name,
    lineage: Lineage,
    created: u64,
) -> Outcome<CatalogueReply> {
    let volume = {
        let names = core.catalogue.names.borrow();
        volume_named(&names, volume)?
    };
    core.forget_prepared(volume.lineage);
    let mut names = core.catalogue.names.borrow_mut();
    check_fresh(&names, &name, lineage)?;
    names.reserve(name.clone(), lineage);
    let token = core.catalogue.fresh_token();
    let prepared = Prepared {
        volume: volume.lineage,
        name,
        lineage,
        created,
        begun: false,
    };
    core.prepared.borrow_mut().insert(token, prepared);
    Ok(CatalogueReply::Token { token })
}

/// Gives a snapshot whose pages are durable its name: its birth.
pub(crate) async fn enter_snapshot(
    core: &Rc<Core>,
    prepared: &Prepared,
    size: u64,
    root: Root,
) -> Outcome<()> {
    let guard = core.catalogue.locked(core).await?;
    let item = {
        let names = core.catalogue.names.borrow();
        let volume = names.get(prepared.volume).ok_or_else(|| {
            Failure::new(
                ErrorCode::NotFound,
                format!("volume {} is gone", prepared.volume),
            )
        })?;
        Item {
            size,
            ..snapshot_of(
                volume,
                prepared.name.clone(),
                prepared.lineage,
                prepared.created,
                root,
            )
        }
    };
    core.catalogue
        .change(core, &guard, vec![Change::Put(item)])
        .await
}

async fn publish(core: &Rc<Core>, name: Name) -> Outcome<CatalogueReply> {
    let item = find(&core.catalogue.names.borrow(), &name)?;
    let _alone = core.lock(item.lineage).await;
    if item.kind != Kind::Importing {
        return Err(Failure::new(
            ErrorCode::Invalid,
            format!("`{name}` is not being imported"),
        ));
    }
    if core.is_open(item.lineage) {
        return Err(in_use(&name));
    }
    let root = volume::freeze_closed(core, item.lineage).await?;
    let guard = core.catalogue.locked(core).await?;
    let item = find(&core.catalogue.names.borrow(), &name)?;
    if item.kind != Kind::Importing {
        return Err(not_found(&name));
    }
    let lineage = item.lineage;
    let image = Item {
        kind: Kind::Image,
        root,
        ..item
    };
    core.catalogue
        .change(core, &guard, vec![Change::Put(image)])
        .await?;
    Ok(entry(core, lineage))
}

async fn resize(core: &Rc<Core>, name: Name, size: u64, force: bool) -> Outcome<CatalogueReply> {
    let size = check_size(size)?;
    let known = volume_named(&core.catalogue.names.borrow(), &name)?;
    let _alone = core.lock(known.lineage).await;
    let now = volume_named(&core.catalogue.names.borrow(), &name)?;
    if size < now.size {
        if core.is_open(now.lineage) {
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
        volume::shrink(core, now.lineage, size).await?;
    }
    let guard = core.catalogue.locked(core).await?;
    let now = volume_named(&core.catalogue.names.borrow(), &name)?;
    let lineage = now.lineage;
    core.catalogue
        .change(core, &guard, vec![Change::Put(Item { size, ..now })])
        .await?;
    if let Some(volume) = core.volume(lineage) {
        volume.live.borrow_mut().size = size;
    }
    Ok(entry(core, lineage))
}

async fn set_on_full(core: &Rc<Core>, name: Name, on_full: OnFull) -> Outcome<CatalogueReply> {
    let guard = core.catalogue.locked(core).await?;
    let mut volume = volume_named(&core.catalogue.names.borrow(), &name)?;
    let lineage = volume.lineage;
    // The same again costs nothing, not even room.
    if volume.attributes.on_full() != on_full {
        volume.attributes.set_on_full(on_full);
        let change = vec![Change::Put(volume)];
        core.catalogue.change(core, &guard, change).await?;
    }
    Ok(entry(core, lineage))
}

async fn rename(core: &Rc<Core>, from: Name, to: Name) -> Outcome<CatalogueReply> {
    let guard = core.catalogue.locked(core).await?;
    let item = {
        let names = core.catalogue.names.borrow();
        let item = find(&names, &from)?;
        if from != to {
            check_free(&names, &to)?;
        }
        item
    };
    let lineage = item.lineage;
    core.catalogue
        .change(
            core,
            &guard,
            vec![Change::Put(Item {
                name: Some(to),
                ..item
            })],
        )
        .await?;
    Ok(entry(core, lineage))
}

async fn remove(core: &Rc<Core>, name: Name) -> Outcome<CatalogueReply> {
    let known = find(&core.catalogue.names.borrow(), &name)?;
    let _alone = core.lock(known.lineage).await;
    let guard = core.catalogue.locked(core).await?;
    let item = find(&core.catalogue.names.borrow(), &name)?;
    if item.lineage != known.lineage {
        return Err(not_found(&name));
    }
    if core.is_open(item.lineage) {
        return Err(in_use(&name));
    }
    let lineage = item.lineage;
    let needed = core.catalogue.names.borrow().has_children(lineage);
    let change = if needed {
        Change::Put(Item { name: None, ..item })
    } else {
        Change::Doom(lineage)
    };
    core.catalogue.change(core, &guard, vec![change]).await?;
    core.forget_prepared(lineage);
    core.forget(lineage);
    sweep::start(core);
    Ok(CatalogueReply::Done)
}
