//! librados, the C library of Ceph's object store, behind a small safe layer.
//!
//! * [`Cluster`]: a connection; calls that concern the whole cluster, and block.
//! * [`Pool`]: one namespace of a pool; calls on objects. Each call returns at once and ends in a [`Completed`].
//! * [`Completions`]: calls under way, and their results as librados' threads report them; a doorbell for a thread that sleeps.
//! * [`WriteOp`], [`ReadOp`]: several steps on one object, carried out atomically.
//!
//! One design decision: calls are asynchronous, and the caller of one gives away what librados needs until the call ends (memory,
//! operation, results), so no caller can free it too early. A [`WriteOp`] is consumed when it is started, because librados empties it.
//!
//! `bindings` is bindgen's output for the functions in use, from `rados/librados.h` 16.2.15 of Debian 12. It was generated once: a build
//! needs no libclang, and linking needs `librados-dev`.
//!
//! ```no_run
//! use librados_sys::{Cluster, Completions, ConnectOptions, Payload, WriteOp};
//!
//! let cluster = Cluster::connect(&ConnectOptions::default())?;
//! let pool = cluster.pool("rbd", "namespace")?;
//! let mut completions = Completions::new()?;
//! let op = WriteOp::new().create_exclusive().write(0, b"text".to_vec());
//! pool.operate(&mut completions, 1, c"object", op);
//! let completed = completions.wait();
//! assert_eq!((completed.token, completed.result), (1, Ok(0)));
//! # Ok::<(), librados_sys::RadosError>(())
//! ```
//!
//! This crate never retries, and contains nothing of the objects' content.

mod allocator;
#[allow(
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    non_camel_case_types,
    dead_code,
    clippy::all,
    reason = "generated"
)]
mod bindings;
mod cluster;
mod completions;
mod error;
mod handle;
mod pool;
mod read_op;
mod write_op;

#[link(name = "rados")]
unsafe extern "C" {}

pub use allocator::keep_buffers;
pub use cluster::{Cluster, ConnectOptions};
pub use completions::{Completed, Completions, Payload};
pub use error::{Code, RadosError};
pub use pool::Pool;
pub use read_op::{Found, ReadOp};
pub use write_op::{Comparison, Hint, WriteOp};
