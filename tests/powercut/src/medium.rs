//! The file systems: how the guest makes one, and what is done to its image after a power cut: what a machine does that
//! boots again. The kernel replays the journal, the files are validated, and the checker must find nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use archipelago_bench::program::output;
use archipelago_vm_tests::deadline::{COMMAND, Deadline};
use nix::errno::Errno;
use nix::mount::umount;
use tempfile::TempDir;

use crate::promise::{Promise, validate};

/// What the guest formats its disk with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// With blocks of 1 KiB or 4 KiB, as the seed says.
    Ext4,
    /// With the smallest log, which is soon written in a circle.
    Xfs,
}

impl FileSystem {
    /// As the kernel calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        }
    }

    /// The one that the kernel calls so.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [FileSystem::Ext4, FileSystem::Xfs]
            .into_iter()
            .find(|known| known.name() == name)
    }

    /// Bytes of it: small, since it is looked at thousands of times.
    #[must_use]
    pub fn size(self) -> u64 {
        64 << 20
    }

    /// The command that makes it on `disk`.
    #[must_use]
    pub fn make(self, seed: u64, disk: &str) -> String {
        let mib = self.size() >> 20;
        match self {
            FileSystem::Ext4 => {
                let block = if seed.is_multiple_of(2) { 4096 } else { 1024 };
                format!("mkfs.ext4 -q -F -b {block} -J size=4 {disk} {mib}M")
            }
            // What its own tests set, or it makes nothing below 300 MiB.
            FileSystem::Xfs => format!(
                "TEST_DIR=1 TEST_DEV=1 QA_CHECK_FS=1 mkfs.xfs -q -f -d size={mib}m -l size=6m {disk}"
            ),
        }
    }

    /// Replays the journal, as every mount does. A second mount of the same image elsewhere must not stop this one.
    fn mount_options(self) -> &'static str {
        match self {
            FileSystem::Ext4 => "loop,errors=remount-ro",
            FileSystem::Xfs => "loop,nouuid",
        }
    }

    /// Looks for anything wrong, changing nothing.
    fn check(self, image: &Path) -> Result<()> {
        let mut command = match self {
            FileSystem::Ext4 => {
                let mut command = administration("e2fsck");
                command.arg("-fn");
                command
            }
            FileSystem::Xfs => {
                let mut command = administration("xfs_repair");
                command.arg("-n");
                command
            }
        };
        let output = output(command.arg(image)).context(self.name())?;
        let text = said(&output);
        // The first is what a kernel leaves that has met an error, and e2fsck excuses with its exit code.
        ensure!(
            !text.contains("with errors") && output.status.success(),
            "the file system is damaged: {}: {text}",
            output.status
        );
        Ok(())
    }
}

/// A program that is not in everybody's path.
fn administration(program: &str) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
    command
}

fn said(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Where images are mounted.
#[derive(Debug)]
pub struct Medium {
    kind: FileSystem,
    dir: TempDir,
}

struct Mounted {
    image: PathBuf,
    root: PathBuf,
}

impl Mounted {
    fn unmount(self) -> Result<()> {
        let result = self.try_unmount();
        std::mem::forget(self);
        result
    }

    /// Unmounts, and waits until the kernel has written the file system out. It is busy while a program that another thread has just started
    /// still has the files that were open here. And a process that has copied the mount into a namespace of its own keeps the file system
    /// alive, and its log unfinished, although it is not mounted here any more: the loop device is released last.
    #[expect(clippy::disallowed_methods, reason = "waits for another process")]
    fn try_unmount(&self) -> Result<()> {
        let deadline = Deadline::after(COMMAND);
        let pause = || std::thread::sleep(Duration::from_millis(1));
        loop {
            match umount(&self.root) {
                Err(Errno::EBUSY) if deadline.left().is_some() => pause(),
                result => break result.context("umount")?,
            }
        }
        while has_loop_device(&self.image)? {
            ensure!(
                deadline.left().is_some(),
                "{} is unmounted, and a loop device still has it",
                self.image.display()
            );
            pause();
        }
        Ok(())
    }
}

/// Whether a loop device has `image` open.
fn has_loop_device(image: &Path) -> Result<bool> {
    for device in std::fs::read_dir("/sys/block")? {
        // Devices come and go; one without a file has no such attribute.
        let file = std::fs::read_to_string(device?.path().join("loop/backing_file"));
        if file.is_ok_and(|file| Path::new(file.trim_end_matches('\n')) == image) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.try_unmount().ok();
    }
}

impl Medium {
    /// In memory, if there is such a place.
    ///
    /// # Errors
    /// If no directory can be made.
    pub fn new(kind: FileSystem) -> Result<Self> {
        let memory = Path::new("/dev/shm");
        let mut builder = tempfile::Builder::new();
        builder.prefix("power-cut-");
        let dir = if memory.is_dir() {
            builder.tempdir_in(memory)?
        } else {
            builder.tempdir()?
        };
        std::fs::create_dir(dir.path().join("root"))?;
        Ok(Medium { kind, dir })
    }

    /// Bytes of an image.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.kind.size()
    }

    /// The image; whoever fills it begins with [`Medium::blank`].
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// An image of zeros.
    ///
    /// # Errors
    /// If there is no space.
    pub fn blank(&self) -> Result<Image> {
        let file = File::create(self.image())?;
        file.set_len(self.kind.size())?;
        Ok(Image { file })
    }

    /// Why nothing can be mounted here; `None`: it can. Tried with an empty file system.
    ///
    /// # Errors
    /// If the file system cannot be made.
    pub fn obstacle(&self) -> Result<Option<String>> {
        self.blank()?;
        let make = self.kind.make(0, &self.image().display().to_string());
        let output = output(administration("sh").args(["-c", &make]))?;
        // One of these is linked to the other, but not everywhere.
        ensure!(output.status.success(), "{make}: {}", said(&output));
        match self.mount() {
            Ok(mounted) => mounted.unmount().map(|()| None),
            Err(error) => Ok(Some(format!("{error:#}"))),
        }
    }

    fn mount(&self) -> Result<Mounted> {
        let root = self.dir.path().join("root");
        let mut command = Command::new("mount");
        command
            .args(["-t", self.kind.name(), "-o", self.kind.mount_options()])
            .arg(self.image())
            .arg(&root);
        let output = output(&mut command)?;
        ensure!(
            output.status.success(),
            "mounting {}: {}",
            self.kind.name(),
            said(&output)
        );
        Ok(Mounted {
            image: self.image(),
            root,
        })
    }

    /// Mounts the image, validates its files, unmounts and checks it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn validate(&self, promise: &Promise) -> Result<()> {
        let mounted = self.mount()?;
        validate(&mounted.root, promise)?;
        mounted.unmount()?;
        self.kind.check(&self.image())
    }
}

/// An image that is being filled.
#[derive(Debug)]
pub struct Image {
    file: File,
}

impl Image {
    /// Puts `bytes` at `offset`, but for what is zero there already.
    ///
    /// # Errors
    /// If there is no space.
    pub fn put(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        const BLOCK: usize = 4096;
        let mut at = offset;
        for block in bytes.chunks(BLOCK) {
            if block.iter().any(|byte| *byte != 0) {
                self.file.write_all_at(block, at)?;
            }
            at += block.len() as u64;
        }
        Ok(())
    }
}
