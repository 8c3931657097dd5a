//! What the operations of a run do, step by step: requests, and what the oracle is told of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use archipelago_protocol::Labels;
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind, PAGE_MAX};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{BLOCK_SIZE, Lineage, Name, ObjectSize, SECTOR_SIZE};
use archipelago_protocol::volume::{OnFull, OpenMode, VolumeOp};

use crate::machine::Link;
use crate::oracle::{After, Content, Thing, Tick, Value};
use crate::plan::{BLOCKS, FILLER};
use crate::trouble::Trouble;
use crate::volume::Volume;

/// Sectors of a block.
pub(crate) const SECTORS_PER_BLOCK: usize = 8;
/// Rounds, each with a stamp of its own, after which a log must have come to a checkpoint.
pub(crate) const FILLING_VALUES: Value = 16;
/// What a node writes after another took its pool.
const ZOMBIE: Value = Value::MAX;

/// The open volumes, oldest first.
pub(crate) type Open = Rc<RefCell<BTreeMap<Lineage, Rc<Volume>>>>;

/// An open volume of a node, for a task.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) link: Link,
    pub(crate) lineage: Lineage,
    pub(crate) volume: Rc<Volume>,
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("volumes here are small")
}

impl Guest {
    fn begun(&self, range: &Range<usize>, value: Value) -> Tick {
        let (lineage, range) = (self.lineage, range.clone());
        self.link
            .with(|wiring| wiring.oracle.write_started(lineage, range, value))
    }

    fn ended(
        &self,
        range: Range<usize>,
        started: Tick,
        durable: bool,
        result: Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let lineage = self.lineage;
        self.link.with(|wiring| {
            let oracle = &mut wiring.oracle;
            match &result {
                Ok(()) if durable => oracle.write_is_durable(lineage, range, started),
                _ => oracle.write_ended(lineage, range, started, result.is_ok()),
            }
            if let (true, Err(Trouble::Refused(ErrorCode::SyncFailed, _))) = (durable, &result) {
                oracle.sync_failed(lineage);
            }
        });
        result
    }

    pub(crate) async fn write(
        &self,
        range: Range<usize>,
        value: Value,
        durable: bool,
    ) -> Result<(), Trouble> {
        let started = self.begun(&range, value);
        let (first, count) = (range.start, range.len());
        let result = self.volume.write(first, count, value, durable).await;
        self.ended(range, started, durable, result)
    }

    pub(crate) async fn zero(&self, range: Range<usize>, how: VolumeOp) -> Result<(), Trouble> {
        let started = self.begun(&range, 0);
        let result = self.volume.zero(range.start, range.len(), how).await;
        let durable = matches!(how, VolumeOp::WriteZeroes { durable: true, .. });
        self.ended(range, started, durable, result)
    }

    fn synced(&self, submitted: Tick, result: Result<(), Trouble>) -> Result<(), Trouble> {
        let lineage = self.lineage;
        self.link.with(|wiring| match &result {
            Ok(()) => wiring.oracle.flush_acknowledged(lineage, submitted),
            Err(Trouble::Refused(ErrorCode::SyncFailed, _)) => wiring.oracle.sync_failed(lineage),
            Err(_) => {}
        });
        result
    }

    pub(crate) async fn flush(&self) -> Result<(), Trouble> {
        let submitted = self.link.with(|wiring| wiring.oracle.now());
        let result = self.volume.flush().await;
        self.synced(submitted, result)
    }

    /// Closes the volume cleanly: all of it is durable then.
    async fn close(&self, open: &Open) -> Result<(), Trouble> {
        open.borrow_mut().remove(&self.lineage);
        let submitted = self.link.with(|wiring| wiring.oracle.now());
        let result = self.volume.close().await;
        self.synced(submitted, result)
            .map_err(|trouble| trouble.during(format_args!("closing {}", self.lineage)))
    }

