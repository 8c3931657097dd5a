//! Every decoder of foreign bytes as a function of bytes, for libFuzzer and for a replay without it.
//!
//! * [`TARGETS`]: what is fuzzed, with a name each. A target panics when a property is broken; it never prints.
//! * [`mutate`]: mutations from a seed, so that a stable toolchain does a little of what libFuzzer does a lot of.
//! * `corpus/NAME/`: inputs of each target, from real encodings and from what fuzzing found; `seeds` makes the former.
//!
//! One design decision: targets repair checksums themselves. An input is judged as it is and again with a checksum that
//! fits, so mutated fields reach the decoders behind it, with any mutator.
//!
//! ```
//! let slots = archipelago_fuzz_tests::target("slots").expect("a target");
//! (slots.run)(b"anything at all");
//! ```
//!
//! `tests/replay.rs` runs corpora and mutations; `libfuzzer/` is the crate for `cargo fuzz`, outside the workspace.

#![forbid(unsafe_code)]

mod input;
pub mod mutate;
mod sealed;
pub mod seeds;
mod targets;

use targets::{
    blocker, chain, channel, device, front_end, journal, mapper, metadata, protocol, slots,
};

/// Something that takes foreign bytes.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and its corpus's.
    pub name: &'static str,
    /// Survives any bytes, or panics.
    pub run: fn(&[u8]),
    /// Mutations that take about a second on a slow machine without optimisation.
    pub rounds: u64,
}

macro_rules! targets {
    ($($name:literal => $run:path, $rounds:literal;)*) => {
        /// All of them.
        pub const TARGETS: &[Target] = &[$(Target { name: $name, run: $run, rounds: $rounds }),*];
    };
}

targets! {
    "chain" => chain::chain, 5_000;
    "device" => device::device, 500;
    "front-end" => front_end::front_end, 500;
    "channel-message" => channel::message, 20_000;
    "server-port" => channel::server_port, 1_000;
    "client-port" => channel::client_port, 1_000;
    "volume-head" => metadata::volume_head, 10_000;
    "catalogue-head" => metadata::catalogue_head, 10_000;
    "log-scan" => metadata::log_scan, 1_000;
    "log-records" => metadata::log_records, 10_000;
    "map-page" => metadata::map_page, 2_000;
    "catalogue-records" => metadata::catalogue_records, 5_000;
    "catalogue-page" => metadata::catalogue_page, 5_000;
    "journal" => journal::journal, 5_000;
    "slots" => slots::slots, 1_000;
    "config" => protocol::config, 2_000;
    "map-entry" => protocol::map_entry, 20_000;
    "object-entry" => protocol::object_entry, 20_000;
    "control-json" => protocol::control_json, 5_000;
    "blocker" => blocker::blocker, 1_000;
    "mapper" => mapper::mapper, 200;
}

/// Longest input that is mutated, in bytes.
pub const INPUT_LEN_MAX: usize = 8192;

/// The target `name`.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
