//! What the daemon's data processes need to know, by the node's configuration.

use archipelago_blocker_file::Claim;
use archipelago_host::{DataPathSettings, Identity, PeerSettings};

use archipelago_api::config::{Config, Pool};
use archipelago_api::layout::Layout;

use crate::file_pool::FilePool;

/// The settings of every process of the node at `layout`, whose endpoint runs as `endpoint` and whose pool is opened with the
/// right of `claim`.
pub(crate) fn peer_settings(
    layout: &Layout,
    config: &Config,
    endpoint: Option<Identity>,
    claim: Claim,
) -> PeerSettings<FilePool> {
    let Pool::File { directory, direct } = config.pool().1.clone();
    PeerSettings {
        run: layout.run().to_owned(),
        volumes: layout.volumes(),
        journals: layout.journals(),
        grants: layout.grants(),
        data: DataPathSettings {
            poll_us: config.data.poll_us,
            submission_chunk: config.data.submission_chunk,
            channel_requests: config.data.channel_requests,
            channel_memory_mib: config.data.channel_memory_mib,
        },
        endpoint,
        pool: FilePool {
            directory,
            direct,
            claim,
        },
    }
}
