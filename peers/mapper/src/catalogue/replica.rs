//! The catalogue in memory, at a position of the log that all nodes of the pool append to.
//!
//! Invariants
//! - What is in memory is what the log says up to the position: who has read to the same position has the same catalogue.
//! - An append lands at this position or is refused: whatever was decided on what is in memory still holds when it lands.
//! - Each writer has a generation of its own, taken by a swap of the head: no two batches of different writers are alike, torn or
//!   whole, and no two packs have one number. After an append that failed it takes another one.
//! - The checkpoint is what the log says, whoever writes it: a swap of the head takes nothing from anybody.
//! - A checkpoint is written beside changes, page by page, once half of the log is used. Changes wait for it when the log is full.

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::rc::Rc;

use archipelago_protocol::{ErrorCode, Generation, Lineage};

use super::checkpoint::{PackWriter, next_page};
use super::loading::{Loaded, SyncLog, create, first_head, load, read_head};
use super::names::Names;
use super::record::Change;
use super::turns::Turns;
use crate::failure::{Failure, Outcome};
use crate::format::Writer;
use crate::head::{CatalogueHead, StoredHead, pack_count};
use crate::log::{Content, Followed, Log};
use crate::pool::Pool;
use crate::task::{Guard, Lock};

/// Times that the head is read and swapped while others swap it: at their starts and checkpoints, which are rare.
const SWAPS_MAX: usize = 64;

/// Which part of the log ordinary changes leave free: in a pool without room for a checkpoint, nodes can still begin and end.
const SPARE_SHARE: u64 = 16;

/// What became of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Appended {
    Done,
    /// Others have appended meanwhile.
    Refused,
}

/// The checkpoint that is written beside changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Background {
    Idle,
    Running,
    /// The last one has failed, in a full pool for instance: the next is that of a change without room.
    Failed,
}

/// The catalogue in memory, and where it is stored.
#[derive(Debug)]
pub(super) struct Replica {
    pool: Rc<Pool>,
    names: RefCell<Names>,
    log: RefCell<Log>,
    /// Held while the head is read or replaced, and by a checkpoint from its beginning.
    head_lock: Lock,
    head: StoredHead<CatalogueHead>,
    background: Cell<Background>,
    /// Pack numbers taken by this mapper.
    packs: Cell<u64>,
    turns: RefCell<Turns>,
    /// This incarnation has begun.
    begun: Cell<bool>,
}

impl Replica {
    /// Of a catalogue that was not read yet.
    pub(super) fn new(pool: &Rc<Pool>) -> Self {
        let head = CatalogueHead {
            log_len: 0,
            ..first_head(pool)
        };
        Replica {
            pool: Rc::clone(pool),
            names: RefCell::default(),
            log: RefCell::new(head.log()),
            head_lock: Lock::new(&pool.scheduler),
            background: Cell::new(Background::Idle),
            head: StoredHead::new(Lineage::CATALOGUE, head, 0),
            packs: Cell::new(0),
            turns: RefCell::default(),
            begun: Cell::new(false),
        }
    }

