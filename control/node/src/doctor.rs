//! Checks the pool of a node that no daemon serves.
//!
//! Invariants
//! - The node's lock is taken before the pool's: no daemon of this node starts meanwhile.
//! - The pool is closed when the check returns, so that its file system can be unmounted.

use archipelago_api::config::{Config, PoolConfig};
use archipelago_api::layout::Layout;
use archipelago_blocker_file::Claim;
use archipelago_protocol::check::Report;
use archipelago_protocol::{Error, ErrorCode, Name};

use crate::daemon::{NodeLock, PoolPaths, PoolUser, RELEASE_TIMEOUT, peer_settings};
use crate::rados_program;

/// Checks the pool `name` of the node at `layout`, which no daemon serves. With `repair`, deletes what is certainly not needed.
///
/// # Errors
/// [`ErrorCode::NotFound`] if the pool does not exist, [`ErrorCode::InUse`] if the node or the pool is served; otherwise the error of
/// opening the pool. Damage is not an error: the report contains it.
pub(crate) fn check_offline(layout: &Layout, name: &Name, repair: bool) -> Result<Report, Error> {
    let config = Config::read(layout.config())?;
    let Some(pool) = config.pools.get(name) else {
        let message = format!("there is no pool `{name}`");
        return Err(Error::new(ErrorCode::NotFound, message));
    };
    let _lock = NodeLock::take(layout)?;
    // The pool is only read: its processes get no sockets.
    let paths = PoolPaths::new(layout, name, name)?;
    let settings = peer_settings(layout, &config, pool, &paths, None, Claim::Start);
    if let PoolConfig::Rados(_) = pool {
        return rados_program::check_pool(&settings, repair);
    }
    let checked = archipelago_host::check_offline(&settings, repair);
    // The kernel closes the ring's files only some time later.
    if let Some(directory) = pool.directory()
        && let Err(left) = PoolUser::wait_free(directory, RELEASE_TIMEOUT)
    {
        tracing::warn!("{left}");
    }
    checked
}
