//! A file as a block device: the kernel's loop driver with direct I/O, so that data is not cached twice. It needs root and `losetup`.
//!
//! The attachment's path is a link to `/dev/loopN`: the kernel chooses N, which may change at a restart.

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use archipelago_api::layout::path_error;
use archipelago_protocol::ids::SECTOR_SIZE;
use archipelago_protocol::{Error, ErrorCode};
use nix::fcntl::OFlag;

use super::super::looks::Looks;
use super::tool::run;

/// How long a device may take to disappear although no program should have it open: udev opens each new device.
const GONE_TIMEOUT: Duration = Duration::from_secs(4);
const GONE_STEP: Duration = Duration::from_millis(20);

/// A loop device, identified by its link and its file.
#[derive(Debug)]
pub(super) struct LoopDevice<'a> {
    link: &'a Path,
    file: &'a Path,
    looks: &'a Looks,
}

/// The attribute `name` of `node`, a `/dev/loopN`, in the directory `loop` of sysfs.
fn attribute(node: &Path, name: &str) -> Option<String> {
    let number = node.file_name()?;
    let path = Path::new("/sys/block").join(number).join("loop").join(name);
    Some(fs::read_to_string(path).ok()?.trim_end().to_owned())
}

/// Bytes of `node`, a `/dev/loopN`; `None` if it does not exist.
fn size_of(node: &Path) -> Option<u64> {
    let path = Path::new("/sys/block").join(node.file_name()?).join("size");
    let sectors: u64 = fs::read_to_string(path).ok()?.trim_end().parse().ok()?;
    // sysfs counts in sectors, whatever the block size of the device.
    sectors.checked_mul(SECTOR_SIZE)
}

fn open_alone(node: &Path) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let options = options.read(true).custom_flags(OFlag::O_EXCL.bits());
    options.open(node).map(drop)
}

impl<'a> LoopDevice<'a> {
    pub(super) fn new(link: &'a Path, file: &'a Path, looks: &'a Looks) -> LoopDevice<'a> {
        LoopDevice { link, file, looks }
    }

    /// Whether a file system or another driver has exclusive use of `node`.
    pub(super) async fn is_claimed(&self, node: &Path) -> bool {
        let opened = self.looks.ask(node, open_alone).await;
        opened == Some(Err(io::ErrorKind::ResourceBusy))
    }

    /// The device, if it exists and has this file.
    pub(super) fn node(&self) -> Option<PathBuf> {
        let node = fs::read_link(self.link).ok()?;
        let backing = attribute(&node, "backing_file")?;
        (Path::new(&backing) == self.file).then_some(node)
    }

    /// The device that the link points to, if its backing file is ours. If the mount of that file was removed, the kernel shows only the
    /// rest of its path.
    fn node_of_link(&self) -> Option<PathBuf> {
        let node = fs::read_link(self.link).ok()?;
        let backing = attribute(&node, "backing_file")?;
        let name = self.file.file_name()?.to_str()?;
        let backing = backing.trim_end_matches(" (deleted)");
        (Path::new(backing) == self.file || backing.trim_start_matches('/') == name).then_some(node)
    }

    /// A device of this file, also without a link: an earlier daemon may have ended before it made the link.
    fn any_node(&self) -> Option<PathBuf> {
        let of_file = |entry: fs::DirEntry| {
            let node = Path::new("/dev").join(entry.file_name());
            let backing = attribute(&node, "backing_file")?;
            (Path::new(&backing) == self.file).then_some(node)
        };
        self.node_of_link().or_else(|| {
            let mut devices = fs::read_dir("/sys/block").ok()?.flatten();
            devices.find_map(of_file)
        })
    }

    /// Creates the device.
    ///
    /// # Errors
    /// [`ErrorCode::Unsupported`] without `losetup` or direct I/O; otherwise the kernel's error.
    pub(super) async fn make(&self, read_only: bool) -> Result<(), Error> {
        let file = self.file.to_string_lossy();
        let mut arguments = vec!["--direct-io=on", "--show", "--find"];
        if read_only {
            arguments.push("--read-only");
        }
        arguments.push(&file);
        let node = run("losetup", &arguments).await.map_err(|error| {
            error.with_hint("a loop device needs root, the module loop, and losetup of util-linux")
        })?;
        let node = PathBuf::from(node);
        let made = match attribute(&node, "dio").as_deref() {
            Some("1") => self.link_to(&node),
            _ => {
                let message = format!("{}: the kernel does no direct I/O here", node.display());
                Err(Error::new(ErrorCode::Unsupported, message).with_hint(
                    "use it as a file (--fuse), or over NBD (--nbd): everything would be cached twice",
                ))
            }
        };
        if made.is_err() {
            let _left = run("losetup", &["--detach", &node.to_string_lossy()]).await;
        }
        made
    }

    fn link_to(&self, node: &Path) -> Result<(), Error> {
        let _former = fs::remove_file(self.link);
        std::os::unix::fs::symlink(node, self.link).map_err(|error| path_error(self.link, &error))
    }

    /// Makes the device use the present size of its file, which is at least `size` bytes. A device that is created later gets that size by
    /// itself.
    ///
    /// # Errors
    /// [`ErrorCode::Io`] if the device has another size afterwards, [`ErrorCode::Unavailable`] if the process that serves the file does not
    /// answer; otherwise the error of the tools.
    pub(super) async fn grow(&self, size: u64) -> Result<(), Error> {
        let Some(node) = self.node() else {
            return Ok(());
        };
        if size_of(&node) >= Some(size) {
            return Ok(());
        }
        // First the file: the driver uses the size that the kernel knows, which may be older than the resize. An external program calls
        // stat, since it can be killed if the call does not return.
        let file = self.file.to_string_lossy();
        let shown = run("stat", &["--cached=never", "--format=%s", &file]).await?;
        if !shown.parse().is_ok_and(|shown: u64| shown >= size) {
            let message = format!("its file {file} has {shown} bytes, not {size}");
            return Err(Error::new(ErrorCode::Io, message));
        }
        run("losetup", &["--set-capacity", &node.to_string_lossy()]).await?;
        match size_of(&node) {
            Some(now) if now < size => {
                let message = format!("{} has {now} bytes, not {size}", node.display());
                Err(Error::new(ErrorCode::Io, message))
            }
            // The size is right, or the device was removed meanwhile.
            Some(_) | None => Ok(()),
        }
    }

    /// Removes the device and its link. It does not matter if it does not exist.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if the device is mounted, which changes nothing; or if a program has it open, in which case the kernel removes
    /// it when the program closes it.
    pub(super) async fn end(&self) -> Result<(), Error> {
        while let Some(node) = self.any_node() {
            let at = node.display();
            if self.is_claimed(&node).await {
                let message = format!("{at} is mounted, or another driver's");
                return Err(Error::new(ErrorCode::InUse, message)
                    .with_hint(format!("unmount it: `lsblk {at}` shows who has it")));
            }
            run("losetup", &["--detach", &node.to_string_lossy()]).await?;
            // The kernel removes an open device when it is closed.
            let deadline = tokio::time::Instant::now() + GONE_TIMEOUT;
            while self.any_node().as_ref() == Some(&node) {
                if tokio::time::Instant::now() >= deadline {
                    let message = format!("a program has {at} open");
                    return Err(Error::new(ErrorCode::InUse, message)
                        .with_hint(format!("end it: `fuser -v {at}` shows it")));
                }
                tokio::time::sleep(GONE_STEP).await;
            }
        }
        match fs::remove_file(self.link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(path_error(self.link, &error))
            }
            _ => Ok(()),
        }
    }
}
