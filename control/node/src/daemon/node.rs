//! The node as the API shows it: its pools, and which pool contains a name.
//!
//! Invariants
//! - Names are unique in the node: a request that creates a name claims it first, and checks whether another pool contains it.
//! - A pool that is not served or does not answer delays no request to another pool: the node does not ask it, or does not wait for it. Its
//!   names are not known meanwhile, so a name may exist twice later; such a name is refused until one of them is renamed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use archipelago_api::config::{Config, default_pool};
use archipelago_api::layout::Layout;
use archipelago_api::types::{
    BeginImport, Bulk, CloneVolume, CreateVolume, PoolAbsence, RenameVolume, SnapshotVolume,
    VolumePage, VolumeView,
};
use archipelago_blocker_file::Claim;
use archipelago_host::Identity;
use archipelago_protocol::{Error, ErrorCode, LabelFilter, Name};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};

use super::abandoned::watch_import;
use super::context::NodeContext;
use super::pool::Pool;
use super::pool_paths::{PoolPaths, first_pool};

/// Timeout for the answer of a pool whether it contains a name, while there are other pools.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);
/// The timeout once another pool has answered that it contains the name: a pool that works answers within a millisecond.
const SECOND_TIMEOUT: Duration = Duration::from_millis(200);

/// A node: one per daemon.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) context: Arc<NodeContext>,
    pools: Mutex<BTreeMap<Name, Arc<Pool>>>,
    /// The pool whose sockets and journals are in the run directory itself.
    pub(crate) first: Name,
    /// Names that are being created.
    claimed: Mutex<BTreeSet<Name>>,
    /// Held while a pool is added or removed.
    pub(crate) pool_changes: tokio::sync::Mutex<()>,
    /// Whether the node is stopping: pools are not added or removed any more.
    pub(crate) stopping: watch::Sender<bool>,
    /// Asks the main loop for a clean stop.
    pub(crate) stop: Notify,
    /// The unfinished work, once all processes have stopped.
    pub(crate) stopped: watch::Sender<Option<Vec<String>>>,
}

/// A name that is being created. When this is dropped, other requests may create it.
#[derive(Debug)]
pub(crate) struct Claimed<'a> {
    node: &'a Node,
    name: Name,
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        // A panic under the lock has left the set complete.
        let mut claimed = self
            .node
            .claimed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        claimed.remove(&self.name);
    }
}

impl Node {
    /// The node at `layout`, whose endpoints run as `endpoint`, and whose pools are opened with the right of `claim`. Starts nothing. The
    /// caller holds the node's lock.
    pub(crate) fn new(
        layout: Layout,
        config: Config,
        endpoint: Option<Identity>,
        claim: Claim,
    ) -> Result<Node, Error> {
        let first = first_pool(&layout, config.pools.keys());
        let context = Arc::new(NodeContext::new(layout, config, endpoint)?);
        if let Err(error) = context.attachments().set_pool(&first) {
            tracing::warn!("of which pool the attachments are was not noted: {error}");
        }
        context.attachments().find_orphans(&context.config.pools);
        let mut pools = BTreeMap::new();
        for (name, config) in &context.config.pools {
            let paths = PoolPaths::new(&context.layout, name, &first)?;
            let pool = Pool::new(&context, name, config, paths, claim)?;
            pools.insert(name.clone(), Arc::new(pool));
        }
        Ok(Node {
            context,
            pools: Mutex::new(pools),
            first,
            claimed: Mutex::default(),
            pool_changes: tokio::sync::Mutex::new(()),
            stopping: watch::Sender::new(false),
            stop: Notify::new(),
            stopped: watch::Sender::new(None),
        })
    }

    fn command(&self, rest: &str) -> String {
        format!("`{} {rest}`", self.context.layout.command())
    }

