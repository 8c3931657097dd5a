//! What the daemon's data processes need to know, by the node's configuration.

use archipelago_api::config::{Config, PoolConfig};
use archipelago_api::layout::Layout;
use archipelago_blocker_file::Claim;
use archipelago_host::{DataPathSettings, Identity, PeerSettings};

use super::pool_paths::PoolPaths;

use crate::file_pool::FilePool;
use crate::node_pool::{NodePool, RadosSettings};

/// The settings of every process of a pool of the node at `layout`, whose endpoint runs as `endpoint` and whose pool is opened with
/// the right of `claim`.
pub(crate) fn peer_settings(
    layout: &Layout,
    config: &Config,
    pool: &PoolConfig,
    paths: &PoolPaths,
    endpoint: Option<Identity>,
    claim: Claim,
) -> PeerSettings<NodePool> {
    PeerSettings {
        node: layout.run().to_owned(),
        run: paths.run().to_owned(),
        volumes: layout.volumes(),
        journals: paths.journals(),
        grants: paths.grants(),
        data: DataPathSettings {
            threads: match pool {
                PoolConfig::File { .. } => config.data.threads,
                PoolConfig::Rados(_) => 1,
            },
            cpus: config.data.cpus.clone(),
            poll_us: config.data.poll_us,
            submission_chunk: config.data.submission_chunk,
            channel_requests: config.data.channel_requests,
            channel_memory_mib: config.data.channel_memory_mib,
        },
        endpoint,
        pool: node_pool(pool, claim, Some(paths)),
    }
}

/// The pool of `config` as its processes host it, opened with the right of `claim`; of a pool that is served, with the node's `paths` for it.
pub(crate) fn node_pool(config: &PoolConfig, claim: Claim, paths: Option<&PoolPaths>) -> NodePool {
    match config.clone() {
        PoolConfig::File { directory, direct } => NodePool::File(FilePool {
            directory,
            direct,
            claim,
            kept: paths.map(PoolPaths::reservations),
        }),
        PoolConfig::Rados(rados) => NodePool::Rados(RadosSettings { rados, claim }),
    }
}
