//! The C library's allocator, from which librados has its buffers.

use nix::libc;

/// Freed memory that an arena of the allocator keeps, in bytes: as much as may be under way at a time.
const KEPT_MAX: libc::c_int = 64 << 20;
/// Longest buffer that comes from an arena, in bytes: the allocator accepts no larger limit.
const FROM_ARENA_MAX: libc::c_int = 32 << 20;
/// Arenas, each for some threads. A thread of librados seldom waits for another one's.
const ARENAS_MAX: libc::c_int = 4;

/// Has the allocator of this process keep what librados frees: each large write is copied into a buffer of its own, and the kernel would
/// map and clear its pages each time. Whether it accepts that.
pub fn keep_buffers() -> bool {
    let settings = [
        (libc::M_MMAP_THRESHOLD, FROM_ARENA_MAX),
        (libc::M_TRIM_THRESHOLD, KEPT_MAX),
        (libc::M_ARENA_MAX, ARENAS_MAX),
    ];
    settings.iter().all(|(setting, value)| {
        // SAFETY: the call changes numbers of the allocator under its own lock, and takes no memory of ours.
        unsafe { libc::mallopt(*setting, *value) == 1 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_accepts_the_settings() {
        assert!(keep_buffers());
    }
}
