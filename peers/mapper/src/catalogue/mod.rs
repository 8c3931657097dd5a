//! The catalogue: names, volumes, snapshots and images of the pool, all in memory, changed by durable batches.
//!
//! Invariants
//! - One batch is one atomic change; memory changes when the batch is durable. Changes go one after another.
//! - After a failed append it is not known what is durable: the next request reads the catalogue again, and stores what
//!   it found anew before it answers anybody.
//! - What others descend from keeps its entry without a name; the last descendant takes it along (in the background).

mod attributes;
mod checkpoint;
mod names;
mod prepared;
mod record;

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Generation, Lineage};

use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::head::{CatalogueHead, StoredHead, pack_count};
use crate::log::{Content, Log, Reach};
use crate::pool::Pool;
use crate::task::{Guard, Lock};

use prepared::PreparedSnapshots;

pub(crate) use attributes::Attributes;
#[cfg(feature = "fuzzing")]
pub(crate) use checkpoint::decode as decode_page;
pub(crate) use names::Names;
pub(crate) use prepared::PreparedSnapshot;
pub(crate) use record::{Change, FrozenRoot, Item, SnapshotFields};

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unread,
    Ready,
    Failed(Failure),
}

/// Whether entries and objects that nobody needs any more are to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collection {
    Idle,
    Due,
    Running,
}

/// The catalogue and where it is stored.
#[derive(Debug)]
pub(crate) struct Catalogue {
    pool: Rc<Pool>,
    /// Held while the catalogue is read or changed.
    lock: Lock,
    state: RefCell<State>,
    names: RefCell<Names>,
    prepared: PreparedSnapshots,
    log: RefCell<Log>,
    head: StoredHead<CatalogueHead>,
    /// Pack numbers taken by this mapper.
    packs: Cell<u64>,
    collection: Cell<Collection>,
}

impl Catalogue {
    pub(crate) fn new(pool: &Rc<Pool>) -> Self {
        let head = CatalogueHead {
            generation: Generation(0),
            owner: 0,
            log_number: 1,
            log_len: 0,
            log_start: 0,
            pack: 0,
            pack_len: 0,
            pack_capacity: 0,
            entries: 0,
            compatible: 0,
        };
        Catalogue {
            pool: Rc::clone(pool),
            lock: Lock::new(&pool.scheduler),
            state: RefCell::new(State::Unread),
            names: RefCell::default(),
            prepared: PreparedSnapshots::default(),
            log: RefCell::new(head.log()),
            head: StoredHead::new(Lineage::CATALOGUE, head, 0),
            packs: Cell::new(0),
            collection: Cell::new(Collection::Idle),
        }
    }

