//! Ganeti's external storage provider `archipelago`: disks of Ganeti's instances are volumes of this host's node.
//!
//! One program, whose function depends on the name by which it is called. Ganeti finds it under the names of the interface's scripts in a
//! directory
//! of its own, and as the instances' `kvm_path` under the name of the QEMU wrapper.
//!
//! | module | what |
//! |---|---|
//! | [`call`] | Ganeti's call: its environment, parsed once into a checked value |
//! | [`parameters`] | the parameters of a disk: `origin`, `pool`, `userspace` and so on |
//! | [`actions`] | what each script does: a function for each, on the node's API |
//! | [`wrapper`] | QEMU's command line: virtio disks of Ganeti become vhost-user disks |
//! | [`installation`] | installs all of it where Ganeti looks, removes it, checks it |
//! | [`settings`] | the small file that an installation leaves beside the scripts |
//!
//! One design decision: the scripts store no state between two calls. Only the node knows what is attached, how large a volume is and who
//! owns it, so a script that is killed or called twice finds the true state. The interface: ganeti-extstorage-interface(7).
//!
//! ```
//! use archipelago_ganeti::call::{Action, Call};
//!
//! let variables = [("VOL_NAME", "u.ext.disk0"), ("VOL_NEW_SIZE", "2048")];
//! let variables = variables.map(|(name, value)| (name.into(), value.into()));
//! let call = Call::parse(Action::Grow, variables)?;
//! assert!(matches!(call, Call::Grow { size: 2_147_483_648, .. }));
//! # Ok::<(), archipelago_protocol::Error>(())
//! ```
//!
//! This crate never touches a pool and contains no part of the data path: everything is a request to the node's daemon.

#![forbid(unsafe_code)]

pub mod actions;
pub mod call;
mod clock;
pub mod installation;
pub mod parameters;
pub mod settings;
mod volume;
pub mod wrapper;

pub use clock::{Clock, SystemClock};
