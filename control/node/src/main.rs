//! `archipelagod`: the node daemon, and under a hidden subcommand the data processes that it starts.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_node::program;

fn main() -> ExitCode {
    program::run(|process| {
        archipelago_host::die_with(process.parent)?;
        archipelago_host::run(&process.roles, process.settings)
    })
}
