//! `archipelagod`, whose blocker does requests late and out of order. Only for tests; nothing of it is in the product.
//!
//! Each life of a process draws other delays: it is the kills that a seed repeats, not the order of completions.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use archipelago_crash_tests::node::{DELAY_VARIABLE, ORPHANS_VARIABLE};
use archipelago_doubles::Delayed;
use archipelago_node::program;
use archipelago_protocol::{Error, ErrorCode};

fn main() -> ExitCode {
    program::run(|process| {
        // An orphan outlives its daemon, as no process of the product does.
        if std::env::var_os(ORPHANS_VARIABLE).is_none() {
            archipelago_host::die_with(process.parent)?;
        }
        let longest = std::env::var(DELAY_VARIABLE)
            .ok()
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis)
            .ok_or_else(|| {
                let text = format!("{DELAY_VARIABLE} must say a number of milliseconds");
                Error::new(ErrorCode::Invalid, text)
            })?;
        let seed = u64::from(std::process::id());
        archipelago_host::run_with(&process.roles, process.settings, |backend, reactor| {
            Delayed::new(backend, reactor.source(), reactor.clock(), longest, seed)
        })
    })
}