    pub(crate) async fn check(&self) -> Result<(), Trouble> {
        let lineage = self.lineage;
        let (sectors, since) = self.link.with(|wiring| {
            let sectors = wiring.oracle.thing(lineage).sectors();
            (sectors, wiring.oracle.now())
        });
        let during = |trouble: Trouble| trouble.during(lineage);
        let holes = self.volume.holes(sectors).await.map_err(during)?;
        let read = self.volume.read_all(sectors).await.map_err(during)?;
        let check = |oracle: &mut crate::oracle::Oracle| {
            oracle.check_holes(lineage, &holes, &read, since)?;
            oracle.check(lineage, &read, since)
        };
        Ok(self.link.with(|wiring| check(&mut wiring.oracle))?)
    }

    pub(crate) async fn reopen(self, open: Open) -> Result<(), Trouble> {
        self.close(&open).await?;
        open_for_writing(&self.link, &open, self.lineage).await
    }

    /// Writes and flushes until a checkpoint has happened.
    pub(crate) async fn checkpoint(self, values: Range<Value>) -> Result<(), Trouble> {
        let before = self.link.node(|node| node.checkpoints());
        let range = FILLER.0..FILLER.0 + FILLER.1;
        for value in values {
            self.zero(range.clone(), VolumeOp::Discard).await?;
            self.write(range.clone(), value, false).await?;
            self.flush().await?;
            if self.link.node(|node| node.checkpoints()) != before {
                self.link.with(|wiring| wiring.filling = false);
                return Ok(());
            }
        }
        Err(Trouble::Wrong(
            "a log never comes to a checkpoint".to_owned(),
        ))
    }

    /// Goes on in a node from which another took the pool: nothing that was not flushed may become so.
    pub(crate) async fn haunt(self) -> Result<(), Trouble> {
        let written = self.volume.write(0, SECTORS_PER_BLOCK, ZOMBIE, false).await;
        let flushed = self.volume.flush().await;
        if flushed.is_ok() && written.is_ok() {
            let why = "a node acknowledges a flush after another took its pool";
            return Err(Trouble::Wrong(why.to_owned()));
        }
        Ok(())
    }

    pub(crate) async fn snapshot(self, name: Name, lineage: Lineage) -> Result<(), Trouble> {
        let Guest {
            link,
            lineage: own,
            volume,
        } = self;
        let prepare = CatalogueRequest::PrepareSnapshot {
            volume: name_of(&link, own),
            name: name.clone(),
            lineage,
            created: 0,
            labels: Labels::default(),
        };
        let token = match link.catalogue(prepare).await {
            CatalogueReply::Token { token } => token,
            CatalogueReply::Failed(error) if error.code == ErrorCode::InUse => return Ok(()),
            CatalogueReply::Failed(error) => {
                return Err(Trouble::Refused(error.code, format!("preparing: {error}")));
            }
            other => return Err(Trouble::Wrong(format!("preparing {name}: {other:?}"))),
        };
        // Under way at the beginning: may be in it. Acknowledged before: is in it.
        let content = link.with(|wiring| wiring.oracle.frozen(own));
        let thing = Thing::new(name.clone(), Some(own), content.clone());
        link.with(|wiring| wiring.oracle.change_started(lineage, After::Is(thing)));
        let begun = || {
            link.with(|wiring| {
                let content = either(content, wiring.oracle.frozen(own));
                wiring.oracle.change_is(lineage, content);
            });
        };
        volume
            .snapshot(token, begun)
            .await
            .map_err(|trouble| trouble.during(format_args!("snapshot {name}")))?;
        link.with(|wiring| wiring.oracle.change_acknowledged(lineage));
        Ok(())
    }

    pub(crate) async fn snapshot_closed(
        self,
        open: Open,
        name: Name,
        lineage: Lineage,
    ) -> Result<(), Trouble> {
        self.close(&open).await?;
        let (link, own) = (&self.link, self.lineage);
        let content = link.with(|wiring| wiring.oracle.frozen(own));
        let after = After::Is(Thing::new(name.clone(), Some(own), content));
        let request = CatalogueRequest::Snapshot {
            volume: name_of(link, own),
            name,
            lineage,
            created: 0,
            labels: Labels::default(),
        };
        change(link, request, lineage, after).await?;
        open_for_writing(link, &open, own).await
    }

