//! Every call on a pool's file system, failing in every way: what a guest sees, what is durable, how service continues.
//!
//! * [`disk`]: a file system, served by the test, that fails on order and forgets what was not synced.
//! * [`server`], [`guest`]: the real node and a guest, neither of which may keep anybody waiting; [`host`]: another host for a node.
//! * [`watch`], [`neighbour`]: what must be served while a call does not return.
//! * [`oracle`]: what may be read.
//! * [`life`]: the life of a pool, with some faults.
//! * [`matrix`]: all faults at all call sites. [`place`]: where its files lie.
//!
//! One design decision: the faults are made below the product's system calls, by a FUSE file system, so that nothing of the
//! product is replaced.

#![forbid(unsafe_code)]

pub mod disk;
pub mod guest;
pub mod host;
pub mod life;
pub mod matrix;
pub mod neighbour;
pub mod oracle;
pub mod place;
pub mod server;
pub mod watch;
