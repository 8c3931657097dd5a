//! Sessions of volume peers: what they ask of a volume, and the work on volumes that it takes.
//!
//! Invariants
//! - Locks are taken in this order: the lineage's, that of commits, that of checkpoints. One batch and one head swap in
//!   flight.
//! - A page or batch is durable only after the data that it speaks of, or a batch together with it: commits take what the
//!   volume peer has synced, or journal the data; checkpoints and closes sync the pool first if the volume is unsynced.
//! - After a failed sync, append or swap the volume is poisoned: it writes nothing until it was opened again. After a
//!   failed sync of the pool all are.
//!
//! | module | work |
//! |---|---|
//! | `requests` | who may ask what, and the answers |
//! | `open`, `close` | the begin and end of a session |
//! | `locate` | where blocks live: the hot path |
//! | `status` | which blocks hold data |
//! | `change` | first writes and zeroes |
//! | `commit`, `checkpoint` | the log, and the map's pages with a new head |
//! | `snapshot` | snapshots of an open volume |
//! | `owned_again` | blocks that only removed snapshots had |
//! | `ownership` | which node has a volume |
//! | `load`, `recovery`, `begin` | from the pool into memory, and what a session writes first |
//! | `settled` | volumes that nobody has open |
//! | `stored` | the map of a volume as any crash would leave it |
//! | `current` | the map of anything as it is now |
//! | `pages` | map pages that a step needs |

mod admission;
mod begin;
mod change;
mod checkpoint;
mod close;
mod commit;
mod current;
mod head;
mod load;
mod locate;
mod open;
mod owned_again;
mod ownership;
mod pages;
mod recovery;
mod requests;
mod settled;
mod snapshot;
mod status;
mod stored;

pub(crate) use close::client_gone;
pub(crate) use current::current_tree;
pub(crate) use head::read_head;
pub(crate) use ownership::check_owner;
pub(crate) use requests::dispatch;
pub(crate) use settled::{freeze_closed, shrink};
pub(crate) use stored::stored_root;
