//! The catalogue: names, volumes, snapshots and images of the pool, all in memory, changed by durable batches.
//!
//! Invariants
//! - One batch is one atomic change; memory changes when the batch is durable. Changes go one after another.
//! - After a failed append it is not known what is durable: the next request reads the catalogue again, and stores what
//!   it found anew before anybody hears of it.
//! - What others descend from keeps its entry without a name; the last descendant takes it along (in the background).

mod attributes;
mod checkpoint;
mod names;
mod record;
mod request;
mod sweep;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use archipelago_protocol::catalogue::Kind;
use archipelago_protocol::object::ObjectId;
use archipelago_protocol::{ErrorCode, Generation, Lineage};

use crate::core::Core;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::head::{CatalogueHead, StoredHead};
use crate::log::{Content, Log, Reach};
use crate::task::{Guard, Lock, Scheduler};

#[cfg(test)]
pub(crate) use attributes::Attributes;
#[cfg(feature = "fuzzing")]
pub(crate) use checkpoint::decode as decode_page;
pub(crate) use names::Names;
pub(crate) use record::{Change, Item};
pub(crate) use request::{answer, enter_snapshot};

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unread,
    Ready,
    Failed(Failure),
}

/// The catalogue and where it is stored.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// Held while the catalogue is read or changed.
    pub(crate) lock: Lock,
    state: RefCell<State>,
    pub(crate) names: RefCell<Names>,
    log: RefCell<Log>,
    head: StoredHead<CatalogueHead>,
    /// Packs begun by this mapper.
    packs: Cell<u64>,
    tokens: Cell<u64>,
    sweeping: Cell<bool>,
}

