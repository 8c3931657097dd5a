//! A file as a block device: the kernel's loop driver, with direct I/O, so that nothing is cached twice. It needs root and `losetup`.
//!
//! The attachment's path is a link to `/dev/loopN`: N is the kernel's choice, and may be another one after a restart.

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

/// How long a device that nobody should have open may take to go: udev looks at each new one.
const GONE_TIMEOUT: Duration = Duration::from_secs(4);
const GONE_STEP: Duration = Duration::from_millis(20);

/// A loop device, by its link and its file.
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

/// Bytes of `node`, a `/dev/loopN`; `None`: there is none.
fn size_of(node: &Path) -> Option<u64> {
    let path = Path::new("/sys/block").join(node.file_name()?).join("size");
    let sectors: u64 = fs::read_to_string(path).ok()?.trim_end().parse().ok()?;
    // Whatever the device's blocks are, sysfs counts in these.
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

    /// Whether a file system or another driver has `node` for itself.
    pub(super) async fn is_claimed(&self, node: &Path) -> bool {
        let opened = self.looks.ask(node, open_alone).await;
        opened == Some(Err(io::ErrorKind::ResourceBusy))
    }

    /// The device, if it is there and of this file.
    pub(super) fn node(&self) -> Option<PathBuf> {
        let node = fs::read_link(self.link).ok()?;
        let backing = attribute(&node, "backing_file")?;
        (Path::new(&backing) == self.file).then_some(node)
    }

    /// The device that the link leads to, if its backing file is ours. The mount of that file may be removed: then the kernel shows the
    /// rest of its path.
    fn node_of_link(&self) -> Option<PathBuf> {
        let node = fs::read_link(self.link).ok()?;
        let backing = attribute(&node, "backing_file")?;
        let name = self.file.file_name()?.to_str()?;
        let backing = backing.trim_end_matches(" (deleted)");
        (Path::new(backing) == self.file || backing.trim_start_matches('/') == name).then_some(node)
    }

    /// A device of this file: also one to which the link does not lead, of a daemon that ended before it made that.
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

    /// Makes the device.
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

    /// Makes the device take the present size of its file, which is at least `size` bytes. A device that is made later has that size
    /// anyhow.
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
        // First the file: the driver takes what the kernel knows of its size, which may be older than the resize. A stat that does not
        // return is a program's, which can be ended.
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
            // As it shall be, or taken away meanwhile.
            Some(_) | None => Ok(()),
        }
    }

    /// Takes it away, with its link. One that is not there is no error.
    ///
    /// # Errors
    /// [`ErrorCode::InUse`] if it is mounted, which changes nothing; or if a program has it open: it goes when that program closes it.
    pub(super) async fn end(&self) -> Result<(), Error> {
        while let Some(node) = self.any_node() {
            let at = node.display();
            if self.is_claimed(&node).await {
                let message = format!("{at} is mounted, or another driver's");
                return Err(Error::new(ErrorCode::InUse, message)
                    .with_hint(format!("unmount it: `lsblk {at}` shows who has it")));
            }
            run("losetup", &["--detach", &node.to_string_lossy()]).await?;
            // The kernel takes away what is open when it is closed.
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
