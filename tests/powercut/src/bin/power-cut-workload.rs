//! Runs in the guest: does the steps of a plan, and says on the disk itself when one is over.
//!
//!     power-cut-workload ROOT DISK OFFSET SEED FIRST LAST
//!
//! The report is a block at OFFSET of DISK, behind the file system, written past all caches after the step was synced.
//! So it stands in the recording behind everything that the step may rely on, and before anything of the next step.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use archipelago_power_cut_tests::plan::{Action, DIRECTORIES, Plan, Step, Sync, content};
use archipelago_power_cut_tests::report;
use nix::fcntl::OFlag;

struct Guest {
    root: PathBuf,
    disk: File,
    offset: u64,
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().context("six arguments");
    let root = PathBuf::from(next()?);
    let disk = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_DIRECT.bits())
        .open(next()?)?;
    let guest = Guest {
        root,
        disk,
        offset: next()?.parse()?,
    };
    let mut plan = Plan::new(next()?.parse()?);
    let (first, last): (u32, u32) = (next()?.parse()?, next()?.parse()?);
    if first == 0 {
        for number in 0..DIRECTORIES {
            fs::create_dir(guest.root.join(format!("d{number}")))?;
        }
        nix::unistd::syncfs(&File::open(&guest.root)?)?;
        guest.report(0)?;
    }
    while plan.number() < last {
        let step = plan.advance();
        if step.number >= first {
            guest
                .carry_out(&step)
                .with_context(|| format!("{step:?}"))?;
            guest.report(step.number)?;
        }
    }
    Ok(())
}

impl Guest {
    /// Memory that the kernel can write from directly is aligned, and we have no word for that: the report lies at an
    /// aligned place of a larger piece.
    fn report(&self, number: u32) -> Result<()> {
        let mut memory = vec![0_u8; 2 * report::LEN];
        let start = memory.as_ptr().align_offset(report::LEN);
        memory[start..start + report::LEN].copy_from_slice(&report::bytes(number));
        self.disk
            .write_all_at(&memory[start..start + report::LEN], self.offset)?;
        Ok(())
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn sync_directory(&self, path: &str) -> Result<()> {
        Ok(File::open(self.path(path))?.sync_all()?)
    }

    fn carry_out(&self, step: &Step) -> Result<()> {
        let whole = step.sync == Sync::All;
        match step.action {
            Action::Create { name, len } => {
                let path = self.path(&name.path());
                write(&path, 0, &content(step.number, 0, len), true, !whole)?;
                if !whole {
                    self.sync_directory(&name.directory())?;
                }
            }
            Action::Write { name, at, len } => {
                let path = self.path(&name.path());
                write(&path, at, &content(step.number, at, len), false, !whole)?;
            }
            Action::Truncate { name, len } => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(self.path(&name.path()))?;
                file.set_len(len as u64)?;
                if !whole {
                    file.sync_all()?;
                }
            }
            Action::Replace { name, len } => {
                let path = self.path(&name.temporary());
                write(&path, 0, &content(step.number, 0, len), true, true)?;
                fs::rename(&path, self.path(&name.path()))?;
                if !whole {
                    self.sync_directory(&name.directory())?;
                }
            }
            Action::Rename { from, to } => {
                fs::rename(self.path(&from.path()), self.path(&to.path()))?;
                if !whole {
                    self.sync_directory(&from.directory())?;
                    self.sync_directory(&to.directory())?;
                }
            }
            Action::Remove { name } => {
                fs::remove_file(self.path(&name.path()))?;
                if !whole {
                    self.sync_directory(&name.directory())?;
                }
            }
        }
        if whole {
            nix::unistd::syncfs(&File::open(&self.root)?)?;
        }
        Ok(())
    }
}

fn write(path: &Path, at: usize, bytes: &[u8], new: bool, sync: bool) -> Result<()> {
    let file = OpenOptions::new().write(true).create_new(new).open(path)?;
    file.write_all_at(bytes, at as u64)?;
    // A length that grows is what `fdatasync` makes durable, too; times are not.
    match (sync, new) {
        (true, true) => file.sync_all()?,
        (true, false) => file.sync_data()?,
        (false, _) => {}
    }
    Ok(())
}
