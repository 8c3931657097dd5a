//! Lists pools, and adds and removes them while the node runs.
//!
//! Invariants
//! - A pool is added in this order: its directory, its processes, the configuration. A pool that cannot be served is not added.
//! - A pool is taken over only while it is not served because another node has it, and only by one opening of it.
//! - A pool is removed while it is served and empty, or, if requested, while it is not served: first the configuration, then its processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::config::{Config, PoolConfig, RadosPool, with_pool, without_pool};
use archipelago_api::durable;
use archipelago_api::layout::path_error;
use archipelago_api::pools::{AddPool, PoolView};
use archipelago_blocker_file::Claim;
use archipelago_protocol::catalogue::PAGE_MAX;
use archipelago_protocol::control::Role;
use archipelago_protocol::{Error, ErrorCode, Name};
use tokio::sync::{oneshot, watch};

use super::node::{LOOKUP_TIMEOUT, Node};
use super::pool::{Pool, PoolState};
use super::pool_paths::PoolPaths;
use super::service;
use crate::rados_program::make_pool;

/// How long a new pool may take until it is served. Its process waits for a pool that was in use elsewhere.
const ADD_TIMEOUT: Duration = Duration::from_secs(60);

/// Which pools may be removed from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RemovablePool {
    /// A pool that is served and empty.
    Empty,
    /// A pool that is not served, whatever it contains. Its attachments are kept but not served.
    Unserved,
}

impl Node {
    /// The pools, served or not.
    ///
    /// # Errors
    /// If there is only one pool, and it does not report its content.
    pub(crate) async fn pool_list(&self) -> Result<Vec<PoolView>, Error> {
        let pools = self.pools();
        if let [only] = pools.as_slice() {
            return Ok(vec![only.info_of_pool().await?]);
        }
        Ok(futures_util::future::join_all(pools.iter().map(|pool| pool.line_of_pool())).await)
    }

