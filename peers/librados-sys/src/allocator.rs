//! The C library's allocator, which provides librados' buffers.

use nix::libc;

/// Bytes of freed memory that an arena of the allocator keeps: as many as may be under way at a time.
const KEPT_MAX: libc::c_int = 64 << 20;
/// Longest buffer that comes from an arena, in bytes: the allocator accepts no larger limit.
const FROM_ARENA_MAX: libc::c_int = 32 << 20;
/// Arenas, each shared by some threads: threads of librados seldom wait for each other.
const ARENAS_MAX: libc::c_int = 4;

/// Makes the allocator of this process keep the memory that librados frees: each large write is copied into a buffer of its own, and the
/// kernel would map and clear its pages each time. Returns whether the allocator accepts that.
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
