//! `archipelagod`: the node daemon, and under a hidden subcommand the data processes that it starts.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use archipelago_node::{hosting, program};

fn main() -> ExitCode {
    program::run(|process| {
        hosting::die_with(process.parent)?;
        hosting::run(&process.roles, process.settings)
    })
}
