//! Real guests under QEMU.
//!
//! * [`parts`]: kernel, first file system and bootable image, built once and kept.
//! * [`guest`]: a virtual machine with vhost-user disks, asked and answered on its serial console.
//! * [`qmp`]: QEMU's monitor: reset, hotplug, migration.
//! * [`deadline`]: how long anything may take.
//! * `disk-verifier`: runs in a guest, and knows what each sector of its disk must hold.
//!
//! One design decision: a guest takes commands one by one from its serial console and answers each with its exit code, so
//! that a test can do something to the server between two commands, or while one of them runs in the background, and one
//! boot (3 to 6 s when emulated) serves a whole test. What a guest can be asked is in `guest/functions.sh`.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use archipelago_crash_tests::node::Node;
//! use archipelago_vm_tests::guest::{Disk, Guest};
//!
//! let node = Node::start("fused")?;
//! let socket = node.create("disk", 256 << 20)?;
//! let guest = Guest::builder().disk(Disk::new(&socket)).boot()?;
//! guest.run("make_fs /dev/vda && make_files 10 100 && umount /mnt && check_fs /dev/vda")?;
//! # Ok(())
//! # }
//! ```
//!
//! It never measures speed: an emulated processor is the limit there.

#![forbid(unsafe_code)]

pub mod deadline;
pub mod guest;
pub mod parts;
mod programs;
pub mod qmp;