    /// Permits one change of pools at a time, and none while the node stops.
    async fn change_pools(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, Error> {
        let turn = self.pool_changes.lock().await;
        match *self.stopping.borrow() {
            true => Err(stopping()),
            false => Ok(turn),
        }
    }

    /// Adds a pool, and answers when it is served.
    pub(crate) async fn add_pool(&self, request: AddPool) -> Result<PoolView, Error> {
        let _one_at_a_time = self.change_pools().await?;
        let name = request.name.clone();
        let mut stops = self.stopping.subscribe();
        let claim = match request.take_over {
            true => Claim::TakeOver,
            false => Claim::Start,
        };
        let config = match (request.directory, request.rados) {
            (Some(directory), None) => self.make_file_pool(&mut stops, &name, directory).await?,
            (None, Some(rados)) => {
                self.make_rados_pool(&mut stops, &name, rados, claim)
                    .await?
            }
            (Some(_), Some(_)) | (None, None) => {
                let message = "a pool has either a directory or a RADOS pool";
                return Err(Error::new(ErrorCode::Invalid, message));
            }
        };
        let paths = PoolPaths::new(&self.context.layout, &name, &self.first)?;
        let pool = Arc::new(Pool::new(&self.context, &name, &config, paths, claim)?);
        service::start(&pool);
        let added = tokio::select! {
            // Polled first: a pool that was added is in the list before a stop reads the list.
            biased;
            _ = stops.wait_for(|stops| *stops) => Err(stopping()),
            added = self.enter_served(&pool) => added,
        };
        if let Err(error) = added {
            service::stop(&pool).await;
            return Err(error);
        }
        self.context.attachments().adopt(&name);
        self.insert_pool(Arc::clone(&pool));
        tracing::info!("pool `{name}` was added ({})", config.place().display());
        pool.info_of_pool().await
    }

    /// Makes a directory a pool, unless it is one already.
    async fn make_file_pool(
        &self,
        stops: &mut watch::Receiver<bool>,
        name: &Name,
        directory: PathBuf,
    ) -> Result<PoolConfig, Error> {
        if !directory.is_absolute() {
            let message = format!(
                "directory `{}` is not an absolute path",
                directory.display()
            );
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        let in_files = |directory| PoolConfig::File {
            directory,
            direct: true,
        };
        let config = in_files(directory.clone());
        // Checks the new configuration before anything is created: the path as written, and its target.
        self.changed_config(|text| with_pool(text, name, &config))?;
        PoolPaths::new(&self.context.layout, name, &self.first)?;
        let asked = directory.clone();
        let real = on_a_thread(stops, &directory, move || Ok(real_path(&asked))).await?;
        self.changed_config(|text| with_pool(text, name, &in_files(real)))?;
        let asked = directory.clone();
        let make = move || archipelago_blocker_file::create(&asked);
        on_a_thread(stops, &directory, make).await?;
        Ok(config)
    }

    /// Makes a RADOS pool a pool of the node, unless it is one already.
    async fn make_rados_pool(
        &self,
        stops: &mut watch::Receiver<bool>,
        name: &Name,
        rados: RadosPool,
        claim: Claim,
    ) -> Result<PoolConfig, Error> {
        rados.check()?;
        let config = PoolConfig::Rados(rados.clone());
        self.changed_config(|text| with_pool(text, name, &config))?;
        let made = tokio::select! {
            made = make_pool(rados, self.context.layout.run(), claim) => made?,
            _ = stops.wait_for(|stops| *stops) => return Err(stopping()),
        };
        let config = PoolConfig::Rados(made);
        self.changed_config(|text| with_pool(text, name, &config))?;
        Ok(config)
    }

    /// Takes the pool `name` over from another node, and answers when it is served.
    ///
    /// # Errors
    /// [`ErrorCode::Invalid`] unless the pool is not served because another node has it; otherwise the error of taking it over.
    pub(crate) async fn take_over_pool(&self, name: &Name) -> Result<PoolView, Error> {
        let _one_at_a_time = self.change_pools().await?;
        let pool = self.pool(name)?;
        check_taken(name, &pool.state())?;
        let process = pool.process(Role::Blocker);
        process.take_over_next();
        pool.set_state(PoolState::Opening);
        let mut stops = self.stopping.subscribe();
        tokio::select! {
            _ = stops.wait_for(|stops| *stops) => return Err(stopping()),
            // An opening that had begun before may still be refused.
            taken = served(&pool, || process.takes_over()) => taken?,
        }
        tracing::info!("pool `{name}` was taken over, as was asked for");
        pool.info_of_pool().await
    }

    /// Adds a pool to the configuration, once it is served.
    async fn enter_served(&self, pool: &Pool) -> Result<(), Error> {
        served(pool, || false).await?;
        self.check_names(pool).await?;
        // From here on, nothing is awaited: the pool is in the file, or it is not added.
        let text = self.changed_config(|text| with_pool(text, &pool.name, &pool.config))?;
        self.write_config(&text)
    }

    /// Refuses a pool that contains a name that another pool contains.
    async fn check_names(&self, new: &Pool) -> Result<(), Error> {
        let mut after = None;
        // A pool that does not answer is asked only once.
        let mut others = self.pools();
        loop {
            let page = new.list(String::new(), after, PAGE_MAX, None).await?;
            for view in &page.volumes {
                let name = &view.entry.name;
                let mut silent = Vec::new();
                for other in others
                    .iter()
                    .filter(|other| other.unserved_reason().is_none())
                {
                    let found = tokio::time::timeout(LOOKUP_TIMEOUT, other.lookup(name)).await;
                    if found.is_err() {
                        silent.push(other.name.clone());
                    }
                    if matches!(found, Ok(Ok(_entry))) {
                        let message =
                            format!("`{name}` is in pool `{}` and in the new one", other.name);
                        return Err(Error::new(ErrorCode::Exists, message)
                            .with_hint("names are unique in a node: rename one of them first"));
                    }
                }
                others.retain(|other| !silent.contains(&other.name));
            }
            match page.next {
                None => return Ok(()),
                next => after = next,
            }
        }
    }

    /// Removes the pool `name` from the node, if it is `which`. Its directory stays.
    pub(crate) async fn remove_pool(&self, name: &Name, which: RemovablePool) -> Result<(), Error> {
        let _one_at_a_time = self.change_pools().await?;
        let pool = self.pool(name)?;
        if self.pools().len() == 1 {
            return Err(Error::new(
                ErrorCode::InUse,
                format!("`{name}` is the only pool of this node"),
            )
            .with_hint("a node without a pool serves nothing: add another one first"));
        }
        let command = self.context.layout.command();
        let _nothing_new = match (which, pool.unserved_reason()) {
            (RemovablePool::Empty, Some(_)) => {
                let refused = pool.check_served().map_err(|error| {
                    error.with_hint(format!(
                        "`{command} pool remove {name} --unserved` takes it out all the same"
                    ))
                });
                return refused;
            }
            (RemovablePool::Unserved, None) => {
                return Err(
                    Error::new(ErrorCode::Invalid, format!("pool `{name}` is served"))
                        .with_hint("without `--unserved` it is removed if it holds nothing"),
                );
            }
            (RemovablePool::Unserved, Some(_)) => None,
            (RemovablePool::Empty, None) => {
                // Nothing can be created in it meanwhile.
                let nothing_new = pool.lock_changes().await?;
                let entries = pool.entries().await?;
                if entries > 0 {
                    let what = if entries == 1 { "thing" } else { "things" };
                    return Err(Error::new(
                        ErrorCode::InUse,
                        format!(
                            "pool `{name}` holds {entries} {what}: volumes, snapshots or images"
                        ),
                    )
                    .with_hint(format!(
                        "`{command} volume list` shows them; remove them first"
                    )));
                }
                Some(nothing_new)
            }
        };
        let text = self.changed_config(|text| without_pool(text, name))?;
        self.write_config(&text)?;
        self.forget_pool(name);
        self.context.attachments().orphan(name);
        pool.set_state(PoolState::Failed(Error::new(
            ErrorCode::NotFound,
            "it is being removed",
        )));
        for line in service::stop(&pool).await {
            tracing::warn!("{line}");
        }
        tracing::info!("pool `{name}` was removed; its directory stays");
        Ok(())
    }

    /// The configuration file after `change`.
    fn changed_config(
        &self,
        change: impl FnOnce(&str) -> Result<String, Error>,
    ) -> Result<String, Error> {
        let path = self.context.layout.config();
        let text = std::fs::read_to_string(path).map_err(|error| path_error(path, &error))?;
        change(&text)
    }

    fn write_config(&self, text: &str) -> Result<(), Error> {
        // If it is a link, it leads to a file that others edit: that file is replaced.
        let path: PathBuf = self.context.layout.config().to_owned();
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        Config::parse(text)?;
        durable::replace(&path, text.as_bytes()).map_err(|error| path_error(&path, &error))
    }
}

fn stopping() -> Error {
    Error::new(ErrorCode::Unavailable, "the node is stopping")
}

/// The target of `path`, as far as it exists.
fn real_path(path: &Path) -> PathBuf {
    let mut led_to = path.ancestors().filter_map(|above| {
        let rest = path.strip_prefix(above).ok()?;
        let real = std::fs::canonicalize(above).ok()?;
        Some(real.components().chain(rest.components()).collect())
    });
    led_to.next().unwrap_or_else(|| path.to_owned())
}

/// The result of `call`, which runs on its own thread: the file system of `directory` may not answer, and that must delay neither the
/// daemon nor its end.
async fn on_a_thread<T: Send + 'static>(
    stops: &mut watch::Receiver<bool>,
    directory: &Path,
    call: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, done) = oneshot::channel();
    let thread = std::thread::Builder::new().name("make-pool".to_owned());
    let started = thread.spawn(move || {
        let _late = sender.send(call());
    });
    started.map_err(|error| Error::of_thread("the new pool", &error))?;
    let unanswered = || {
        let at = directory.display();
        let message = format!("the file system of `{at}` does not answer");
        Error::new(ErrorCode::Unavailable, message)
    };
    tokio::select! {
        done = tokio::time::timeout(ADD_TIMEOUT, done) => match done {
            Ok(Ok(done)) => done,
            Ok(Err(_)) | Err(_) => Err(unanswered()),
        },
        _ = stops.wait_for(|stops| *stops) => Err(stopping()),
    }
}

