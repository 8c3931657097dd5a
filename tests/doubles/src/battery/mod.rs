//! The conformance battery: every rule of [`archipelago_protocol::object`] as a case, for any backend.
//!
//! ```
//! use archipelago_doubles::{MemoryBackend, battery};
//! battery::run(&mut || Box::new(MemoryBackend::new()), &mut || {});
//! ```
//!
//! * [`run`] runs all [`CASES`], each on a fresh backend, and panics with the case's name where a rule is broken.
//! * [`Driver`] makes calls out of requests and replies; useful beyond the battery.
//!
//! What the contract leaves open is left open here: reading an object of a volume that was never written while another
//! object of the same volume was, and how much space is reported for what.

mod data;
mod driver;
mod logs;
mod many;
mod small;

pub use driver::{Driver, Outcome};

use archipelago_blocker::Backend;

/// A named rule.
pub type Case = (&'static str, fn(&mut Driver<'_>));

/// All rules.
pub const CASES: &[Case] = &[
    ("what was never written is not found", data::missing),
    ("holes read as zeros", data::holes),
    ("sectors are written alone", data::sectors),
    ("lengths and offsets need no alignment", data::unaligned),
    ("scattered memory keeps its order", data::scattered),
    (
        "the later of two writes wins once the first has completed",
        data::overwrites,
    ),
    ("a durable write reads back", data::durable),
    (
        "syncs of what is written and of the pool succeed",
        data::syncs,
    ),
    ("every request may be repeated", data::repetition),
    (
        "a punched range reads as zeros and its neighbours stay",
        data::punch,
    ),
    ("stat reports the length", data::stat),
    ("identities do not mix", data::identities),
    (
        "deleting frees the name, and deleting nothing succeeds",
        data::delete,
    ),
    ("a read past the end is zeros", data::beyond_the_end),
    ("data lies at any offset of a petabyte", data::far_offsets),
    ("one request moves 32 MiB", data::largest),
    ("every size of object is served", data::object_sizes),
    ("a small object is swapped by version", small::versions),
    (
        "a stale swap changes nothing and reports the version",
        small::stale,
    ),
    (
        "the repetition of the swap that won succeeds",
        small::repetition,
    ),
    ("contents of every length survive a swap", small::lengths),
    ("a content that is too long is refused", small::too_long),
    ("swaps of many objects do not mix", small::many),
    ("a hundred swaps in a row", small::chain),
    (
        "deleting a lineage deletes all that it has",
        small::delete_lineage,
    ),
    ("appends go round in a circle", logs::circle),
    (
        "an append lands where the log ends, and nowhere else",
        logs::position,
    ),
    (
        "the repetition of the append that landed last succeeds",
        logs::repetition,
    ),
    ("what is no batch is not appended", logs::malformed),
    (
        "a sealed log takes appends of newer sessions only",
        logs::token,
    ),
    (
        "plain writes make a log, and are refused once it is used",
        logs::plain_writes,
    ),
    (
        "appends and seals in flight together are in some order",
        logs::racing,
    ),
    ("an object is made once", logs::create),
    (
        "a listing is in order, in pages, of all kinds",
        many::listing,
    ),
    (
        "a listing without room is refused",
        many::listing_without_room,
    ),
    (
        "requests in flight together are each answered once",
        many::concurrent,
    ),
    (
        "swaps in flight together have one winner",
        many::racing_swaps,
    ),
    ("hundreds of objects", many::hundreds),
    ("the pool reports its space", many::pool),
    ("random requests agree with a model", many::model),
];

/// Runs every case on a backend of its own from `make`. `pump` does what the backend needs between polls: nothing for
/// one that works in `start` and `poll`, a turn of the reactor for one that lives on its ring.
///
/// # Panics
/// If the backend breaks a rule, or does not reply.
pub fn run(make: &mut dyn FnMut() -> Box<dyn Backend>, pump: &mut dyn FnMut()) {
    for case in CASES {
        run_case(case, make(), pump);
    }
}

/// Runs one case on `backend`.
///
/// # Panics
/// If the backend breaks the rule, or does not reply.
pub fn run_case(case: &Case, backend: Box<dyn Backend>, pump: &mut dyn FnMut()) {
    let (name, body) = case;
    let mut driver = Driver::new(backend, pump, name);
    body(&mut driver);
    driver.finish();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryBackend;

    #[test]
    fn the_memory_backend_passes() {
        run(&mut || Box::new(MemoryBackend::new()), &mut || {});
    }
}
