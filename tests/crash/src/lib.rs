//! A client that knows what it must read, and the nodes under test.
//!
//! * [`pattern`]: sectors that say whose they are, where they belong and which write made them.
//! * [`model`]: what each sector of a volume must hold, and what a snapshot may hold.
//! * [`ring`], [`disk`]: a guest's ring and requests in flight, which outlive the server, and their front end.
//! * [`verifier`]: random requests over vhost-user, checked against the model, also across the death of the server.
//! * [`node`]: a real node in a private directory, its processes, and signals to them.
//! * [`control`]: requests to the node by its API or its command, and what its catalogue lists then.
//! * [`filesystem`]: a small file system for a pool, with as much free as a test wants.
//! * [`growing_pool`]: a pool that guests fill, on a file system that is grown under them.
//! * [`rewriter`]: a guest that needs no space, and whether it was disturbed.
//! * [`small_pool`]: a file system that is soon full, and a guest that fills it.
//! * [`witness`]: how long the file system and the machine make a plain writer wait.
//! * [`fault`]: a kill, a stop, or both, of random processes of a node.
//! * [`loaded_volumes`]: several volumes under load at once, and the longest gap in service of each.
//! * [`system_calls`]: which calls a thread makes.
//! * `archipelagod-delaying`: the node daemon, with requests done late and out of order.
//! * `archipelagod-counting`: the node daemon, with allocations that are seen from outside.
//! * `service-gaps`: how long a guest waits when a process dies.
//!
//! One design decision: requests in flight never overlap, so that every read has exactly one right answer; and a guest
//! submits nothing again, so that what was in flight when a server died must be done by its successor, once.
//!
//! A failure prints the seed; `CRASH_SEED=<seed>` runs the same sequence again.

#![forbid(unsafe_code)]

pub mod control;
pub mod disk;
pub mod fault;
pub mod filesystem;
pub mod growing_pool;
pub mod loaded_volumes;
pub mod model;
pub mod node;
pub mod pattern;
pub mod rewriter;
pub mod ring;
pub mod small_pool;
pub mod system_calls;
pub mod verifier;
pub mod witness;

/// The seed of this run: `$CRASH_SEED`, else 1. Prints how to replay it.
#[must_use]
#[expect(clippy::print_stdout, reason = "how to replay")]
pub fn seed() -> u64 {
    let seed = std::env::var("CRASH_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    println!("replay with CRASH_SEED={seed}");
    seed
}

/// Ends a test for which this machine lacks something, saying `what`.
///
/// # Errors
/// With `$CI` set: there nothing may be missing, and a test that does not run is a failure.
#[expect(clippy::print_stdout, reason = "why nothing was tested")]
pub fn skip(what: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::env::var_os("CI").is_none(),
        "not to be skipped: {what}"
    );
    println!("skipped: {what}");
    Ok(())
}
