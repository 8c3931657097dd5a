//! Several nodes on one pool: mappers over one simulated backend, whose calls complete in any order, at any time, also when the
//! mapper that sent them has died long ago. No fence of this harness keeps anything from the pool: what comes late is refused by the
//! backend, or harms nobody.
//!
//! * [`history`]: whether what the nodes have seen is one history.
//! * [`world`]: the nodes and the pool.
//! * [`run`]: what a run does.

pub mod history;
pub mod run;
pub mod world;
