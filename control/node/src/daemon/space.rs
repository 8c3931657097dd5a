//! What a pool stores, and what each volume, snapshot or image takes of it.
//!
//! Nothing here is counted beforehand: the mapper compares maps, and files are looked at, when somebody asks.

use std::io;
use std::path::Path;
use std::time::Duration;

use archipelago_api::pools::PoolStored;
use archipelago_blocker_file::{Stored, stored};
use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
use archipelago_protocol::diff::DiffPage;
use archipelago_protocol::usage::Usage;
use archipelago_protocol::{Error, ErrorCode, Name};
use tokio::time::Instant;

use super::pool::Pool;
use super::pool_requests::unexpected_reply;

/// How long the files of a pool are counted.
const COUNT_TIMEOUT: Duration = Duration::from_secs(2);

impl Pool {
    /// What a volume, snapshot or image takes of the pool.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`]: the last session of the volume has not ended.
    pub(crate) async fn usage(&self, name: &Name) -> Result<Usage, Error> {
        // A missing name gets its hint.
        self.lookup(name).await?;
        let request = CatalogueRequest::Usage { name: name.clone() };
        match self.compare(name, request).await? {
            CatalogueReply::Usage(usage) => Ok(usage),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// A page of the ranges in which a volume, snapshot or image differs from a snapshot or image.
    ///
    /// # Errors
    /// As [`Pool::usage`]; [`ErrorCode::Invalid`] if `from` is nothing that can be compared with.
    pub(crate) async fn diff(
        &self,
        name: &Name,
        from: Option<Name>,
        start: u64,
        limit: usize,
    ) -> Result<DiffPage, Error> {
        for name in [Some(name), from.as_ref()].into_iter().flatten() {
            self.lookup(name).await?;
        }
        let request = CatalogueRequest::Diff {
            name: name.clone(),
            from,
            start,
            limit,
        };
        match self.compare(name, request).await? {
            CatalogueReply::Diff(page) => Ok(page),
            other => Err(unexpected_reply(&other)),
        }
    }

    /// Has maps compared, that of `name` with others.
    async fn compare(
        &self,
        name: &Name,
        request: CatalogueRequest,
    ) -> Result<CatalogueReply, Error> {
        match self.walk(request).await {
            Err(error) if error.code == ErrorCode::InUse => {
                let message = format!(
                    "the map of `{name}` is not known: the last session of its volume has not ended"
                );
                Err(Error::new(ErrorCode::InUse, message)
                    .with_hint("it is known when the volume is open again, or was closed"))
            }
            reply => reply,
        }
    }

    /// What the pool's objects occupy; `None`: it is not one of files, or they cannot be counted in time.
    pub(crate) async fn stored(&self) -> Option<PoolStored> {
        let directory = self.config.directory()?;
        let counted = self.context.counts.ask(directory, count).await?;
        let Stored { data, metadata } = counted.ok()??;
        Some(PoolStored { data, metadata })
    }
}

fn count(directory: &Path) -> io::Result<Option<Stored>> {
    let began = Instant::now();
    stored(directory, || began.elapsed() < COUNT_TIMEOUT)
}
