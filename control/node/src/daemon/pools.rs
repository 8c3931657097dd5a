//! Pools that are shown, and that come and go while the node runs.
//!
//! Invariants
//! - A pool is added in this order: its directory, its processes, the configuration. One that cannot be served is not added.
//! - A pool is removed only while it is served and holds nothing: first the configuration, then its processes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use archipelago_api::config::{Config, PoolConfig, with_pool, without_pool};
use archipelago_api::layout::path_error;
use archipelago_api::pools::{AddPool, PoolView};
use archipelago_blocker_file::Claim;
use archipelago_protocol::catalogue::PAGE_MAX;
use archipelago_protocol::{Error, ErrorCode, Name};

use super::node::Node;
use super::places::Places;
use super::pool::{Pool, PoolState};
use super::service;
use crate::durable;

/// How long a new pool may take until it is served. One that was in use elsewhere is waited for by its process.
const ADD_TIMEOUT: Duration = Duration::from_secs(60);

impl Node {
    /// The pools, served or not.
    ///
    /// # Errors
    /// If there is one, and it does not say what is in it.
    pub(crate) async fn pool_list(&self) -> Result<Vec<PoolView>, Error> {
        let pools = self.pools();
        if let [only] = pools.as_slice() {
            return Ok(vec![only.info_of_pool().await?]);
        }
        Ok(futures_util::future::join_all(pools.iter().map(|pool| pool.line_of_pool())).await)
    }

    /// Adds a pool, and answers when it is served.
    pub(crate) async fn add_pool(&self, request: AddPool) -> Result<PoolView, Error> {
        let _one_at_a_time = self.pool_changes.lock().await;
        let AddPool { name, directory } = request;
        if !directory.is_absolute() {
            let message = format!(
                "directory `{}` is not an absolute path",
                directory.display()
            );
            return Err(Error::new(ErrorCode::Invalid, message));
        }
        let config = PoolConfig::File {
            directory: directory.clone(),
            direct: true,
        };
        // Whether it is legal is found out before anything is made.
        self.changed_config(|text| with_pool(text, &name, &config))?;
        let places = Places::new(&self.context.layout, &name, &self.first)?;
        let made =
            tokio::task::spawn_blocking(move || archipelago_blocker_file::create(&directory));
        made.await.map_err(|error| {
            Error::new(ErrorCode::Internal, format!("making the pool: {error}"))
        })??;
        let pool = Arc::new(Pool::new(
            &self.context,
            &name,
            &config,
            places,
            Claim::Start,
        )?);
        service::start(&pool);
        let added = match served(&pool).await {
            Ok(()) => self.enter(&pool).await,
            Err(error) => Err(error),
        };
        if let Err(error) = added {
            service::stop(&pool).await;
            return Err(error);
        }
        self.insert_pool(Arc::clone(&pool));
        tracing::info!("pool `{name}` was added ({})", config.directory().display());
        pool.info_of_pool().await
    }

    /// Notes a pool that is served in the configuration.
    async fn enter(&self, pool: &Pool) -> Result<(), Error> {
        self.check_names(pool).await?;
        let text = self.changed_config(|text| with_pool(text, &pool.name, &pool.config))?;
        self.write_config(&text)
    }

    /// Refuses a pool that has a name which another one has.
    async fn check_names(&self, new: &Pool) -> Result<(), Error> {
        let mut after = None;
        loop {
            let page = new.list(String::new(), after, PAGE_MAX).await?;
            for view in &page.volumes {
                let name = &view.entry.name;
                for other in self.pools() {
                    if other.unserved().is_none() && other.lookup(name).await.is_ok() {
                        let message =
                            format!("`{name}` is in pool `{}` and in the new one", other.name);
                        return Err(Error::new(ErrorCode::Exists, message)
                            .with_hint("names are unique in a node: rename one of them first"));
                    }
                }
            }
            match page.next {
                None => return Ok(()),
                next => after = next,
            }
        }
    }

    /// Takes the pool `name` out of the node. Its directory stays.
    pub(crate) async fn remove_pool(&self, name: &Name) -> Result<(), Error> {
        let _one_at_a_time = self.pool_changes.lock().await;
        let pool = self.pool(name)?;
        if self.pools().len() == 1 {
            return Err(Error::new(
                ErrorCode::InUse,
                format!("`{name}` is the only pool of this node"),
            )
            .with_hint("a node without a pool serves nothing: add another one first"));
        }
        pool.check_served()?;
        // Nobody makes anything in it meanwhile.
        let _nothing_new = pool.change_alone().await?;
        let entries = pool.entries().await?;
        if entries > 0 {
            let what = if entries == 1 { "thing" } else { "things" };
            return Err(Error::new(
                ErrorCode::InUse,
                format!("pool `{name}` holds {entries} {what}: volumes, snapshots or images"),
            )
            .with_hint(format!(
                "`{} volume list` shows them; remove them first",
                self.context.layout.command()
            )));
        }
        let text = self.changed_config(|text| without_pool(text, name))?;
        self.write_config(&text)?;
        self.forget_pool(name);
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

    /// What `change` makes of the configuration file.
    fn changed_config(
        &self,
        change: impl FnOnce(&str) -> Result<String, Error>,
    ) -> Result<String, Error> {
        let path = self.context.layout.config();
        let text = std::fs::read_to_string(path).map_err(|error| path_error(path, &error))?;
        change(&text)
    }

    fn write_config(&self, text: &str) -> Result<(), Error> {
        // A link leads to a file that others edit: that one is replaced.
        let path: PathBuf = self.context.layout.config().to_owned();
        let path = std::fs::canonicalize(&path).unwrap_or(path);
        Config::parse(text)?;
        durable::replace(&path, text.as_bytes()).map_err(|error| path_error(&path, &error))
    }
}

/// Waits until `pool` is served.
///
/// # Errors
/// Why it is not.
async fn served(pool: &Pool) -> Result<(), Error> {
    let mut changes = pool.context.pools_changed.subscribe();
    let deadline = tokio::time::Instant::now() + ADD_TIMEOUT;
    loop {
        match pool.state() {
            PoolState::Served => return Ok(()),
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
