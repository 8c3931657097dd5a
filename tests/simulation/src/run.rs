//! A run: a plan carried out on a machine, with a look at what each crash point leaves.
//!
//! Invariants
//! - Names, lineages and stamps are counted, so a run depends on its seed and nothing else.
//! - Requests in flight together never touch the same block: an operation that would waits for the others.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest, Kind, PAGE_MAX};
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{BLOCK_SIZE, Lineage, Name, ObjectSize, SECTOR_SIZE};
use archipelago_protocol::volume::OpenMode;

use crate::machine::{CrashPoint, Link, Machine};
use crate::memory::MemoryPool;
use crate::oracle::{Change, Content, Crash, Sector, Thing, Value};
use crate::plan::{BLOCKS, Op};
use crate::trouble::Trouble;
use crate::volume::Volume;
use crate::wiring::Wiring;

const SECTORS_PER_BLOCK: usize = 8;
/// Volumes at most, so that an image is read in no time.
const VOLUMES_MAX: usize = 3;
/// Tasks that can be refused after one failure, generously.
const REFUSALS_MAX: usize = 100;
/// What a snapshot under way takes of a volume: a block that no volume has.
const SNAPSHOT_TURN: Range<u64> = u64::MAX - 1..u64::MAX;
/// Snapshots at most.
const SNAPSHOTS_MAX: usize = 4;

/// Numbers that are used once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    names: u64,
    stamps: Value,
}

type Busy = Rc<RefCell<Vec<(Name, Range<u64>)>>>;
type Open = Rc<RefCell<BTreeMap<Name, Rc<Volume>>>>;

/// A machine with its open volumes.
#[derive(Debug)]
pub struct Run {
    machine: Machine,
    link: Link,
    open: Open,
    /// Blocks that requests in flight touch.
    busy: Busy,
    counters: Counters,
}