impl Catalogue {
    pub(crate) fn new(scheduler: &Rc<Scheduler>) -> Self {
        let head = CatalogueHead {
            generation: Generation(0),
            owner: 0,
            log_number: 1,
            log_len: 0,
            log_start: 0,
            pack: 0,
            pack_len: 0,
            entries: 0,
        };
        Catalogue {
            lock: Lock::new(scheduler),
            state: RefCell::new(State::Unread),
            names: RefCell::default(),
            log: RefCell::new(log_of(&head)),
            head: StoredHead::new(Lineage::CATALOGUE, head, 0),
            packs: Cell::new(0),
            tokens: Cell::new(0),
            sweeping: Cell::new(false),
        }
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

    /// A number for a prepared snapshot that no earlier mapper gave either.
    pub(crate) fn fresh_token(&self) -> u64 {
        self.tokens.set(self.tokens.get() + 1);
        self.head.get().generation.0 << 32 | self.tokens.get()
    }

    /// Waits until the catalogue can be used, and locks it.
    pub(crate) async fn locked(&self, core: &Rc<Core>) -> Outcome<Guard> {
        let guard = self.lock.acquire().await;
        let state = self.state.borrow().clone();
        let first = state == State::Unread;
        match state {
            State::Ready => return Ok(guard),
            State::Failed(failure) if failure.code == ErrorCode::Damaged => return Err(failure),
            State::Failed(_) | State::Unread => {}
        }
        let mut read = self.read(core).await;
        if read.is_ok() && !first {
            // What a failed append left may be read and not be durable; syncing it again would prove nothing.
            read = self.checkpoint(core).await;
        }
        if let Err(failure) = read {
            // An unread catalogue stays so: what an import left behind is removed by the first read that succeeds.
            if !first || failure.code == ErrorCode::Damaged {
                *self.state.borrow_mut() = State::Failed(failure.clone());
            }
            return Err(failure);
        }
        *self.state.borrow_mut() = State::Ready;
        if first {
            self.drop_imports(core, &guard).await?;
            sweep::start(core);
        }
        Ok(guard)
    }

    /// Waits until the catalogue can be used.
    pub(crate) async fn ready(&self, core: &Rc<Core>) -> Outcome<()> {
        if self.is_ready() {
            return Ok(());
        }
        self.locked(core).await.map(drop)
    }

    /// Reads head, checkpoint and log, and takes ownership with a new generation.
    async fn read(&self, core: &Rc<Core>) -> Outcome<()> {
        let id = ObjectId::head(Lineage::CATALOGUE);
        let (mut head, version) = match core.disk.read_swapped(id).await? {
            Some((version, bytes)) => (CatalogueHead::decode(&bytes)?, version),
            None => (self.create(core).await?, 0),
        };
        // A predecessor may have died between writing and syncing: what is read must be durable.
        core.disk.sync(log_of(&head).id).await?;
        let (mut names, mut log) = stored(core, &head).await?;
        self.head.refresh(head, version)?;
        head.generation = Generation(head.generation.0 + 1);
        head.owner = core.config.owner;
        self.head.swap(&core.disk, head).await?;
        log.generation = head.generation;
        names.keep_reservations(&self.names.borrow());
        *self.names.borrow_mut() = names;
        *self.log.borrow_mut() = log;
        Ok(())
    }

    async fn create(&self, core: &Rc<Core>) -> Outcome<CatalogueHead> {
        if core.disk.holds_volumes().await? {
            return Err(Failure::damaged(
                "the head of the catalogue is missing, but the pool holds volumes",
            ));
        }
        let head = CatalogueHead {
            log_len: core.config.catalogue_log_len,
            ..self.head.get()
        };
        // A first start that was cut short leaves part of a log, or an empty one, never one with names in it.
        let left = log_of(&head);
        let whole = match core.disk.len(left.id).await {
            Ok(len) => len >= left.len,
            Err(failure) if failure.code == ErrorCode::NotFound => false,
            Err(failure) => return Err(failure),
        };
        if whole && left.is_used(&core.disk).await? {
            return Err(Failure::damaged(
                "the head of the catalogue is missing, but its log holds names",
            ));
        }
        Log::create(
            &core.disk,
            ObjectId::log(Lineage::CATALOGUE, head.log_number),
            head.log_len,
        )
        .await?;
        Ok(head)
    }

    async fn drop_imports(&self, core: &Rc<Core>, guard: &Guard) -> Outcome<()> {
        let left: Vec<Lineage> = self.names.borrow().of_kind(Kind::Importing);
        // A batch each: there are few, and a batch is bounded.
        for lineage in left {
            core.journals.borrow_mut().remove(lineage);
            self.change(core, guard, vec![Change::Doom(lineage)])
                .await?;
        }
        Ok(())
    }

    /// Makes `changes` durable as one batch, then visible. The guard is of [`Catalogue::lock`].
    pub(crate) async fn change(
        &self,
        core: &Rc<Core>,
        _guard: &Guard,
        changes: Vec<Change>,
    ) -> Outcome<()> {
        let mut payload = Writer::bare();
        changes
            .iter()
            .for_each(|change| change.encode(&mut payload));
        let content = Content::records(payload.into_bytes());
        let batch_max = self.log.borrow().batch_max(core.config.io_len_max);
        if content.batch_len() > batch_max {
            return Err(Failure::new(ErrorCode::Invalid, "too many changes at once"));
        }
        let result = self.append(core, &content, batch_max).await;
        if let Err(failure) = &result
            && !failure.code.passes()
        {
            *self.state.borrow_mut() = State::Failed(failure.clone());
        }
        result?;
        let mut names = self.names.borrow_mut();
        changes.into_iter().for_each(|change| names.apply(change));
        core.count(|counters| counters.catalogue_changes += 1);
        Ok(())
    }

    async fn append(&self, core: &Rc<Core>, content: &Content, batch_max: usize) -> Outcome<()> {
        if !self.log.borrow().has_room(content.batch_len(), batch_max) {
            self.checkpoint(core).await?;
        }
        Log::append(&self.log, &core.disk, content).await
    }
}

/// What checkpoint and log hold.
pub(crate) async fn stored(core: &Rc<Core>, head: &CatalogueHead) -> Outcome<(Names, Log)> {
    let mut names = checkpoint::read(core, head).await?;
    let mut log = log_of(head);
    for content in log
        .replay(&core.disk, Generation(0), Reach::Unknown)
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

fn log_of(head: &CatalogueHead) -> Log {
    Log {
        id: ObjectId::log(Lineage::CATALOGUE, head.log_number),
        len: head.log_len,
        start: head.log_start,
        position: head.log_start,
        generation: head.generation,
    }
}
