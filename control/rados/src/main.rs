//! `archipelago-rados`: the process of a pool on RADOS that hosts its blocker, and in the fused placement all peers.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_node::program::{DataProcess, run_backend};
use archipelago_rados::{HostedPool, keep_buffers, make};

fn main() -> ExitCode {
    run_backend(
        |process: DataProcess<HostedPool>| {
            archipelago_host::die_with(process.parent)?;
            if !keep_buffers() {
                tracing::debug!("the allocator keeps its own settings");
            }
            archipelago_host::run(&process.roles, process.settings)
        },
        make,
        archipelago_host::check_offline,
    )
}