    pub(crate) async fn shrink(self, open: Open, sectors: usize) -> Result<(), Trouble> {
        let (link, own) = (&self.link, self.lineage);
        let before = link.with(|wiring| wiring.oracle.thing(own).sectors());
        self.close(&open).await?;
        // Asked to lose it: gone, perhaps, even where the old size survives.
        let started = self.begun(&(sectors..before), 0);
        if let Err(trouble) = resize(link, own, sectors).await {
            return self.ended(sectors..before, started, false, Err(trouble));
        }
        resize(link, own, before).await?;
        open_for_writing(link, &open, own).await
    }
}

fn either(one: Content, other: Content) -> Content {
    let (Content::Frozen(mut values), Content::Frozen(others)) = (one, other) else {
        unreachable!("snapshots are frozen")
    };
    if values != others {
        let all = Rc::make_mut(&mut values).iter_mut();
        for (values, others) in all.zip(others.iter()) {
            values.extend(others);
        }
    }
    Content::Frozen(values)
}

fn name_of(link: &Link, lineage: Lineage) -> Name {
    link.with(|wiring| wiring.oracle.thing(lineage).name.clone())
}

/// Finds out what is there, reads everything, and opens all volumes. `told`: a flush of each hears of a failed sync before.
pub(crate) async fn settle(link: Link, open: Open, told: bool) -> Result<(), Trouble> {
    let found = list(&link).await?;
    let things: Vec<(Lineage, bool)> = link.with(|wiring| {
        wiring.oracle.names_are(&found)?;
        let things = wiring.oracle.things().iter();
        Ok::<_, String>(
            things
                .map(|(lineage, thing)| (*lineage, thing.is_live()))
                .collect(),
        )
    })?;
    open.borrow_mut()
        .retain(|lineage, _| things.contains(&(*lineage, true)));
    for (lineage, live) in things {
        if !live {
            read_frozen(&link, lineage).await?;
            continue;
        }
        let known = open.borrow().get(&lineage).cloned();
        let Some(volume) = known else {
            open_for_writing(&link, &open, lineage).await?;
            guest(&link, &open, lineage).check().await?;
            continue;
        };
        let guest = Guest {
            link: link.clone(),
            lineage,
            volume,
        };
        if told {
            match guest.flush().await {
                Ok(()) | Err(Trouble::Refused(..)) => {}
                wrong => wrong?,
            }
        }
        match guest.check().await {
            // It could not be opened again after a failure; whoever uses it was told by every answer.
            Err(Trouble::Refused(..)) => {
                let _told = guest.close(&open).await;
                link.with(|wiring| wiring.oracle.sync_failed(lineage));
                open_for_writing(&link, &open, lineage).await?;
                self::guest(&link, &open, lineage).check().await?;
            }
            checked => checked?,
        }
    }
    Ok(())
}

fn guest(link: &Link, open: &Open, lineage: Lineage) -> Guest {
    Guest {
        link: link.clone(),
        lineage,
        volume: Rc::clone(&open.borrow()[&lineage]),
    }
}

async fn list(link: &Link) -> Result<BTreeMap<Lineage, (Name, usize)>, Trouble> {
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let list = CatalogueRequest::List {
            prefix: String::new(),
            after,
            limit: PAGE_MAX,
            label: None,
        };
        let page = match link.catalogue(list).await {
            CatalogueReply::Page(page) => page,
            CatalogueReply::Failed(error) => {
                return Err(Trouble::Refused(error.code, format!("listing: {error}")));
            }
            other => return Err(Trouble::Wrong(format!("listing: {other:?}"))),
        };
        for entry in page.entries {
            let sectors = index(entry.size / SECTOR_SIZE);
            found.insert(entry.lineage, (entry.name, sectors));
        }
        after = page.next;
        if after.is_none() {
            return Ok(found);
        }
    }
}

pub(crate) async fn create(
    link: Link,
    open: Open,
    name: Name,
    lineage: Lineage,
) -> Result<(), Trouble> {
    let request = CatalogueRequest::Create {
        name: name.clone(),
        lineage,
        kind: Kind::Volume,
        size: BLOCKS * BLOCK_SIZE,
        object_size: ObjectSize::MIN,
        created: 0,
        on_full: OnFull::default(),
        labels: Labels::default(),
    };
    let content = Content::zeros(index(BLOCKS) * SECTORS_PER_BLOCK);
    let after = After::Is(Thing::new(name, None, content));
    change(&link, request, lineage, after).await?;
    open_for_writing(&link, &open, lineage).await
}