    /// What there is. Not held across an await.
    pub(crate) fn names(&self) -> Ref<'_, Names> {
        self.names.borrow()
    }

    /// Keeps changes away, whatever the catalogue's state.
    pub(crate) async fn stand_still(&self) -> Guard {
        self.lock.acquire().await
    }

    pub(crate) fn is_ready(&self) -> bool {
        *self.state.borrow() == State::Ready
    }

    /// Whether nobody has asked for it yet.
    pub(crate) fn is_unread(&self) -> bool {
        *self.state.borrow() == State::Unread
    }

    /// Why it cannot be used, if it cannot.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match &*self.state.borrow() {
            State::Failed(failure) => Some(failure.clone()),
            State::Unread | State::Ready => None,
        }
    }

    /// Promises a snapshot that `check` finds possible; its token.
    pub(crate) fn prepare_snapshot(
        &self,
        snapshot: PreparedSnapshot,
        check: impl FnOnce(&Names) -> Outcome<()>,
    ) -> Outcome<u64> {
        let mut names = self.names.borrow_mut();
        check(&names)?;
        let generation = self.head.get().generation.0;
        Ok(self.prepared.add(&mut names, generation, snapshot))
    }

    /// Whether a snapshot of `volume` was promised by `token`.
    pub(crate) fn is_prepared(&self, token: u64, volume: Lineage) -> bool {
        let prepared = self.prepared.get(token);
        prepared.is_some_and(|snapshot| snapshot.volume == volume)
    }

    /// `volume` begins the snapshot of `token`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] or [`ErrorCode::InUse`].
    pub(crate) fn begin_prepared(&self, token: u64, volume: Lineage) -> Result<(), ErrorCode> {
        self.prepared.begin(token, volume)
    }

    /// Forgets a prepared snapshot, made or given up.
    pub(crate) fn end_prepared(&self, token: u64) {
        self.prepared.end(&mut self.names.borrow_mut(), token);
    }

    /// Forgets what was prepared for a volume and never begun.
    pub(crate) fn forget_prepared(&self, volume: Lineage) {
        self.prepared.forget(&mut self.names.borrow_mut(), volume);
    }

    /// Gives the prepared snapshot of `token`, whose pages are durable, its name: its birth.
    pub(crate) async fn enter_snapshot(
        &self,
        token: u64,
        size: u64,
        frozen: FrozenRoot,
    ) -> Outcome<()> {
        // The session may have ended meanwhile, and with it the reservation of the name.
        let prepared = self.prepared.get(token).ok_or_else(|| {
            let why = format!("there is no snapshot with token {token}");
            Failure::new(ErrorCode::NotFound, why)
        })?;
        let guard = self.locked().await?;
        let item = {
            let names = self.names();
            let volume = names.get(prepared.volume).ok_or_else(|| {
                let why = format!("volume {} is gone", prepared.volume);
                Failure::new(ErrorCode::NotFound, why)
            })?;
            Item {
                size,
                ..volume.snapshot(prepared.snapshot, frozen)
            }
        };
        item.attributes.check_len()?;
        self.change(&guard, vec![Change::Put(item)]).await
    }

    /// There may be something to remove.
    pub(crate) fn want_collection(&self) {
        if self.collection.get() == Collection::Idle {
            self.collection.set(Collection::Due);
        }
    }

    /// Whether a collection has to be started now; it is under way then, until [`Catalogue::collection_ended`].
    pub(crate) fn take_collection(&self) -> bool {
        let due = self.collection.get() == Collection::Due;
        if due {
            self.collection.set(Collection::Running);
        }
        due
    }

    pub(crate) fn collection_ended(&self) {
        self.collection.set(Collection::Idle);
    }

    /// Waits until the catalogue can be used, and locks it.
    pub(crate) async fn locked(&self) -> Outcome<Guard> {
        let guard = self.lock.acquire().await;
        let state = self.state.borrow().clone();
        let first = state == State::Unread;
        match state {
            State::Ready => return Ok(guard),
            // What is stored stays so, and so does a successor: whoever was replaced takes nothing back.
            State::Failed(failure)
                if failure.code.is_of_stored() || failure.code == ErrorCode::Stale =>
            {
                return Err(failure);
            }
            State::Failed(_) | State::Unread => {}
        }
        let mut read = self.read().await;
        if read.is_ok() && !first {
            // What a failed append left may be read and not be durable; syncing it again would prove nothing.
            read = self.checkpoint().await;
        }
        if let Err(failure) = read {
            // An unread catalogue stays so: what an import left behind is removed by the first read that succeeds.
            if !first || failure.code.is_of_stored() {
                *self.state.borrow_mut() = State::Failed(failure.clone());
            }
            return Err(failure);
        }
        *self.state.borrow_mut() = State::Ready;
        if first {
            self.drop_imports(&guard).await?;
            self.want_collection();
        }
        Ok(guard)
    }

    /// Waits until the catalogue can be used.
    pub(crate) async fn ready(&self) -> Outcome<()> {
        if self.is_ready() {
            return Ok(());
        }
        self.locked().await.map(drop)
    }

    /// Reads head, checkpoint and log, and takes ownership with a new generation.
    async fn read(&self) -> Outcome<()> {
        let id = ObjectId::head(Lineage::CATALOGUE);
        let (mut head, version) = match self.pool.disk.read_swapped(id).await? {
            Some((version, bytes)) => (CatalogueHead::decode(&bytes)?, version),
            None => (self.create().await?, 0),
        };
        let next = Generation(head.generation.0 + 1);
        // Its predecessor may live: nothing that it appends from here on is lost, because it is refused.
        head.log().seal(&self.pool.disk, next).await?;
        // A predecessor may have died between writing and syncing: what is read must be durable.
        self.pool.disk.sync(head.log().id).await?;
        let (mut names, mut log) = stored(&self.pool, &head).await?;
        self.head.refresh(head, version)?;
        head.generation = next;
        head.owner = self.pool.config.owner;
        self.head.swap(&self.pool.disk, head).await?;
        log.generation = head.generation;
        log.token = head.generation;
        names.keep_reservations(&self.names.borrow());
        *self.names.borrow_mut() = names;
        *self.log.borrow_mut() = log;
        Ok(())
    }

    async fn create(&self) -> Outcome<CatalogueHead> {
        if self.pool.disk.holds_volumes().await? {
            return Err(Failure::damaged(
                "the head of the catalogue is missing, but the pool holds volumes",
            ));
        }
        let head = CatalogueHead {
            log_len: self.pool.config.catalogue_log_len,
            ..self.head.get()
        };
        // A first start that was cut short leaves part of a log, or an empty one, never one with names in it.
        let left = head.log();
        let whole = match self.pool.disk.len(left.id).await {
            Ok(len) => len >= left.len,
            Err(failure) if failure.code == ErrorCode::NotFound => false,
            Err(failure) => return Err(failure),
        };
        if whole && left.is_used(&self.pool.disk).await? {
            return Err(Failure::damaged(
                "the head of the catalogue is missing, but its log holds names",
            ));
        }
        Log::create(
            &self.pool.disk,
            ObjectId::log(Lineage::CATALOGUE, head.log_number),
            head.log_len,
        )
        .await?;
        Ok(head)
    }

    async fn drop_imports(&self, guard: &Guard) -> Outcome<()> {
        let left: Vec<Lineage> = self.names.borrow().of_kind(Kind::Importing);
        // A batch each: there are few, and a batch is bounded.
        for lineage in left {
            self.pool.journals.remove(lineage);
            self.change(guard, vec![Change::Delete(lineage)]).await?;
        }
        Ok(())
    }

    /// Makes `changes` durable as one batch, then visible. The guard is of [`Catalogue::lock`].
    pub(crate) async fn change(&self, _guard: &Guard, changes: Vec<Change>) -> Outcome<()> {
        let mut payload = Writer::bare();
        changes
            .iter()
            .for_each(|change| change.encode(&mut payload));
        let content = Content::records(payload.into_bytes());
        let batch_max = self.log.borrow().batch_max(self.pool.config.io_len_max);
        if content.batch_len() > batch_max {
            return Err(Failure::new(ErrorCode::Invalid, "too many changes at once"));
        }
        let result = self.append(&content, batch_max).await;
        if let Err(failure) = &result
            && !failure.code.passes()
        {
            *self.state.borrow_mut() = State::Failed(failure.clone());
        }
        result?;
        let mut names = self.names.borrow_mut();
        changes.into_iter().for_each(|change| names.apply(change));
        self.pool.count(|counters| counters.catalogue_changes += 1);
        Ok(())
    }

    async fn append(&self, content: &Content, batch_max: usize) -> Outcome<()> {
        if !self.log.borrow().has_room(content.batch_len(), batch_max) {
            self.checkpoint().await?;
        }
        Log::append(&self.log, &self.pool.disk, content).await
    }

    /// Writes everything to new packs and lets the log begin anew. The caller holds the lock.
    async fn checkpoint(&self) -> Outcome<()> {
        let old = self.head.get();
        let pages = checkpoint::pages(&self.names());
        let pack_len = pages.iter().map(|piece| piece.len() as u64).sum();
        let pack_capacity = self.pool.config.pack_len_max;
        // Unique: the generation is, and a pack that was begun is never written again.
        let pack = old.generation.0 << 32 | (self.packs.get() + 1);
        let count = pack_count(pack_len, pack_capacity);
        self.packs.set(self.packs.get() + count);
        let position = self.log.borrow().position;
        let entries = self.names.borrow().len();
        let head = CatalogueHead {
            log_start: position,
            pack,
            pack_len,
            pack_capacity,
            entries,
            ..old
        };
        checkpoint::write(&self.pool.disk, &head, &pages).await?;
        self.head.swap(&self.pool.disk, head).await?;
        self.log.borrow_mut().start = position;
        self.pool
            .count(|counters| counters.catalogue_checkpoints += 1);
        for old in old.packs() {
            let pool = Rc::clone(&self.pool);
            self.pool.scheduler.spawn(async move {
                if let Err(failure) = pool.disk.delete(old).await {
                    tracing::warn!("an old catalogue checkpoint stays: {}", failure.message);
                }
            });
        }
        Ok(())
    }
}

/// What checkpoint and log hold.
pub(crate) async fn stored(pool: &Pool, head: &CatalogueHead) -> Outcome<(Names, Log)> {
    let mut names = checkpoint::read(&pool.disk, head).await?;
    let mut log = head.log();
    for content in log
        .replay(&pool.disk, Generation(0), Reach::Unknown)
        .await?
    {
        for change in Change::decode_all(&content.payload).map_err(|why| log.damaged(&why))? {
            names.apply(change);
        }
    }
    names
        .check()
        .map_err(|why| Failure::damaged(format!("the catalogue contradicts itself: {why}")))?;
    Ok((names, log))
}
