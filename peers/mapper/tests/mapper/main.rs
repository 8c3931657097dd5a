//! The mapper as its clients and its disk see it: over a pool in memory, one history for each promise.

#![cfg(test)]

mod catalogue;
mod catalogue_checkpoints;
mod damage;
mod diff;
mod failures;
mod full;
mod journal;
mod labels;
mod logs;
mod losses;
mod model;
mod node_snapshots;
mod nodes;
mod owned_again;
mod policies;
mod promises;
mod reclaim;
mod recovery;
mod rig;
mod rollback;
mod sessions;
mod status;
mod usage;
