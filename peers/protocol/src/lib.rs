//! The vocabulary that peers share: their requests and replies, and the encoding as ring entries.
//!
//! | module | used between |
//! |---|---|
//! | [`ids`] | everybody: lineages, epochs, blocks, sizes, names |
//! | [`volume`] | a driver and the volume peer (function calls in one thread) |
//! | [`map`] | the volume peer and the mapper (ring entries) |
//! | [`journaled`] | the same: blocks that a small flush passes to the log |
//! | [`status`] | driver, volume peer and mapper: which parts of a volume hold data |
//! | [`object`] | volume peer or mapper and a blocker (ring entries): the object contract |
//! | [`capabilities`] | the same: the capabilities of a backend |
//! | [`log_sector`] | the same: the sectors of a log |
//! | [`handle`] | the same: opening and closing objects |
//! | [`client_handles`] | volume peer and mapper: their open handles |
//! | [`reply`] | all peers that use ring entries: the answer to any request |
//! | [`catalogue`] | control and the mapper: names, volumes, snapshots, images |
//! | [`control`] | the node daemon and the processes that it started |
//! | [`endpoint`] | the same, and drivers: which volume is served, at what kind of endpoint |
//! | [`last_words`] | a process of ours and the process that started it |
//! | [`grants`] | control and its processes: which volumes an endpoint may open |
//! | [`labels`] | everybody but the data path: key-value notes of users at a volume, a snapshot or an image |
//! | [`on_full`] | everybody: a volume's policy for a full pool |
//! | [`error`] | everybody: stable error codes |
//! | [`date()`] | users: wall time as text |
//!
//! One design decision: ids are structured numbers, never strings, so that every request of the data path fits in one
//! 64-byte entry, and names appear only in [`catalogue`].
//!
//! This crate never does I/O and reads no clock. It keeps no state except [`client_handles`], which two peers share.

#![forbid(unsafe_code)]

pub mod capabilities;
pub mod catalogue;
pub mod check;
pub mod client_handles;
pub mod control;
mod date;
pub mod diff;
pub mod endpoint;
pub mod error;
pub mod grants;
pub mod handle;
pub mod ids;
pub mod journaled;
pub mod labels;
pub mod last_words;
pub mod log_sector;
pub mod map;
pub mod object;
pub mod on_full;
pub mod reply;
#[cfg(feature = "schema")]
mod schema;
pub mod status;
pub mod usage;
pub mod volume;

pub use date::date;
pub use endpoint::{AttachmentId, EndpointSpec, ServedVolume};
pub use error::{Error, ErrorCode, Result};
pub use grants::{Access, Grants};
pub use ids::{BLOCK_SIZE, Epoch, Generation, Lineage, Name, ObjectSize};
pub use labels::{Label, LabelChanges, LabelFilter, LabelKey, LabelValue, Labels};
pub use on_full::OnFull;
pub use reply::Reply;
