//! The catalogue: names, volumes, snapshots and images of the pool, and who serves it, all in memory, changed by durable batches.
//!
//! All nodes of a pool share one log: a change is decided on what was read, and lands only if nobody has appended since; otherwise
//! what came between is read, and it is decided again. There is no leader. A start takes nothing from another node.
//!
//! Invariants
//! - One batch is one atomic change; memory changes when the batch is durable. Changes of a node go one after another.
//! - In a pool that several nodes serve, the log is read on before anything is answered, so that an answer shows all that was
//!   answered to anybody before the request came. In a pool that one node serves, nothing is read.
//! - After a failed append it is not known what is durable: the next request reads the catalogue again, and stores what
//!   it found anew before it answers anybody.
//! - What others descend from keeps its entry without a name; the last descendant takes it along (in the background).
//!
//! | module | what |
//! |---|---|
//! | `replica` | names in memory, at a position of the log; appends, checkpoints |
//! | `loading` | from the pool into memory |
//! | `turns` | who appends next, if several do all the time |
//! | `checkpoint`, `record`, `attributes` | what is stored |
//! | `names`, `incarnations`, `prepared` | what is in memory |
//! | `dump` | what was in memory when a checkpoint began |

mod attributes;
mod checkpoint;
mod dump;
mod incarnations;
mod loading;
mod names;
mod prepared;
mod record;
mod replica;
mod turns;

use std::cell::{Cell, Ref, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use archipelago_protocol::{ErrorCode, Lineage};

use crate::failure::{Failure, Outcome};
use crate::pool::Pool;
use crate::task::{Guard, Lock};

use prepared::PreparedSnapshots;
use replica::{Appended, Replica};

pub(crate) use attributes::Attributes;
#[cfg(feature = "fuzzing")]
pub(crate) use checkpoint::decode as decode_page;
pub(crate) use incarnations::{End, Incarnation};
pub(crate) use loading::{Loaded, SyncLog, load};
pub(crate) use names::Names;
pub(crate) use prepared::PreparedSnapshot;
pub(crate) use record::{Change, FrozenRoot, Item, SnapshotFields};

/// Times that a change is decided again because others have appended. Each time another change has landed, so the pool goes on, and
/// turns see to it that this node is not always the late one.
const TRIES_MAX: usize = 256;
/// Appends in a row that were refused though nobody has appended: then what is in memory is not what is stored.
const UNEXPLAINED_MAX: usize = 8;
/// Abandoned imports that a start gives up with its first batch; the collection gives up the others.
const IMPORTS_AT_ONCE: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Unread,
    Ready,
    /// This incarnation has ended by itself.
    Left,
    Failed(Failure),
}

/// Whether entries and objects that nobody needs any more are to be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Collection {
    Idle,
    Due,
    Running,
    /// There may be more to remove since it began.
    RunningAndDue,
}

/// What a change comes to: the records, and what is said of them.
pub(crate) type Decided<T> = (Vec<Change>, T);

/// The catalogue and where it is stored.
#[derive(Debug)]
pub(crate) struct Catalogue {
    pool: Rc<Pool>,
    /// Held while the catalogue is read or changed.
    lock: Lock,
    state: RefCell<State>,
    replica: Rc<Replica>,
    prepared: PreparedSnapshots,
    collection: Cell<Collection>,
    /// Removed volumes that have nothing alone any more.
    emptied: RefCell<BTreeSet<Lineage>>,
    /// The end of others was noted that are known to have ended.
    started: Cell<bool>,
}

impl Catalogue {
    pub(crate) fn new(pool: &Rc<Pool>) -> Self {
        Catalogue {
            pool: Rc::clone(pool),
            lock: Lock::new(&pool.scheduler),
            state: RefCell::new(State::Unread),
            replica: Rc::new(Replica::new(pool)),
            prepared: PreparedSnapshots::default(),
            collection: Cell::new(Collection::Idle),
            emptied: RefCell::default(),
            started: Cell::new(false),
        }
    }

