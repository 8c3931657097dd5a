//! What tests put in the place of storage: backends and journals that lose, delay, fail and record on demand, and the
//! battery that every backend passes; and what they put in the place of a driver's host.
//!
//! * [`SimulatedBackend`]: keeps written apart from durable, fails and crashes on demand: for crash tests.
//! * [`MemoryBackend`]: the object contract in memory, without faults: for tests of what stands above a backend.
//! * [`Delayed`]: any backend, with requests done late and out of order.
//! * [`Recording`]: any backend, with its requests and replies written down.
//! * [`battery`]: the conformance battery of [`archipelago_protocol::object`], one case for each rule.
//! * [`MemoryJournals`]: the presence journals of a mapper, in memory that outlives it.
//! * [`MemoryChannel`]: the channel of a kept volume, for tests of what is in flight over it.
//! * [`memory_volumes`]: a volume peer in memory, for tests of drivers.
//! * [`epoll_wakeups`]: an event loop for one driver.
//! * [`data_thread`]: a thread that polls one driver.
//!
//! All of them stand here, and not beside what they replace, so that the product cannot be built with one of them by
//! mistake: no product crate depends on this one, except for its tests (`tests/tidy.sh`). A crate on which this one
//! depends uses it in its integration tests only; in its unit tests the types would be there twice.
//!
//! Nothing here runs a peer, a mapper or a process.

#![forbid(unsafe_code)]

pub mod battery;
pub mod data_thread;
mod delayed;
pub mod epoll_wakeups;
mod journals;
mod memory;
mod memory_channel;
pub mod memory_volumes;
mod pages;
mod recording;
pub mod simulated;

pub use delayed::Delayed;
pub use journals::{JournalBytes, MemoryJournals};
pub use memory::MemoryBackend;
pub use memory_channel::MemoryChannel;
pub use recording::{Recorded, Recording};
pub use simulated::SimulatedBackend;
