//! The servers that are compared, each in a private directory, stopped by pid when dropped.
//!
//! They serve the same blocks of the disk, by turns: the pool's container of a volume is the peer's raw image
//! ([`Volumes`]). Two files of one disk can differ fourfold.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

mod archipelago;
mod qemu_fuse;
mod qemu_nbd;
mod qemu_storage_daemon;
mod usage;

pub use archipelago::{Archipelago, Build, Volumes};
pub use qemu_fuse::QemuFuse;
pub use qemu_nbd::QemuNbd;
pub use qemu_storage_daemon::QemuStorageDaemon;
pub use usage::{Usage, usage_of};

/// CPU that servers run on; the client has another one.
pub const SERVER_CPU: &str = "0";

/// A server of volumes or images. At most one serves at a time: what they serve are the same blocks.
pub trait Server {
    /// What the tables call it.
    fn name(&self) -> &str;

    /// Begins to serve the filled volume.
    ///
    /// # Errors
    /// If it cannot be served.
    fn filled(&mut self) -> Result<PathBuf>;

    /// Begins to serve a fresh clone of the filled volume.
    ///
    /// # Errors
    /// If it cannot be served.
    fn fresh_clone(&mut self) -> Result<PathBuf>;

    /// Its processes while it serves.
    ///
    /// # Errors
    /// If they cannot be asked for.
    fn pids(&self) -> Result<Vec<u32>>;

    /// Serves no more: when this returns, nothing of it accesses the disk.
    ///
    /// # Errors
    /// If it does not end.
    fn release(&mut self) -> Result<()>;
}

/// Where the program `name` of this project is: `$ARCHIPELAGO_BIN_DIR`, or beside this program.
///
/// # Errors
/// If it is in neither place.
pub fn own_program(name: &str) -> Result<PathBuf> {
    let beside = std::env::current_exe()?.parent().map(Path::to_path_buf);
    let named = std::env::var_os("ARCHIPELAGO_BIN_DIR").map(PathBuf::from);
    named
        .into_iter()
        .chain(beside)
        .map(|dir| dir.join(name))
        .find(|path| path.exists())
        .with_context(|| format!("`{name}` is neither in $ARCHIPELAGO_BIN_DIR nor beside this program: build it first"))
}
