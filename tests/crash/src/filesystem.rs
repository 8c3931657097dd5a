//! A small file system of its own kind for a pool: how much of it is free, to the block, and how it grows.
//!
//! All but tmpfs are on a loop device, whose file lies in a temporary directory. Nothing is reserved for root where that can be
//! chosen, so what is free to the test is free to the node. Unmounted and detached when dropped.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::program::stdout_of;
use archipelago_bench::waiting::wait_until;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use nix::unistd::syncfs;
use tempfile::TempDir;

/// Free space is set in units of this.
pub const BLOCK: u64 = 4096;
/// The file that takes what shall not be free.
const BALLAST: &str = "ballast";
/// CAP_SYS_RESOURCE in a set of capabilities.
const SYS_RESOURCE: u64 = 1 << 24;
/// How long the end of a device that nobody uses may take.
const DETACHED: Duration = Duration::from_secs(10);
/// How often the ballast is changed until what is free is what was asked for.
const ADJUSTMENTS: usize = 64;

/// Kinds of file systems that pools are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the file systems'")]
pub enum Kind {
    Tmpfs,
    Ext4,
    Xfs,
    Btrfs,
}

impl Kind {
    /// Its name, as mount(8) knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tmpfs => "tmpfs",
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
        }
    }

    /// What is free may differ by this from what was asked for: xfs and btrfs set space aside as they go.
    fn slack(self) -> u64 {
        match self {
            Kind::Tmpfs | Kind::Ext4 => 0,
            Kind::Xfs => 64 << 10,
            Kind::Btrfs => 256 << 10,
        }
    }

    /// Longest piece of the ballast: btrfs gives an extent back only as a whole.
    fn piece(self) -> u64 {
        match self {
            Kind::Tmpfs | Kind::Ext4 | Kind::Xfs => u64::MAX,
            Kind::Btrfs => 64 << 10,
        }
    }

    /// What makes one on a device.
    fn make(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Kind::Tmpfs => None,
            Kind::Ext4 => Some(("mkfs.ext4", &["-q", "-m", "0", "-b", "4096"])),
            Kind::Xfs => Some(("mkfs.xfs", &["-q"])),
            Kind::Btrfs => Some(("mkfs.btrfs", &["-q"])),
        }
    }

    /// What checks it in a file and changes nothing.
    fn check(self) -> Option<(&'static str, &'static [&'static str])> {
        match self {
            Kind::Tmpfs => None,
            Kind::Ext4 => Some(("e2fsck", &["-f", "-n"])),
            Kind::Xfs => Some(("xfs_repair", &["-n", "-f"])),
            Kind::Btrfs => Some(("btrfs", &["check", "--readonly"])),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A mounted file system.
#[derive(Debug)]
pub struct FileSystem {
    kind: Kind,
    dir: TempDir,
    device: Option<String>,
    mounted: bool,
}

/// Runs a tool of the system: what it printed.
fn tool(name: &str, arguments: &[&str]) -> Result<String> {
    let said = stdout_of(Command::new(name).args(arguments))?;
    Ok(said.trim().to_owned())
}

/// Waits for the end of `device`: it stays while a mount of it is left in another mount namespace, and its image changes.
fn wait_detached(device: &str) -> Result<()> {
    let image = Path::new("/sys/block")
        .join(device.trim_start_matches("/dev/"))
        .join("loop/backing_file");
    let used = || format!("{device} is in use, though it was unmounted and detached");
    wait_until(DETACHED, used, || Ok((!image.exists()).then_some(())))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}

impl FileSystem {
    /// Makes and mounts one of `size` bytes.
    ///
    /// # Errors
    /// If that cannot be done here, which needs root and the tools of the file system.
    pub fn new(kind: Kind, size: u64) -> Result<FileSystem> {
        let mut this = FileSystem {
            kind,
            dir: tempfile::Builder::new().prefix("filesystem-").tempdir()?,
            device: None,
            mounted: false,
        };
        fs::create_dir(this.path())?;
        let Some((make, options)) = kind.make() else {
            let size = format!("size={size}");
            tool(
                "mount",
                &["-t", "tmpfs", "-o", &size, "none", text(&this.path())?],
            )?;
            this.mounted = true;
            return Ok(this);
        };
        let image = this.image();
        File::create(&image)?.set_len(size)?;
        let arguments: Vec<&str> = options.iter().copied().chain([text(&image)?]).collect();
        tool(make, &arguments)?;
        let device = tool("losetup", &["--find", "--show", text(&image)?])?;
        this.device = Some(device.clone());
        tool("mount", &["-t", kind.name(), &device, text(&this.path())?])?;
        this.mounted = true;
        Ok(this)
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn ballast(&self) -> Result<File> {
        let path = self.path().join(BALLAST);
        let mut options = File::options();
        Ok(options
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?)
    }

    /// Bytes that are free to everybody.
    ///
    /// # Errors
    /// If the file system does not say.
    pub fn free(&self) -> Result<u64> {
        let found = statvfs(&self.path())?;
        Ok(found.blocks_available() * found.fragment_size())
    }

    /// Leaves `free` bytes free, rounded down to blocks, by the length of a file beside the pool: exactly so on tmpfs and ext4.
    ///
    /// # Errors
    /// If that cannot be done.
    pub fn leave(&self, free: u64) -> Result<()> {
        let free = free / BLOCK * BLOCK;
        let ballast = self.ballast()?;
        let mut found = self.free()?;
        for _ in 0..ADJUSTMENTS {
            if found.abs_diff(free) <= self.kind.slack() {
                return Ok(());
            }
            if found > free {
                self.lengthen(&ballast, (found - free).next_multiple_of(BLOCK))?;
            } else {
                let len = ballast.metadata()?.len();
                let less = (free - found).next_multiple_of(BLOCK);
                ensure!(
                    len >= less,
                    "{}: {found} bytes are free and {len} in the ballast, so {free} cannot be",
                    self.kind
                );
                ballast.set_len(len - less)?;
            }
            if self.kind == Kind::Btrfs {
                // What was freed is free when that is durable.
                syncfs(&ballast)?;
            }
            found = self.free()?;
        }
        bail!("{}: {found} bytes are free, not {free}", self.kind)
    }

    /// Leaves free all that the pool does not have.
    ///
    /// # Errors
    /// If there is no ballast.
    pub fn remove_ballast(&self) -> Result<()> {
        Ok(fs::remove_file(self.path().join(BALLAST))?)
    }

    /// Adds `more` bytes to the ballast, or what there is space for.
    fn lengthen(&self, ballast: &File, more: u64) -> Result<()> {
        let mut left = more;
        while left > 0 {
            let piece = left.min(self.kind.piece());
            let from = i64::try_from(ballast.metadata()?.len())?;
            match fallocate(
                ballast,
                FallocateFlags::empty(),
                from,
                i64::try_from(piece)?,
            ) {
                Ok(()) => left -= piece,
                // What the allocation itself needs leaves no room for so much.
                Err(Errno::ENOSPC) if left > BLOCK => {
                    left = (left / 2).next_multiple_of(BLOCK);
                }
                Err(Errno::ENOSPC) => return Ok(()),
                Err(errno) => return Err(errno).context("fallocate of the ballast"),
            }
        }
        Ok(())
    }

    /// Whether it can grow while it is in use: ext4 wants a capability for that (SYS_RESOURCE) that root may lack in a container.
    ///
    /// # Errors
    /// If this process cannot be asked.
    pub fn can_grow(&self) -> Result<bool> {
        if self.kind != Kind::Ext4 {
            return Ok(true);
        }
        let status = fs::read_to_string("/proc/self/status")?;
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.context("no capabilities in /proc/self/status")?;
        Ok(u64::from_str_radix(effective.trim(), 16)? & SYS_RESOURCE != 0)
    }

    /// Gives it `size` bytes while it is in use, as an administrator does.
    ///
    /// # Errors
    /// If a tool fails.
    pub fn grow(&self, size: u64) -> Result<()> {
        let path = self.path();
        let at = text(&path)?;
        let Some(device) = &self.device else {
            let size = format!("remount,size={size}");
            return tool("mount", &["-o", &size, at]).map(drop);
        };
        File::options()
            .write(true)
            .open(self.image())?
            .set_len(size)?;
        tool("losetup", &["--set-capacity", device])?;
        match self.kind {
            Kind::Tmpfs => Ok(()),
            Kind::Ext4 => tool("resize2fs", &[device]).map(drop),
            Kind::Xfs => tool("xfs_growfs", &[at]).map(drop),
            Kind::Btrfs => tool("btrfs", &["filesystem", "resize", "max", at]).map(drop),
        }
    }

    /// Unmounts and checks it.
    ///
    /// # Errors
    /// If something has it open still, or its checker finds anything.
    pub fn finish(mut self) -> Result<()> {
        tool("umount", &[text(&self.path())?])?;
        self.mounted = false;
        if let Some(device) = self.device.take() {
            // The device may have blocks in its cache that its file system, which writes beside the cache, has made anew.
            tool("losetup", &["--detach", &device])?;
            wait_detached(&device)?;
        }
        if let Some((check, options)) = self.kind.check() {
            let image = self.image();
            let arguments: Vec<&str> = options.iter().copied().chain([text(&image)?]).collect();
            tool(check, &arguments)?;
        }
        Ok(())
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        // What is gone already is gone.
        if self.mounted
            && let Some(path) = self.path().to_str()
        {
            let _gone = tool("umount", &["--lazy", path]);
        }
        if let Some(device) = &self.device {
            let _gone = tool("losetup", &["--detach", device]);
        }
    }
}
