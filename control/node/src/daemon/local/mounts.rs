//! The kernel's table of mounts: proc(5).

use std::path::Path;

/// The table.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Whether something is mounted at `directory`, a path without links.
pub(super) fn is_mounted(directory: &Path) -> bool {
    // If the table cannot be read, the next call on the mount reports the error.
    let table = std::fs::read_to_string(MOUNTS).unwrap_or_default();
    is_in_table(&table, directory)
}

fn is_in_table(table: &str, directory: &Path) -> bool {
    let mut places = table.lines().filter_map(|line| line.split(' ').nth(4));
    let escaped = directory
        .to_string_lossy()
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011")
        .replace('\n', "\\012");
    places.any(|place| place == escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_whole_path() {
        let table = "22 1 0:20 / /proc rw - proc proc rw\n90 22 0:50 / /run/a\\040b/7 rw - fuse archipelago rw\n";
        for (place, found) in [
            ("/proc", true),
            ("/run/a b/7", true),
            ("/run/a b", false),
            ("/run/a b/77", false),
        ] {
            assert_eq!(is_in_table(table, Path::new(place)), found, "{place}");
        }
    }
}
