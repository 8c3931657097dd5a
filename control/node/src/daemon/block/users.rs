//! Which process or loop device has a block device open.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// A process other than this one, or a loop device, that has the block device at `path` open; `None` also if /proc does not show it.
pub(super) fn of(path: &Path) -> Option<String> {
    let device = fs::metadata(path).ok()?.rdev();
    if let Some(loop_device) = loop_device_on(path) {
        return Some(loop_device);
    }
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes {
        let name = process.file_name();
        let is_other =
            name != own.as_str() && name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if is_other && has_open(&process.path().join("fd"), device) {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!(
                "`{}` (process {})",
                command.trim_end(),
                name.to_string_lossy()
            ));
        }
    }
    None
}

/// The loop device on `path`: then the kernel has the device open, not a process.
fn loop_device_on(path: &Path) -> Option<String> {
    let blocks = fs::read_dir("/sys/block").ok()?.flatten();
    blocks.map(|entry| entry.path()).find_map(|block| {
        let file = fs::read_to_string(block.join("loop/backing_file")).ok()?;
        let name = block.file_name()?.to_str()?;
        (Path::new(file.trim_end()) == path).then(|| format!("the loop device `{name}`"))
    })
}

fn has_open(descriptors: &Path, device: u64) -> bool {
    let open = fs::read_dir(descriptors).into_iter().flatten().flatten();
    open.map(|entry| entry.path()).any(|path| {
        // Only devices are examined, because a file system may not answer.
        fs::read_link(&path).is_ok_and(|target| target.starts_with("/dev"))
            && fs::metadata(&path)
                .is_ok_and(|found| found.file_type().is_block_device() && found.rdev() == device)
    })
}