async fn open_for_writing(link: &Link, open: &Open, lineage: Lineage) -> Result<(), Trouble> {
    let sectors = link.with(|wiring| wiring.oracle.thing(lineage).sectors());
    let (volume, size) = Volume::open(link, lineage, OpenMode::Exclusive)
        .await
        .map_err(|trouble| trouble.during(format_args!("opening {lineage}")))?;
    if size != sectors as u64 * SECTOR_SIZE {
        return Err(Trouble::Wrong(format!(
            "{lineage} opens with {size} bytes instead of {sectors} sectors"
        )));
    }
    open.borrow_mut().insert(lineage, Rc::new(volume));
    Ok(())
}

/// Reads a frozen thing.
pub(crate) async fn read_frozen(link: &Link, lineage: Lineage) -> Result<(), Trouble> {
    let (volume, _) = Volume::open(link, lineage, OpenMode::ReadOnly)
        .await
        .map_err(|trouble| trouble.during(format_args!("opening {lineage}")))?;
    let reader = Guest {
        link: link.clone(),
        lineage,
        volume: Rc::new(volume),
    };
    reader.check().await?;
    reader
        .volume
        .close()
        .await
        .map_err(|trouble| trouble.during(format_args!("closing {lineage}")))
}

/// Changes names: what was acknowledged is durable.
async fn change(
    link: &Link,
    request: CatalogueRequest,
    lineage: Lineage,
    after: After,
) -> Result<(), Trouble> {
    link.with(|wiring| wiring.oracle.change_started(lineage, after));
    match link.catalogue(request.clone()).await {
        CatalogueReply::Failed(error) => Err(Trouble::Refused(
            error.code,
            format!("{request:?}: {error}"),
        )),
        _ => {
            link.with(|wiring| wiring.oracle.change_acknowledged(lineage));
            Ok(())
        }
    }
}

pub(crate) async fn clone(
    link: Link,
    open: Open,
    source: Lineage,
    name: Name,
    lineage: Lineage,
    grow: usize,
) -> Result<(), Trouble> {
    read_frozen(&link, source).await?;
    let (sectors, after) = link.with(|wiring| {
        let sectors = wiring.oracle.thing(source).sectors() + grow * SECTORS_PER_BLOCK;
        let content = wiring.oracle.cloned(source, sectors);
        let thing = Thing::new(name.clone(), Some(source), content);
        (sectors, After::Is(thing))
    });
    let request = CatalogueRequest::Clone {
        source: name_of(&link, source),
        name,
        lineage,
        size: Some(sectors as u64 * SECTOR_SIZE),
        created: 0,
        on_full: None,
        labels: Labels::default(),
    };
    change(&link, request, lineage, after).await?;
    open_for_writing(&link, &open, lineage).await
}

pub(crate) async fn remove(link: Link, open: Open, lineage: Lineage) -> Result<(), Trouble> {
    let volume = open.borrow().get(&lineage).cloned();
    if let Some(volume) = volume {
        let guest = Guest {
            link: link.clone(),
            lineage,
            volume,
        };
        guest.close(&open).await?;
    }
    let name = name_of(&link, lineage);
    change(
        &link,
        CatalogueRequest::Remove { name },
        lineage,
        After::Gone,
    )
    .await
}

pub(crate) async fn rename(link: Link, lineage: Lineage, to: Name) -> Result<(), Trouble> {
    let request = CatalogueRequest::Rename {
        from: name_of(&link, lineage),
        to: to.clone(),
    };
    change(&link, request, lineage, After::Named(to)).await
}

pub(crate) async fn resize(link: &Link, lineage: Lineage, sectors: usize) -> Result<(), Trouble> {
    let size = sectors as u64 * SECTOR_SIZE;
    let request = CatalogueRequest::Resize {
        name: name_of(link, lineage),
        size,
        force: true,
    };
    change(link, request, lineage, After::Sized(sectors)).await?;
    // As control does: the volume peer hears of it if it has the volume open.
    link.node(|node| node.resized(lineage, size));
    Ok(())
}
