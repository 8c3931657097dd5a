//! The reactor: a thread with its own io_uring that hosts a peer.
//!
//! * [`Peer`] and [`Progress`]: what the reactor polls.
//! * [`Reactor`]: the thread's loop; [`Handle`]: how other threads reach it.
//! * [`RingFailure`]: a call of io_uring that the kernel refuses permanently, and what to do about it.
//! * [`Source`]: a peer's share of the thread's io_uring; [`File`], [`Event`], [`Watch`], [`Durability`].
//! * [`Clock`]: time, passed in.
//! * [`receive_now`], [`send_now`]: a socket's bytes from and to shared memory.
//! * [`ublk`]: block devices of this host whose requests a process answers; [`set_io_flusher`].
//! * [`direct_io`]: how a file system supports `O_DIRECT`.
//!
//! One design decision: a peer is polled. It is never called back and never awaited. It is an ordinary value with a `poll` method, so the
//! same peer runs in production, in the simulator and in a test on the stack.
//!
//! This crate does not know what a peer does: it has no volumes, objects or names.

#![deny(unsafe_code)]

mod clock;
mod config;
#[expect(unsafe_code, reason = "`statx`, which nobody wraps")]
mod direct;
mod event;
mod failure;
mod file;
mod handle;
#[expect(unsafe_code, reason = "`FS_IOC_SETFLAGS`, which nobody wraps")]
mod in_place;
#[expect(unsafe_code, reason = "`prctl`, which nobody wraps")]
mod io_flusher;
mod kept_files;
mod load;
mod peer;
mod polling;
mod reactor;
#[expect(
    unsafe_code,
    reason = "what the kernel is handed; the rules stand at the top of the module"
)]
mod ring;
mod setup;
#[expect(
    unsafe_code,
    reason = "`recvmsg` and `sendmsg`, of a span that outlives the call"
)]
mod socket;
mod source;
#[expect(
    unsafe_code,
    reason = "`preadv2` and `pwritev2`, of spans that outlive the call"
)]
mod transfer;
#[expect(
    unsafe_code,
    reason = "commands of a device, which point to memory, and its mapping"
)]
pub mod ublk;
mod worker_limit;
#[expect(unsafe_code, reason = "one request that points to nothing is pushed")]
mod workers;
mod yields;

pub use clock::{Clock, ManualClock, SystemClock};
pub use config::Config;
pub use direct::{DirectIo, direct_io};
pub use event::Event;
pub use failure::RingFailure;
pub use file::{Calls, File};
pub use handle::Handle;
pub use in_place::overwrite_in_place;
pub use io_flusher::set_io_flusher;
pub use peer::{Peer, Progress};
pub use reactor::Reactor;
pub use socket::{PARTS_MAX, Part, receive_now, send_now};
pub use source::{Durability, Source, Watch};