impl Run {
    /// Starts the processes on what is left, reads everything, judges it and opens all volumes.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn recover(
        point: CrashPoint,
        memory: &MemoryPool,
        crash: Option<Crash>,
        counters: Counters,
        seed: u64,
    ) -> Result<Run, Trouble> {
        let mut machine = Machine::start(point, memory, seed);
        let link = machine.link();
        let open = Open::default();
        machine.spawn(recover(link.clone(), Rc::clone(&open), crash));
        machine.finish()?;
        Ok(Run {
            machine,
            link,
            open,
            busy: Rc::default(),
            counters,
        })
    }

    /// Takes crash points from now on.
    pub fn record(&mut self) {
        self.link.with(|shared| shared.points = Some(Vec::new()));
    }

    /// Numbers used so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What survives the processes now.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        self.link.with(|shared| shared.crash_point())
    }

    /// Lets up to `steps` backend calls complete, showing `look` every crash point on the way.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn advance(
        &mut self,
        steps: usize,
        look: &mut dyn FnMut(CrashPoint, Counters) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        for _ in 0..steps {
            let more = self.machine.step()?;
            for point in self.machine.take_points() {
                look(point, self.counters)?;
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Ends all sessions as the protocol wants it after a failure. Whatever is refused meanwhile is expected.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn abandon(&mut self) -> Result<(), Trouble> {
        self.link.with(Wiring::abandon);
        // Each refusal ends one task; there are not many.
        for _ in 0..REFUSALS_MAX {
            match self.machine.finish() {
                Err(Trouble::Refused(..)) => {}
                other => return other,
            }
        }
        Err(Trouble::Wrong("refusals do not end".to_owned()))
    }

    /// Creates and opens the first volume.
    pub fn create(&mut self) {
        let name = self.fresh_name("v");
        let lineage = self.fresh_lineage();
        self.machine.spawn(create(
            self.link.clone(),
            Rc::clone(&self.open),
            name,
            lineage,
        ));
    }

    /// Begins `op`, after what it cannot go together with has finished; what opens or closes volumes also ends here.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn begin(
        &mut self,
        op: Op,
        look: &mut dyn FnMut(CrashPoint, Counters) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let alone = !matches!(
            op,
            Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } | Op::Snapshot { .. }
        );
        if alone {
            self.advance(usize::MAX, look)?;
        }
        self.spawn(op, look)?;
        if alone {
            self.advance(usize::MAX, look)?;
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        op: Op,
        look: &mut dyn FnMut(CrashPoint, Counters) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let link = self.link.clone();
        match op {
            Op::Write {
                volume,
                first,
                count,
            } => {
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let Some(range) = clip(usize::from(first), usize::from(count), self.sectors(&name))
                else {
                    return Ok(());
                };
                self.counters.stamps += 1;
                let value = self.counters.stamps;
                let blocks = blocks_of(&range);
                let done = self.reserve(&name, blocks, look)?;
                self.machine.spawn(async move {
                    link.with(|shared| {
                        shared
                            .oracle
                            .write_started(&name, range.start, range.len(), value);
                    });
                    volume
                        .write(range.start, range.len(), value)
                        .await
                        .map_err(in_op(op))?;
                    link.with(|shared| {
                        shared
                            .oracle
                            .write_acknowledged(&name, range.start, range.len(), value);
                    });
                    done();
                    Ok(())
                });
            }
            Op::Zero {
                volume,
                first,
                count,
            } => {
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let sectors = self.sectors(&name) / SECTORS_PER_BLOCK * SECTORS_PER_BLOCK;
                let wanted = (
                    usize::from(first) * SECTORS_PER_BLOCK,
                    usize::from(count) * SECTORS_PER_BLOCK,
                );
                let Some(range) = clip(wanted.0, wanted.1, sectors) else {
                    return Ok(());
                };
                let blocks = blocks_of(&range);
                let done = self.reserve(&name, blocks.clone(), look)?;
                self.machine.spawn(async move {
                    link.with(|shared| {
                        shared
                            .oracle
                            .write_started(&name, range.start, range.len(), 0);
                    });
                    volume
                        .zero(blocks.start, blocks.end - blocks.start)
                        .await
                        .map_err(in_op(op))?;
                    link.with(|shared| {
                        shared
                            .oracle
                            .write_acknowledged(&name, range.start, range.len(), 0);
                    });
                    done();
                    Ok(())
                });
            }
            Op::Flush { volume } => {
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                self.machine.spawn(async move {
                    let submitted = link.with(|shared| shared.oracle.now());
                    let flushed = volume.flush().await;
                    link.with(|shared| match flushed {
                        Ok(()) => shared.oracle.flush_acknowledged(&name, submitted),
                        Err(Trouble::Refused(ErrorCode::SyncFailed, _)) => {
                            shared.oracle.flush_failed(&name);
                        }
                        Err(_) => {}
                    });
                    flushed.map_err(in_op(op))
                });
            }
            Op::Snapshot { volume } => {
                if self.names(is_frozen).len() >= SNAPSHOTS_MAX {
                    return Ok(());
                }
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let (snapshot, lineage) = (self.fresh_name("s"), self.fresh_lineage());
                // Control prepares one snapshot of a volume at a time.
                let done = self.reserve(&name, SNAPSHOT_TURN, look)?;
                self.machine.spawn(async move {
                    snapshot_open(link, volume, name, snapshot, lineage).await?;
                    done();
                    Ok(())
                });
            }
            Op::SnapshotClosed { volume } => {
                if self.names(is_frozen).len() >= SNAPSHOTS_MAX {
                    return Ok(());
                }
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let (snapshot, lineage) = (self.fresh_name("s"), self.fresh_lineage());
                let open = Rc::clone(&self.open);
                self.machine.spawn(async move {
                    close(&link, &open, &name, volume).await?;
                    let after = link.with(|shared| Thing {
                        lineage,
                        content: shared.oracle.frozen(&name),
                    });
                    let request = CatalogueRequest::Snapshot {
                        volume: name.clone(),
                        name: snapshot.clone(),
                        lineage,
                        created: 0,
                    };
                    change(&link, request, snapshot, Some(after)).await?;
                    reopen(&link, &open, &name).await
                });
            }
            Op::Clone { snapshot, grow } => {
                let snapshots = self.names(is_frozen);
                if snapshots.is_empty() || self.names(is_live).len() >= VOLUMES_MAX {
                    return Ok(());
                }
                let source = snapshots[usize::from(snapshot) % snapshots.len()].clone();
                let (name, lineage) = (self.fresh_name("c"), self.fresh_lineage());
                let sectors = self.sectors(&source) + usize::from(grow) * SECTORS_PER_BLOCK;
                let open = Rc::clone(&self.open);
                self.machine.spawn(async move {
                    read_and_judge(&link, &source, None).await?;
                    let after = link.with(|shared| Thing {
                        lineage,
                        content: shared.oracle.cloned(&source, sectors),
                    });
                    let size = Some(sectors as u64 * SECTOR_SIZE);
                    let request = CatalogueRequest::Clone {
                        source,
                        name: name.clone(),
                        lineage,
                        size,
                        created: 0,
                    };
                    change(&link, request, name.clone(), Some(after)).await?;
                    reopen(&link, &open, &name).await
                });
            }
            Op::Remove { thing } => {
                let names = self.names(|_| true);
                if names.len() < 2 {
                    return Ok(());
                }
                let name = names[usize::from(thing) % names.len()].clone();
                let open = Rc::clone(&self.open);
                self.machine.spawn(async move {
                    let volume = open.borrow().get(&name).cloned();
                    if let Some(volume) = volume {
                        close(&link, &open, &name, volume).await?;
                    }
                    change(
                        &link,
                        CatalogueRequest::Remove { name: name.clone() },
                        name,
                        None,
                    )
                    .await
                });
            }
            Op::Grow { volume, blocks } => {
                let Some((name, _)) = self.volume(volume) else {
                    return Ok(());
                };
                let sectors = self.sectors(&name) + usize::from(blocks) * SECTORS_PER_BLOCK;
                if sectors <= 2 * index(BLOCKS) * SECTORS_PER_BLOCK {
                    self.machine
                        .spawn(async move { resize(&link, name, sectors).await });
                }
            }
            Op::Shrink { volume, blocks } => {
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let before = self.sectors(&name);
                let after = before
                    .saturating_sub(usize::from(blocks) * SECTORS_PER_BLOCK)
                    .max(SECTORS_PER_BLOCK);
                let open = Rc::clone(&self.open);
                self.machine.spawn(async move {
                    close(&link, &open, &name, volume).await?;
                    resize(&link, name.clone(), after).await?;
                    resize(&link, name.clone(), before).await?;
                    reopen(&link, &open, &name).await
                });
            }
            Op::Reopen { volume } => {
                let Some((name, volume)) = self.volume(volume) else {
                    return Ok(());
                };
                let open = Rc::clone(&self.open);
                self.machine.spawn(async move {
                    close(&link, &open, &name, volume).await?;
                    reopen(&link, &open, &name).await
                });
            }
            Op::Verify => {
                let open = Rc::clone(&self.open);
                let names = self.names(|_| true);
                self.machine.spawn(async move {
                    for name in names {
                        let volume = open.borrow().get(&name).cloned();
                        match volume {
                            Some(volume) => judge(&link, &name, &volume, None).await?,
                            None => read_and_judge(&link, &name, None).await?,
                        }
                    }
                    Ok(())
                });
            }
        }
        Ok(())
    }

    /// Waits until nothing in flight touches `blocks`, and takes them; what comes back gives them free.
    fn reserve(
        &mut self,
        name: &Name,
        blocks: Range<u64>,
        look: &mut dyn FnMut(CrashPoint, Counters) -> Result<(), Trouble>,
    ) -> Result<impl FnOnce() + 'static, Trouble> {
        let overlaps = |(other, range): &(Name, Range<u64>)| {
            other == name && range.start < blocks.end && blocks.start < range.end
        };
        if self.busy.borrow().iter().any(overlaps) {
            self.advance(usize::MAX, look)?;
        }
        let taken = (name.clone(), blocks);
        self.busy.borrow_mut().push(taken.clone());
        let busy = Rc::clone(&self.busy);
        Ok(move || busy.borrow_mut().retain(|other| *other != taken))
    }

    fn fresh_name(&mut self, prefix: &str) -> Name {
        self.counters.names += 1;
        format!("{prefix}{:04}", self.counters.names)
            .parse()
            .expect("a legal name")
    }

    fn fresh_lineage(&mut self) -> Lineage {
        self.counters.names += 1;
        Lineage(u128::from(self.counters.names) << 64 | 0xa5a5)
    }

    fn names(&self, wanted: impl Fn(&Thing) -> bool) -> Vec<Name> {
        self.link.with(|shared| {
            let things = shared
                .oracle
                .things()
                .iter()
                .filter(|(_, thing)| wanted(thing));
            things.map(|(name, _)| name.clone()).collect()
        })
    }

    fn sectors(&self, name: &Name) -> usize {
        self.link.with(|shared| shared.oracle.thing(name).sectors())
    }

    fn volume(&self, number: u8) -> Option<(Name, Rc<Volume>)> {
        let open = self.open.borrow();
        let number = usize::from(number).checked_rem(open.len())?;
        open.iter()
            .nth(number)
            .map(|(name, volume)| (name.clone(), Rc::clone(volume)))
    }
}

