//! `archipelagod`, whose allocations can be seen from outside: each is announced by a system call that the product never makes while it
//! serves, `getppid`. Whoever counts the system calls of one thread so counts the allocations of that thread, too. Only for tests;
//! nothing of it is in the product.

#![deny(unsafe_code)]

use std::process::ExitCode;

use archipelago_node::program;

#[expect(unsafe_code, reason = "an allocator is an unsafe trait")]
mod announcing {
    //! The system's allocator, which announces allocations.

    use std::alloc::{GlobalAlloc, Layout, System};

    use nix::unistd::getppid;

    /// Announces each allocation by a `getppid`.
    #[derive(Debug)]
    pub(super) struct Announcing;

    // SAFETY: every method is that of `System`, with the same arguments; `getppid` allocates nothing and cannot unwind.
    unsafe impl GlobalAlloc for Announcing {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            getppid();
            // SAFETY: the caller keeps the conditions of this method, which are those of the one that is called.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            getppid();
            // SAFETY: as in `alloc`.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            getppid();
            // SAFETY: as in `alloc`; blocks come from `System`.
            unsafe { System.realloc(block, layout, size) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: as in `realloc`.
            unsafe { System.dealloc(block, layout) }
        }
    }
}

#[global_allocator]
static ALLOCATOR: announcing::Announcing = announcing::Announcing;

fn main() -> ExitCode {
    program::run(|process| {
        archipelago_host::die_with(process.parent)?;
        archipelago_host::run(&process.roles, process.settings)
    })
}