    /// What there is. Not held across an await.
    pub(crate) fn names(&self) -> Ref<'_, Names> {
        self.replica.names()
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
            State::Unread | State::Ready | State::Left => None,
        }
    }

    /// Promises a snapshot that `check` finds possible; its token.
    pub(crate) fn prepare_snapshot(
        &self,
        snapshot: PreparedSnapshot,
        check: impl FnOnce(&Names) -> Outcome<()>,
    ) -> Outcome<u64> {
        let mut names = self.replica.names_mut();
        check(&names)?;
        let generation = self.replica.generation().0;
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
        self.prepared.end(&mut self.replica.names_mut(), token);
    }

    /// Forgets what was prepared for a volume and never begun.
    pub(crate) fn forget_prepared(&self, volume: Lineage) {
        self.prepared.forget(&mut self.replica.names_mut(), volume);
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
        self.ready().await?;
        let guard = self.locked().await?;
        self.change(&guard, |names| {
            let volume = names.get(prepared.volume).ok_or_else(|| {
                let why = format!("volume {} is gone", prepared.volume);
                Failure::new(ErrorCode::NotFound, why)
            })?;
            // Other nodes do not know of the reservation.
            let name = &prepared.snapshot.name;
            if names.find(name).is_some() {
                let why = format!("the name `{name}` was taken by another node");
                return Err(Failure::new(ErrorCode::Exists, why));
            }
            let item = Item {
                size,
                ..volume.snapshot(prepared.snapshot.clone(), frozen)
            };
            item.attributes.check_len()?;
            Ok((vec![Change::Put(item)], ()))
        })
        .await
    }

    /// There may be something to remove.
    pub(crate) fn want_collection(&self) {
        self.collection.set(match self.collection.get() {
            Collection::Idle | Collection::Due => Collection::Due,
            Collection::Running | Collection::RunningAndDue => Collection::RunningAndDue,
        });
    }

    /// As [`Catalogue::want_collection`], if there is something that an earlier collection had to leave.
    pub(crate) fn retry_collection(&self) {
        if self.names().orphans().next().is_some() {
            self.want_collection();
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

    /// A removed volume of which nothing was given back yet that it had alone, as far as this mapper knows.
    pub(crate) fn volume_to_empty(&self) -> Option<Item> {
        let (names, emptied) = (self.names(), self.emptied.borrow());
        let mut removed = names.removed_volumes();
        removed
            .find(|item| !emptied.contains(&item.lineage))
            .cloned()
    }

    /// The removed volume has nothing alone any more, or it cannot be found out.
    pub(crate) fn volume_emptied(&self, lineage: Lineage) {
        self.emptied.borrow_mut().insert(lineage);
    }

    pub(crate) fn collection_ended(&self) {
        self.collection.set(match self.collection.get() {
            Collection::RunningAndDue => Collection::Due,
            _ => Collection::Idle,
        });
    }

    /// Waits until the catalogue can be used, and locks it. What other nodes have changed since [`Catalogue::ready`] may not be in it:
    /// a change that is decided on it lands only if there is nothing.
    pub(crate) async fn locked(&self) -> Outcome<Guard> {
        let guard = self.lock.acquire().await;
        let state = self.state.borrow().clone();
        let first = match state {
            State::Ready => return Ok(guard),
            State::Left => {
                let why = "this node is stopping";
                return Err(Failure::new(ErrorCode::Unavailable, why));
            }
            // What is stored stays so, and so does a successor: whoever was replaced takes nothing back.
            State::Failed(failure)
                if failure.code.is_of_stored() || failure.code == ErrorCode::Stale =>
            {
                return Err(failure);
            }
            State::Failed(_) => false,
            State::Unread => true,
        };
        let mut read = self.replica.read().await;
        if read.is_ok() && !first {
            // What a failed append left may be read and not be durable; syncing it again would prove nothing.
            read = self.replica.checkpoint().await;
        }
        if let Err(failure) = read {
            // An unread catalogue stays so: what an import left behind is removed by the first read that succeeds.
            if !first || failure.code.is_of_stored() || failure.code == ErrorCode::Stale {
                *self.state.borrow_mut() = State::Failed(failure.clone());
            }
            return Err(failure);
        }
        *self.state.borrow_mut() = State::Ready;
        if !self.started.get() {
            self.begin(&guard).await?;
            self.started.set(true);
            self.want_collection();
        }
        Ok(guard)
    }

    /// Waits until the catalogue can be used. It is as it is now, whoever has changed it.
    pub(crate) async fn ready(&self) -> Outcome<()> {
        let shared = self.pool.config.sharing.is_shared();
        if self.is_ready() && !shared {
            return Ok(());
        }
        let _guard = self.locked().await?;
        if shared {
            self.end_if_stale(self.replica.follow().await)?;
        }
        Ok(())
    }

    /// This incarnation begins, those that are known to have ended end, and with them the imports that they were filling.
    async fn begin(&self, guard: &Guard) -> Outcome<()> {
        let begun = self.change(guard, |names| Ok((self.ends(names), ()))).await;
        match begun {
            // Without room, it begins with its first change.
            Err(failure) if failure.code.passes() => {
                tracing::warn!("this node's start is not noted yet: {}", failure.message);
                Ok(())
            }
            begun => begun,
        }
    }

    fn ends(&self, names: &Names) -> Vec<Change> {
        let own = self.pool.config.owner;
        let sharing = &self.pool.config.sharing;
        let others = names.incarnations().others(own).map(|other| other.id);
        let ended: Vec<u128> = others.filter(|id| sharing.has_ended(*id)).collect();
        let ends = ended.iter().map(|incarnation| Change::End {
            incarnation: *incarnation,
            how: End::Fenced,
        });
        let given_up = names.abandoned_imports(|importer| ended.contains(&importer));
        let deletes = given_up
            .take(IMPORTS_AT_ONCE)
            .map(|lineage| Change::Delete { lineage, by: own });
        let mut changes: Vec<Change> = ends.chain(deletes).collect();
        changes.extend(self.birth(names));
        changes
    }

    /// The record with which this incarnation begins, if it has not.
    fn birth(&self, names: &Names) -> Option<Change> {
        let config = &self.pool.config;
        (!names.incarnations().is_live(config.owner)).then(|| {
            Change::Begin(Incarnation {
                id: config.owner,
                node: config.node.clone(),
                addresses: config.addresses.clone(),
            })
        })
    }

    /// Sees that this incarnation has begun: before it owns anything.
    pub(crate) async fn join(&self) -> Outcome<()> {
        if self.replica.has_begun() {
            return Ok(());
        }
        let guard = self.locked().await?;
        let birth = |names: &Names| Ok((self.birth(names).into_iter().collect(), ()));
        self.change(&guard, birth).await
    }

    /// Whether the incarnation serves the pool: what it owns is not taken from it. Its owner has begun before it became that, so
    /// whoever has read the name of the owner asks afterwards.
    pub(crate) async fn is_live(&self, incarnation: u128) -> Outcome<bool> {
        self.ready().await?;
        Ok(self.names().incarnations().is_live(incarnation))
    }

    /// Whether other nodes serve the pool.
    pub(crate) fn has_others(&self) -> bool {
        let names = self.names();
        let others = names.incarnations().others(self.pool.config.owner);
        others.count() > 0
    }

    /// Declares an incarnation dead: the caller knows that nothing which it still sends reaches the pool's data.
    pub(crate) async fn fence(&self, incarnation: u128) -> Outcome<()> {
        let guard = self.locked().await?;
        self.change(&guard, |names| {
            let live = names.incarnations().is_live(incarnation);
            let how = End::Fenced;
            let end = live.then_some(Change::End { incarnation, how });
            Ok((end.into_iter().collect(), ()))
        })
        .await?;
        self.want_collection();
        Ok(())
    }

    /// This incarnation ends: it owns nothing, and changes nothing any more.
    pub(crate) async fn leave(&self) -> Outcome<()> {
        if !self.is_ready() {
            return Ok(());
        }
        let guard = self.locked().await?;
        let incarnation = self.pool.config.owner;
        self.change(&guard, |names| {
            let live = names.incarnations().is_live(incarnation);
            let how = End::Gone;
            let end = live.then_some(Change::End { incarnation, how });
            Ok((end.into_iter().collect(), ()))
        })
        .await?;
        *self.state.borrow_mut() = State::Left;
        Ok(())
    }

    /// Makes durable, as one batch, what `decide` finds right, then visible; what it says of that. It is asked again if others have
    /// changed the catalogue meanwhile; without a record nothing is written. The guard is of [`Catalogue::lock`].
    ///
    /// # Errors
    /// What `decide` says, or why the change could not be made durable.
    pub(crate) async fn change<T>(
        &self,
        _guard: &Guard,
        decide: impl Fn(&Names) -> Outcome<Decided<T>>,
    ) -> Outcome<T> {
        let mut unexplained = 0;
        for _ in 0..TRIES_MAX {
            for _ in 0..self.replica.reads_before_append() {
                self.end_if_stale(self.replica.follow().await)?;
            }
            let (mut changes, said) = decide(&self.names())?;
            if changes.is_empty() {
                return Ok(said);
            }
            let ends = changes
                .iter()
                .any(|change| matches!(change, Change::Begin(_) | Change::End { .. }));
            if !ends {
                changes.splice(..0, self.birth(&self.names()));
            }
            match self.replica.append(changes).await {
                Ok(Appended::Done) => {
                    self.pool.count(|counters| counters.catalogue_changes += 1);
                    return Ok(said);
                }
                Ok(Appended::Refused) => {
                    self.pool.count(|counters| counters.catalogue_refused += 1);
                }
                Err(failure) => {
                    if !failure.code.passes() && failure.code != ErrorCode::Invalid {
                        *self.state.borrow_mut() = State::Failed(failure.clone());
                    }
                    return Err(failure);
                }
            }
            if self.end_if_stale(self.replica.follow().await)? {
                unexplained = 0;
            } else {
                unexplained += 1;
            }
            if unexplained == UNEXPLAINED_MAX {
                unexplained = 0;
                self.end_if_stale(self.replica.load_again().await)?;
            }
        }
        let why = "other nodes change the catalogue all the time: try again";
        Err(Failure::new(ErrorCode::Unavailable, why))
    }

    /// Whoever was declared dead stays so.
    fn end_if_stale<T>(&self, outcome: Outcome<T>) -> Outcome<T> {
        if let Err(failure) = &outcome
            && failure.code == ErrorCode::Stale
        {
            *self.state.borrow_mut() = State::Failed(failure.clone());
        }
        outcome
    }
}