fn is_frozen(thing: &Thing) -> bool {
    matches!(thing.content, Content::Frozen(_))
}

fn is_live(thing: &Thing) -> bool {
    matches!(thing.content, Content::Live(_))
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("volumes here are small")
}

fn clip(first: usize, count: usize, sectors: usize) -> Option<Range<usize>> {
    let first = first.checked_rem(sectors)?;
    Some(first..(first + count).min(sectors))
}

fn blocks_of(range: &Range<usize>) -> Range<u64> {
    (range.start / SECTORS_PER_BLOCK) as u64..range.end.div_ceil(SECTORS_PER_BLOCK) as u64
}

fn in_op(op: Op) -> impl Fn(Trouble) -> Trouble {
    move |trouble| trouble.during(format_args!("{op:?}"))
}

async fn recover(link: Link, open: Open, crash: Option<Crash>) -> Result<(), Trouble> {
    let mut found = BTreeMap::new();
    let mut after = None;
    loop {
        let list = CatalogueRequest::List {
            prefix: String::new(),
            after,
            limit: PAGE_MAX,
        };
        let CatalogueReply::Page(page) = link.catalogue(list).await else {
            return Err(Trouble::Wrong("no listing".to_owned()));
        };
        for entry in page.entries {
            found.insert(entry.name, (entry.lineage, index(entry.size / SECTOR_SIZE)));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    link.with(|shared| shared.oracle.names_after_crash(&found))?;
    let things: Vec<(Name, bool)> = link.with(|shared| {
        shared
            .oracle
            .things()
            .iter()
            .map(|(name, thing)| (name.clone(), is_live(thing)))
            .collect()
    });
    for (name, live) in things {
        if live {
            reopen(&link, &open, &name).await?;
            let volume = Rc::clone(&open.borrow()[&name]);
            judge(&link, &name, &volume, crash).await?;
        } else {
            read_and_judge(&link, &name, crash).await?;
        }
    }
    Ok(())
}

async fn create(link: Link, open: Open, name: Name, lineage: Lineage) -> Result<(), Trouble> {
    let sectors = index(BLOCKS) * SECTORS_PER_BLOCK;
    let request = CatalogueRequest::Create {
        name: name.clone(),
        lineage,
        kind: Kind::Volume,
        size: BLOCKS * BLOCK_SIZE,
        object_size: ObjectSize::MIN,
        created: 0,
    };
    let content = Content::Live(vec![Sector::default(); sectors]);
    change(
        &link,
        request,
        name.clone(),
        Some(Thing { lineage, content }),
    )
    .await?;
    reopen(&link, &open, &name).await
}

/// Opens a volume for writing.
async fn reopen(link: &Link, open: &Open, name: &Name) -> Result<(), Trouble> {
    let (lineage, sectors) = link.with(|shared| {
        let thing = shared.oracle.thing(name);
        (thing.lineage, thing.sectors())
    });
    let (volume, size) = Volume::open(link, lineage, OpenMode::Exclusive)
        .await
        .map_err(|trouble| trouble.during(format_args!("opening {name}")))?;
    if size != sectors as u64 * SECTOR_SIZE {
        return Err(Trouble::Wrong(format!(
            "{name} opens with {size} bytes instead of {sectors} sectors"
        )));
    }
    open.borrow_mut().insert(name.clone(), Rc::new(volume));
    Ok(())
}

/// Closes a volume cleanly: all of it is durable then.
async fn close(link: &Link, open: &Open, name: &Name, volume: Rc<Volume>) -> Result<(), Trouble> {
    open.borrow_mut().remove(name);
    let submitted = link.with(|shared| shared.oracle.now());
    volume
        .close()
        .await
        .map_err(|trouble| trouble.during(format_args!("closing {name}")))?;
    link.with(|shared| shared.oracle.flush_acknowledged(name, submitted));
    Ok(())
}

async fn judge(
    link: &Link,
    name: &Name,
    volume: &Volume,
    crash: Option<Crash>,
) -> Result<(), Trouble> {
    let sectors = link.with(|shared| shared.oracle.thing(name).sectors());
    let read = volume
        .read_all(sectors)
        .await
        .map_err(|trouble| trouble.during(name))?;
    Ok(link.with(|shared| shared.oracle.judge(name, &read, crash))?)
}

/// Reads a frozen thing.
async fn read_and_judge(link: &Link, name: &Name, crash: Option<Crash>) -> Result<(), Trouble> {
    let lineage = link.with(|shared| shared.oracle.thing(name).lineage);
    let (volume, _) = Volume::open(link, lineage, OpenMode::ReadOnly)
        .await
        .map_err(|trouble| trouble.during(format_args!("opening {name}")))?;
    judge(link, name, &volume, crash).await?;
    volume
        .close()
        .await
        .map_err(|trouble| trouble.during(format_args!("closing {name}")))
}

/// Changes names: what was acknowledged is durable.
async fn change(
    link: &Link,
    request: CatalogueRequest,
    name: Name,
    after: Option<Thing>,
) -> Result<(), Trouble> {
    link.with(|shared| {
        shared.oracle.change_started(Change {
            name: name.clone(),
            after,
        });
    });
    match link.catalogue(request.clone()).await {
        CatalogueReply::Failed(error) => Err(Trouble::Refused(
            error.code,
            format!("{request:?}: {error}"),
        )),
        _ => {
            link.with(|shared| shared.oracle.change_acknowledged(&name));
            Ok(())
        }
    }
}

async fn resize(link: &Link, name: Name, sectors: usize) -> Result<(), Trouble> {
    let lineage = link.with(|shared| shared.oracle.thing(&name).lineage);
    let after = link.with(|shared| {
        let before = shared.oracle.thing(&name).sectors();
        if sectors < before {
            // Asked to lose it: gone, perhaps, even where the old size survives.
            shared
                .oracle
                .write_started(&name, sectors, before - sectors, 0);
        }
        let mut thing = shared.oracle.thing(&name).clone();
        if let Content::Live(content) = &mut thing.content {
            content.resize(sectors, Sector::default());
        }
        thing
    });
    let size = sectors as u64 * SECTOR_SIZE;
    change(
        link,
        CatalogueRequest::Resize {
            name: name.clone(),
            size,
            force: true,
        },
        name,
        Some(after),
    )
    .await?;
    // As control does: the volume peer hears of it if it has the volume open.
    link.with(|wiring| wiring.resized(lineage, size));
    Ok(())
}

async fn snapshot_open(
    link: Link,
    volume: Rc<Volume>,
    name: Name,
    snapshot: Name,
    lineage: Lineage,
) -> Result<(), Trouble> {
    let prepare = CatalogueRequest::PrepareSnapshot {
        volume: name.clone(),
        name: snapshot.clone(),
        lineage,
        created: 0,
    };
    let token = match link.catalogue(prepare).await {
        CatalogueReply::Token { token } => token,
        CatalogueReply::Failed(error) if error.code == ErrorCode::InUse => return Ok(()),
        CatalogueReply::Failed(error) => {
            return Err(Trouble::Refused(error.code, format!("preparing: {error}")));
        }
        other => return Err(Trouble::Wrong(format!("preparing {snapshot}: {other:?}"))),
    };
    // Under way at the beginning: may be in it. Acknowledged before: is in it.
    let content = link.with(|shared| shared.oracle.frozen(&name));
    let change = Change {
        name: snapshot.clone(),
        after: Some(Thing {
            lineage,
            content: content.clone(),
        }),
    };
    link.with(|shared| shared.oracle.change_started(change));
    let begun = || {
        let content = either(content, link.with(|shared| shared.oracle.frozen(&name)));
        link.with(|shared| shared.oracle.change_is(&snapshot, content));
    };
    volume
        .snapshot(token, begun)
        .await
        .map_err(|trouble| trouble.during(format_args!("snapshot {snapshot}")))?;
    link.with(|shared| shared.oracle.change_acknowledged(&snapshot));
    Ok(())
}

fn either(one: Content, other: Content) -> Content {
    let (Content::Frozen(mut values), Content::Frozen(others)) = (one, other) else {
        unreachable!("snapshots are frozen")
    };
    for (values, others) in values.iter_mut().zip(others) {
        values.extend(others);
    }
    Content::Frozen(values)
}
