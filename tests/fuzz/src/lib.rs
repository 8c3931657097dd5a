//! Every decoder of foreign bytes as a function of bytes, for libFuzzer and for a replay without it.
//!
//! * [`TARGETS`]: what is fuzzed, with a name each. A target panics when a property is broken; it never prints.
//! * [`mutate`]: mutations from a seed, so that a stable toolchain does a little of what libFuzzer does a lot of.
//! * [`seeds`]: inputs of each target from real encodings, where mutation begins. `regressions/NAME/`: inputs that failed once.
//!
//! One design decision: targets repair checksums themselves. An input is judged as it is and again with a checksum that
//! fits, so mutated fields reach the decoders behind it, with any mutator.
//!
//! ```
//! let slots = archipelago_fuzz_tests::target("slots").expect("a target");
//! (slots.run)(b"anything at all");
//! ```
//!
//! `tests/replay.rs` runs them and mutations of them; `libfuzzer/` is the crate for `cargo fuzz`, outside the workspace.

#![forbid(unsafe_code)]

mod input;
pub mod mutate;
mod sealed;
pub mod seeds;
mod targets;

use targets::{
    blocker, chain, channel, device, front_end, journal, mapper, metadata, nbd, protocol, slots,
};

/// Something that takes foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder of regressions.
    pub name: &'static str,
    /// Survives any bytes, or panics.
    pub run: fn(&[u8]),
    /// Mutations that take about two seconds on a slow machine without optimisation.
    pub rounds: u64,
}

macro_rules! targets {
    ($($name:literal => $run:path, $rounds:literal;)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: $name, run: $run, rounds: $rounds }),*];
    };
}

targets! {
    "chain" => chain::chain, 10_000;
    "device" => device::device, 1_000;
    "front-end" => front_end::front_end, 1_000;
    "nbd-handshake" => nbd::handshake, 20_000;
    "nbd-connection" => nbd::connection, 400;
    "channel-message" => channel::message, 40_000;
    "server-port" => channel::server_port, 2_000;
    "client-port" => channel::client_port, 2_000;
    "volume-head" => metadata::volume_head, 20_000;
    "catalogue-head" => metadata::catalogue_head, 20_000;
    "log-scan" => metadata::log_scan, 2_000;
    "log-records" => metadata::log_records, 20_000;
    "map-page" => metadata::map_page, 4_000;
    "catalogue-records" => metadata::catalogue_records, 10_000;
    "catalogue-page" => metadata::catalogue_page, 10_000;
    "journal" => journal::journal, 10_000;
    "slots" => slots::slots, 2_000;
    "config" => protocol::config, 4_000;
    "map-entry" => protocol::map_entry, 40_000;
    "status-page" => protocol::status_page, 20_000;
    "object-entry" => protocol::object_entry, 40_000;
    "control-json" => protocol::control_json, 10_000;
    "blocker" => blocker::blocker, 2_000;
    "mapper" => mapper::mapper, 400;
}

/// Longest input that is mutated, in bytes.
pub const INPUT_LEN_MAX: usize = 8192;

/// The target `name`.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
