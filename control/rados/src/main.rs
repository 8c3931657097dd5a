//! `archipelago-rados`: the blocker's process of a pool on RADOS.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_node::program::{DataProcess, run_backend};
use archipelago_rados::{HostedPool, make};

fn main() -> ExitCode {
    run_backend(
        |process: DataProcess<HostedPool>| {
            archipelago_host::die_with(process.parent)?;
            archipelago_host::run(&process.roles, process.settings)
        },
        make,
    )
}
