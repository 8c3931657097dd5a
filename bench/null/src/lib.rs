//! Data threads whose storage costs nothing: what a request costs in the peers, and what a second thread adds.
//!
//! * [`NullData`]: a backend that answers reads and writes of volumes' data at once; nothing is read or written.
//! * [`contest`]: loads on volumes of nodes with one data thread and with several, by turns. [`thread_times`]: the CPU time of a process by thread.
//! * `archipelagod-null`: the node daemon with that backend. `archipelago-bench-null`: the contest.
//!
//! One design decision: heads, logs and pages go to the backend of files, so all that is left out is the transfer of data.
//!
//! Never part of the product: what a volume on this backend is read as is not what was written.

#![forbid(unsafe_code)]

pub mod contest;
mod null_data;
pub mod thread_times;

pub use null_data::NullData;