    /// The pools, in order of their names.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        // A panic under the lock has left the map complete.
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.values().cloned().collect()
    }

    pub(super) fn insert_pool(&self, pool: Arc<Pool>) {
        // As above.
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.insert(pool.name.clone(), pool);
    }

    pub(super) fn forget_pool(&self, name: &Name) {
        // As above.
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.remove(name);
    }

    /// The pool `name`, served or not.
    pub(crate) fn pool(&self, name: &Name) -> Result<Arc<Pool>, Error> {
        let mut pools = self.pools().into_iter();
        pools.find(|pool| pool.name == *name).ok_or_else(|| {
            Error::new(ErrorCode::NotFound, format!("there is no pool `{name}`"))
                .with_hint(format!("{} shows the pools", self.command("pool list")))
        })
    }

    /// The pool for something new: `wanted`, else the only pool, else the one named `default`. It must be served.
    fn pool_for(&self, wanted: Option<&Name>) -> Result<Arc<Pool>, Error> {
        let pool = match wanted {
            Some(name) => self.pool(name)?,
            None => {
                let pools = self.pools();
                self.pool(default_pool(pools.iter().map(|pool| &pool.name))?)?
            }
        };
        pool.check_served()?;
        Ok(pool)
    }

    /// The pools that are served.
    fn served(&self) -> Vec<Arc<Pool>> {
        let pools = self.pools().into_iter();
        pools
            .filter(|pool| pool.unserved_reason().is_none())
            .collect()
    }

    /// The reasons why pools are not served.
    fn absences(&self) -> Vec<PoolAbsence> {
        let pools = self.pools().into_iter();
        pools
            .filter_map(|pool| {
                pool.unserved_reason().map(|why| PoolAbsence {
                    pool: pool.name.clone(),
                    reason: why.message,
                })
            })
            .collect()
    }

    /// The served pool that contains `name`.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Exists`] if two pools contain it; [`ErrorCode::Unavailable`] if a pool that is not served or
    /// does not answer may contain it.
    pub(crate) async fn pool_of(&self, name: &Name) -> Result<Arc<Pool>, Error> {
        let all = self.pools();
        if let [only] = all.as_slice() {
            only.check_served()?;
            return Ok(Arc::clone(only));
        }
        let served = self.served();
        let mut silent: BTreeSet<Name> = served.iter().map(|pool| pool.name.clone()).collect();
        let mut asked: FuturesUnordered<_> = served
            .into_iter()
            .map(|pool| async move {
                let found = pool.lookup(name).await;
                (pool, found)
            })
            .collect();
        let mut deadline = tokio::time::Instant::now() + LOOKUP_TIMEOUT;
        let mut found: Vec<Arc<Pool>> = Vec::new();
        let mut missing = None;
        while let Ok(Some((pool, answer))) = tokio::time::timeout_at(deadline, asked.next()).await {
            match answer {
                Ok(_entry) => {
                    silent.remove(&pool.name);
                    found.push(pool);
                    deadline = deadline.min(tokio::time::Instant::now() + SECOND_TIMEOUT);
                }
                Err(error) if error.code == ErrorCode::NotFound => {
                    silent.remove(&pool.name);
                    missing = Some(error);
                }
                // Counts as a pool that has not answered.
                Err(_unknown) => {}
            }
        }
        match found.as_slice() {
            [one] => return Ok(Arc::clone(one)),
            [one, other, ..] => {
                let message = format!(
                    "`{name}` is in pool `{}` and in pool `{}`",
                    one.name, other.name
                );
                let rename = format!("volume rename {name} NAME --pool {}", other.name);
                return Err(Error::new(ErrorCode::Exists, message).with_hint(format!(
                    "give one of them another name: {}",
                    self.command(&rename)
                )));
            }
            [] => {}
        }
        let absent = self.absences();
        let unknown = absent
            .first()
            .map(|absence| (&absence.pool, absence.reason.as_str()));
        let unknown = unknown.or_else(|| silent.first().map(|pool| (pool, "it does not answer")));
        match (unknown, missing) {
            (None, Some(error)) => Err(error),
            (None, None) => Err(Error::new(ErrorCode::Unavailable, "no pool is served")),
            (Some((pool, why)), _) => {
                let message = format!(
                    "`{name}` is in none of the pools that are served, and pool `{pool}` is not: {why}"
                );
                Err(Error::new(ErrorCode::Unavailable, message)
                    .with_hint(format!("{} shows the pools", self.command("node status"))))
            }
        }
    }

    /// The pool `wanted`, else the one that contains `name`.
    async fn pool_named_or_of(
        &self,
        wanted: Option<&Name>,
        name: &Name,
    ) -> Result<Arc<Pool>, Error> {
        match wanted {
            Some(_) => self.pool_for(wanted),
            None => self.pool_of(name).await,
        }
    }

    /// Prevents other requests from creating `name`, which will belong to `pool`, and checks whether another pool contains it already.
    async fn claim(&self, name: &Name, pool: &Pool) -> Result<Claimed<'_>, Error> {
        {
            // A panic under the lock has left the set complete.
            let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
            if !claimed.insert(name.clone()) {
                return Err(Error::new(
                    ErrorCode::InUse,
                    format!("`{name}` is being made by another request"),
                )
                .with_hint("choose another name, or wait for its end"));
            }
        }
        let claim = Claimed {
            node: self,
            name: name.clone(),
        };
        let others = self.served().into_iter();
        let asked = others
            .filter(|other| other.name != pool.name)
            .map(|other| async move {
                let found = tokio::time::timeout(LOOKUP_TIMEOUT, other.lookup(name)).await;
                matches!(found, Ok(Ok(_entry))).then(|| other.name.clone())
            });
        let found = futures_util::future::join_all(asked).await;
        match found.into_iter().flatten().next() {
            None => Ok(claim),
            Some(other) => Err(Error::new(
                ErrorCode::Exists,
                format!("`{name}` exists already, in pool `{other}`"),
            )
            .with_hint(format!(
                "choose another name; {} shows what has it",
                self.command(&format!("volume info {name}"))
            ))),
        }
    }

    /// Creates an empty volume.
    pub(crate) async fn create(&self, request: CreateVolume) -> Result<VolumeView, Error> {
        let pool = self.pool_for(request.pool.as_ref())?;
        let _claimed = self.claim(&request.name, &pool).await?;
        pool.create(request).await
    }

    /// Creates a writable volume with the content of `source`, in its pool.
    pub(crate) async fn clone_volume(
        &self,
        source: &Name,
        request: CloneVolume,
    ) -> Result<VolumeView, Error> {
        let pool = self.pool_of(source).await?;
        let _claimed = self.claim(&request.name, &pool).await?;
        pool.clone_volume(source, request).await
    }

    /// Creates a snapshot, in the pool of its volume.
    pub(crate) async fn snapshot(
        &self,
        volume: &Name,
        request: SnapshotVolume,
    ) -> Result<VolumeView, Error> {
        let pool = self.pool_of(volume).await?;
        let _claimed = self.claim(&request.name, &pool).await?;
        pool.snapshot(volume, request).await
    }

    /// Renames a volume, snapshot or image.
    pub(crate) async fn rename(
        &self,
        from: &Name,
        request: RenameVolume,
    ) -> Result<VolumeView, Error> {
        let pool = self.pool_named_or_of(request.pool.as_ref(), from).await?;
        let _claimed = self.claim(&request.to, &pool).await?;
        pool.rename(from, request).await
    }

    /// Creates an invisible image and opens it for one writer.
    pub(crate) async fn begin_import(&self, request: BeginImport) -> Result<Bulk, Error> {
        let pool = self.pool_for(request.pool.as_ref())?;
        let _claimed = self.claim(&request.name, &pool).await?;
        let name = request.name.clone();
        let bulk = pool.begin_import(request).await?;
        watch_import(&pool, name, bulk.lineage);
        Ok(bulk)
    }

    /// A page of volumes, snapshots and images of all served pools: all of them, or those with a label.
    pub(crate) async fn list(
        &self,
        prefix: String,
        after: Option<Name>,
        limit: usize,
        label: Option<LabelFilter>,
    ) -> Result<VolumePage, Error> {
        let served = self.served();
        let mut unlisted = self.absences();
        if let ([only], []) = (served.as_slice(), unlisted.as_slice()) {
            return only.list(prefix, after, limit, label).await;
        }
        let pages = served.iter().map(|pool| {
            let page = pool.list(prefix.clone(), after.clone(), limit, label.clone());
            tokio::time::timeout(LOOKUP_TIMEOUT, page)
        });
        let pages = futures_util::future::join_all(pages).await;
        let mut volumes: Vec<VolumeView> = Vec::new();
        // Names after the first name at which a page of a pool ends belong to the next page.
        let mut end: Option<Name> = None;
        for (pool, page) in served.iter().zip(pages) {
            let reason = match page {
                Ok(Ok(page)) => {
                    volumes.extend(page.volumes);
                    let earlier = |next: &Name| end.as_ref().is_none_or(|end| next < end);
                    if let Some(next) = page.next.filter(earlier) {
                        end = Some(next);
                    }
                    continue;
                }
                Ok(Err(error)) => error.message,
                Err(_late) => "it does not answer".to_owned(),
            };
            unlisted.push(PoolAbsence {
                pool: pool.name.clone(),
                reason,
            });
        }
        volumes.sort_by(|one, other| one.entry.name.cmp(&other.entry.name));
        volumes.retain(|view| end.as_ref().is_none_or(|end| view.entry.name <= *end));
        if volumes.len() > limit {
            let last = volumes[limit - 1].entry.name.clone();
            // If two pools contain a name, both entries are on one page.
            volumes.retain(|view| view.entry.name <= last);
            end = Some(last);
        }
        Ok(VolumePage {
            volumes,
            next: end,
            unlisted,
        })
    }
}