/// Checks that a pool in `state` is not served because another node has it.
fn check_taken(name: &Name, state: &PoolState) -> Result<(), Error> {
    let invalid = |why: String| Err(Error::new(ErrorCode::Invalid, why));
    match state {
        PoolState::Failed(error) if error.code == ErrorCode::InUse => Ok(()),
        PoolState::Served => invalid(format!("pool `{name}` is served by this node")),
        PoolState::Opening => {
            let why = format!("pool `{name}` is still being opened");
            Err(Error::new(ErrorCode::Unavailable, why))
        }
        PoolState::Failed(error) => invalid(format!(
            "no other node keeps pool `{name}` from being served: {}",
            error.message
        )),
        PoolState::Lost(error) => {
            let why = format!("this node has lost pool `{name}`: {}", error.message);
            Err(Error::new(ErrorCode::Stale, why)
                .with_hint("stop the guests of its volumes, then start the node again"))
        }
    }
}

/// Waits until `pool` is served. A failure counts unless it belongs to an earlier opening (`is_early`).
///
/// # Errors
/// The reason why it is not served.
async fn served(pool: &Pool, is_early: impl Fn() -> bool) -> Result<(), Error> {
    let mut changes = pool.context.pools_changed.subscribe();
    let deadline = tokio::time::Instant::now() + ADD_TIMEOUT;
    loop {
        match pool.state() {
            PoolState::Served => return Ok(()),
            PoolState::Failed(_) if is_early() => {}
            PoolState::Failed(error) | PoolState::Lost(error) => return Err(error),
            PoolState::Opening => {}
        }
        if tokio::time::timeout_at(deadline, changes.changed())
            .await
            .is_err()
        {
            pool.check_served()?;
        }
    }
}