    pub(super) fn names(&self) -> Ref<'_, Names> {
        self.names.borrow()
    }

    /// For reservations, which are not stored.
    pub(super) fn names_mut(&self) -> RefMut<'_, Names> {
        self.names.borrow_mut()
    }

    /// Of what this mapper appends.
    pub(super) fn generation(&self) -> Generation {
        self.log.borrow().generation
    }

    /// How many times to read on before the next append.
    pub(super) fn reads_before_append(&self) -> usize {
        self.turns.borrow().reads(self.generation())
    }

    /// Whether this incarnation has begun.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// # Errors
    /// [`ErrorCode::Stale`]: this incarnation has ended, by its own end or because somebody has declared it dead.
    pub(super) fn check_live(&self) -> Outcome<()> {
        let own = self.pool.config.owner;
        if !self.begun.get() || self.names().incarnations().is_live(own) {
            return Ok(());
        }
        let why = "another node has declared this one dead and taken its volumes: it has to be started again";
        Err(Failure::new(ErrorCode::Stale, why))
    }

    /// Reads the catalogue, or makes one in an empty pool, and takes a generation.
    pub(super) async fn read(&self) -> Outcome<()> {
        let _alone = self.head_lock.acquire().await;
        for _ in 0..SWAPS_MAX {
            let loaded = match load(&self.pool, SyncLog::First).await? {
                Some(loaded) => loaded,
                None => match self.create().await? {
                    Some(created) => created,
                    None => continue,
                },
            };
            self.head.refresh(loaded.head, loaded.version)?;
            let generation = Generation(loaded.head.generation.0 + 1);
            let head = CatalogueHead {
                generation,
                owner: self.pool.config.owner,
                ..loaded.head
            };
            match self.head.swap(&self.pool.disk, head).await {
                Ok(()) => {}
                Err(failure) if failure.code == ErrorCode::Stale => continue,
                Err(failure) => return Err(failure),
            }
            self.take(loaded.names, loaded.log, generation);
            return self.check_live();
        }
        let why = "other nodes replace the catalogue's head all the time";
        Err(Failure::new(ErrorCode::Unavailable, why))
    }

    /// A catalogue that holds nothing; `None`: another node was faster.
    async fn create(&self) -> Outcome<Option<Loaded>> {
        match create(&self.pool).await {
            Ok(head) => Ok(Some(Loaded {
                head,
                version: 0,
                names: Names::default(),
                log: head.log(),
            })),
            // Another node may have been making the same, and have by now.
            Err(failure) if matches!(failure.code, ErrorCode::Damaged | ErrorCode::Stale) => {
                match read_head(&self.pool).await? {
                    Some(_) => Ok(None),
                    None => Err(failure),
                }
            }
            Err(failure) => Err(failure),
        }
    }

    fn take(&self, mut names: Names, log: Log, generation: Generation) {
        names.keep_reservations(&self.names());
        if names.incarnations().is_live(self.pool.config.owner) {
            self.begun.set(true);
        }
        self.names.replace(names);
        self.log.replace(Log {
            generation,
            token: generation,
            ..log
        });
    }

    /// Reads what others have appended since. Whether they have.
    ///
    /// # Errors
    /// As [`Replica::check_live`], or why it cannot be read.
    pub(super) async fn follow(&self) -> Outcome<bool> {
        let mut log = self.log.borrow().clone();
        let before = log.position;
        match log.follow(&self.pool.disk).await? {
            Followed::Batches(batches) => {
                for (writer, content) in batches {
                    let changes = Change::decode_all(&content.payload);
                    self.apply(writer, changes.map_err(|why| log.damaged(&why))?);
                }
            }
            Followed::Overwritten => {
                self.load_again().await?;
                self.check_live()?;
                return Ok(true);
            }
        }
        let moved = log.position > before;
        self.log.borrow_mut().position = log.position;
        self.check_live()?;
        Ok(moved)
    }

    /// Reads all of it again.
    pub(super) async fn load_again(&self) -> Outcome<()> {
        let _alone = self.head_lock.acquire().await;
        let Some(loaded) = load(&self.pool, SyncLog::No).await? else {
            return Err(Failure::damaged("the head of the catalogue is missing"));
        };
        let (before, now) = (self.log.borrow().position, loaded.log.position);
        if now < before {
            return Err(loaded.log.damaged(&format!(
                "it ends at position {now}, and was read to {before} already"
            )));
        }
        self.head.refresh(loaded.head, loaded.version)?;
        self.take(loaded.names, loaded.log, self.generation());
        Ok(())
    }

    fn apply(&self, writer: Generation, changes: Vec<Change>) {
        let mut names = self.names.borrow_mut();
        changes.into_iter().for_each(|change| names.apply(change));
        if names.incarnations().is_live(self.pool.config.owner) {
            self.begun.set(true);
        }
        self.turns.borrow_mut().note(writer);
    }

    /// Makes `changes` durable as one batch, then visible, if nobody has appended since this was read.
    pub(super) async fn append(self: &Rc<Self>, changes: Vec<Change>) -> Outcome<Appended> {
        let mut payload = Writer::bare();
        changes
            .iter()
            .for_each(|change| change.encode(&mut payload));
        let content = Content::records(payload.into_bytes());
        let (batch_max, log_len) = {
            let log = self.log.borrow();
            (log.batch_max(self.pool.config.io_len_max), log.len)
        };
        if content.batch_len() > batch_max {
            return Err(Failure::new(ErrorCode::Invalid, "too many changes at once"));
        }
        let of_node = |change: &Change| matches!(change, Change::Begin(_) | Change::End { .. });
        let spare = match changes.iter().any(of_node) {
            true => 0,
            false => usize::try_from(log_len / SPARE_SHARE).unwrap_or(usize::MAX),
        };
        let has_room = || {
            let log = self.log.borrow();
            log.has_room(content.batch_len() + spare, batch_max)
        };
        if !has_room() {
            self.make_room(&has_room).await?;
        }
        match Log::append(&self.log, &self.pool.disk, &content).await {
            Ok(()) => {
                self.apply(self.generation(), changes);
                self.checkpoint_if_due();
                Ok(Appended::Done)
            }
            Err(failure) if failure.code == ErrorCode::Stale => Ok(Appended::Refused),
            Err(failure) => Err(failure),
        }
    }

    /// Sees that the log has room: by a checkpoint, unless one that is under way, or another node's, has made it.
    async fn make_room(&self, has_room: &impl Fn() -> bool) -> Outcome<()> {
        let alone = self.head_lock.acquire().await;
        if !has_room() && self.pool.config.sharing.is_shared() {
            self.refresh_head().await?;
        }
        match has_room() {
            true => Ok(()),
            false => self.write_checkpoint(&alone).await,
        }
    }

    /// Begins a checkpoint beside changes if half of the log is used.
    fn checkpoint_if_due(self: &Rc<Self>) {
        if self.background.get() != Background::Idle || !self.log.borrow().is_half_full() {
            return;
        }
        self.background.set(Background::Running);
        let replica = Rc::clone(self);
        self.pool.scheduler.spawn(async move {
            let alone = replica.head_lock.acquire().await;
            let written = replica.checkpoint_if_still_due(&alone).await;
            replica.background.set(match &written {
                Ok(()) => Background::Idle,
                Err(_) => Background::Failed,
            });
            if let Err(failure) = written {
                tracing::warn!(
                    "the catalogue has no new checkpoint yet: {}",
                    failure.message
                );
            }
        });
    }

    /// Writes a checkpoint, unless a change that had no room, or another node, was faster.
    async fn checkpoint_if_still_due(&self, alone: &Guard) -> Outcome<()> {
        if self.pool.config.sharing.is_shared() {
            self.refresh_head().await?;
        }
        let is_due = self.log.borrow().is_half_full();
        match is_due {
            true => self.write_checkpoint(alone).await,
            false => Ok(()),
        }
    }

    /// Reads the head, which another node may have swapped.
    async fn refresh_head(&self) -> Outcome<()> {
        let Some((version, bytes)) = read_head(&self.pool).await? else {
            return Err(Failure::damaged("the head of the catalogue is missing"));
        };
        let head = CatalogueHead::decode(&bytes)?;
        self.head.refresh(head, version)?;
        // What is in memory goes further: space that nobody needs any more.
        let mut log = self.log.borrow_mut();
        log.start = head.log_start.min(log.position);
        Ok(())
    }

    /// Stores everything anew, whatever there is.
    pub(super) async fn checkpoint(&self) -> Outcome<()> {
        let alone = self.head_lock.acquire().await;
        self.write_checkpoint(&alone).await
    }

    /// Writes everything, as it is now, to new packs and lets the log begin here, unless another node has done so meanwhile. The guard is
    /// that of the head.
    async fn write_checkpoint(&self, _alone: &Guard) -> Outcome<()> {
        let disk = &self.pool.disk;
        let position = self.log.borrow().position;
        let entries = {
            let mut names = self.names.borrow_mut();
            names.begin_dump();
            names.len()
        };
        let capacity = self.pool.config.pack_len_max;
        // Unique: the generation is, and a pack that was begun is never written again.
        let pack = self.generation().0 << 32 | (self.packs.get() + 1);
        let mut packs = PackWriter::new(disk, pack, capacity);
        let written = self.write_dump(&mut packs).await;
        let pack_len = packs.len();
        self.packs
            .set(self.packs.get() + pack_count(pack_len, capacity));
        let over = |old: CatalogueHead| CatalogueHead {
            owner: self.pool.config.owner,
            log_start: position,
            pack,
            pack_len,
            pack_capacity: capacity,
            entries,
            ..old
        };
        let new = over(self.head.get());
        if let Err(failure) = written {
            self.names.borrow_mut().end_dump();
            self.delete_packs(new);
            return Err(failure);
        }
        for _ in 0..SWAPS_MAX {
            let old = self.head.get();
            if old.log_start > position {
                // Another node's is newer.
                self.delete_packs(new);
                self.log.borrow_mut().start = position;
                return Ok(());
            }
            match self.head.swap(disk, over(old)).await {
                Ok(()) => {
                    self.log.borrow_mut().start = position;
                    self.pool
                        .count(|counters| counters.catalogue_checkpoints += 1);
                    if self.background.get() == Background::Failed {
                        self.background.set(Background::Idle);
                    }
                    self.delete_packs(old);
                    return Ok(());
                }
                Err(failure) if failure.code == ErrorCode::Stale => {
                    self.refresh_head().await?;
                }
                Err(failure) => return Err(failure),
            }
        }
        let why = "other nodes replace the catalogue's head all the time";
        Err(Failure::new(ErrorCode::Unavailable, why))
    }

    /// Writes what the dump has, durably.
    async fn write_dump(&self, packs: &mut PackWriter<'_>) -> Outcome<()> {
        loop {
            let page = {
                let mut names = self.names.borrow_mut();
                next_page(|| names.dump_next())
            };
            match page {
                Some(page) => packs.put(&page).await?,
                None => return packs.finish().await,
            }
        }
    }

    /// Deletes the packs of a head that is not the catalogue's, in the background.
    fn delete_packs(&self, of: CatalogueHead) {
        for old in of.packs() {
            let pool = Rc::clone(&self.pool);
            self.pool.scheduler.spawn(async move {
                if let Err(failure) = pool.disk.delete(old).await {
                    tracing::warn!("an old catalogue checkpoint stays: {}", failure.message);
                }
            });
        }
    }
}
