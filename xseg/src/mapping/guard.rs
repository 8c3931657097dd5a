//! Files that are truncated while they are mapped: an access beyond the new end causes a SIGBUS, which would end the process.
//!
//! A front end can truncate the file of its guest's memory at any time, so one hostile front end could end a process that serves many. The
//! handler maps a zero page in place of the missing page and marks the mapping as damaged: the access continues, and the owner of the
//! mapping finds the mark and stops serving that guest.
//!
//! Invariants
//! - The handler uses only async-signal-safe operations: atomics of a fixed table, `mmap`, `sigaction`; and it preserves `errno`.
//! - Faults outside registered mappings, and machine checks, end the process as they would without the handler.
//! - An entry is removed before its addresses are unmapped, so a fault never finds a mapping that does not exist any more.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// Most mappings: twice the regions that the channels of a process can name; 24 bytes each.
const ENTRIES: usize = 32_768;

const FREE: u8 = 0;
const CHANGING: u8 = 1;
const USED: u8 = 2;

struct Watched {
    state: AtomicU8,
    damaged: AtomicBool,
    base: AtomicUsize,
    len: AtomicUsize,
}

static TABLE: [Watched; ENTRIES] = [const {
    Watched {
        state: AtomicU8::new(FREE),
        damaged: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; ENTRIES];
/// Entries from this index on have never been used: the handler searches only up to it.
static USED_END: AtomicUsize = AtomicUsize::new(0);

/// A mapping's entry in the table; dropping it frees the entry.
#[derive(Debug)]
pub(super) struct Entry(usize);

impl Entry {
    pub(super) fn is_damaged(&self) -> bool {
        // Relaxed: the flag guards no other memory. The thread that faulted has set it itself, in its handler (`replace`).
        TABLE[self.0].damaged.load(Ordering::Relaxed)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `register`; the next owner of the entry comes after all accesses of this one.
        TABLE[self.0].state.store(FREE, Ordering::Release);
    }
}

/// Registers a mapping. `None`: the table is full, and the mapping is not guarded.
pub(super) fn register(base: usize, len: usize) -> Option<Entry> {
    for (index, watched) in TABLE.iter().enumerate() {
        // Acquire: pairs with the Release in `Entry::drop`. Relaxed on failure: nothing is read then.
        let taken =
            watched
                .state
                .compare_exchange(FREE, CHANGING, Ordering::Acquire, Ordering::Relaxed);
        if taken.is_ok() {
            // Relaxed: the store of `USED` below publishes all three.
            watched.damaged.store(false, Ordering::Relaxed);
            watched.base.store(base, Ordering::Relaxed);
            watched.len.store(len, Ordering::Relaxed);
            // Release: pairs with the Acquire in `find`; base and length are complete.
            watched.state.store(USED, Ordering::Release);
            // Release: pairs with the Acquire in `find`; a search that sees this end sees the entry.
            USED_END.fetch_max(index + 1, Ordering::Release);
            return Some(Entry(index));
        }
    }
    tracing::warn!(
        entries = ENTRIES,
        "too many mappings to guard against truncation"
    );
    None
}

/// The registered mapping that contains `address`.
fn find(address: usize) -> Option<&'static Watched> {
    // Acquire: pairs with the Release of `fetch_max` in `register`.
    TABLE[..USED_END.load(Ordering::Acquire).min(ENTRIES)]
        .iter()
        .find(|watched| {
            // Acquire: pairs with the Release of `USED` in `register`; base and length are complete.
            watched.state.load(Ordering::Acquire) == USED
                && address.wrapping_sub(watched.base.load(Ordering::Relaxed))
                    < watched.len.load(Ordering::Relaxed)
        })
}

/// Makes this process survive accesses to mappings whose file was truncated; see [`Region::is_damaged`].
///
/// Installs a SIGBUS handler, once; call it before serving memory of other processes.
///
/// # Errors
/// The error of `sigaction`.
///
/// [`Region::is_damaged`]: crate::Region::is_damaged
pub fn guard_against_truncation() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(install)
        .map_err(io::Error::from_raw_os_error)
}

fn install() -> Result<(), i32> {
    let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_bus_error;
    // SAFETY: `sigaction` is plain data, for which zeros are the documented empty value.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = handler as usize;
    // ONSTACK: a fault in deep recursion still finds a stack, if the thread has an alternative one.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `action` is initialised, the handler is async-signal-safe (see the module) and lives as long as the program.
    if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL));
    }
    Ok(())
}

extern "C" fn on_bus_error(_signal: i32, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    // SAFETY: the C library gives each thread its own `errno`, always at a valid address.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above: valid, and this thread's own.
    let kept = unsafe { errno.read() };
    // SAFETY: with SA_SIGINFO the kernel passes a complete siginfo that is there until the handler returns.
    let info = unsafe { &*info };
    // SAFETY: SIGBUS fills in the address, whatever its code.
    let address = unsafe { info.si_addr() }.addr();
    let code = info.si_code;
    let repaired =
        code == libc::BUS_ADRERR && find(address).is_some_and(|watched| replace(watched, address));
    if !repaired {
        // Returning to the faulting instruction ends the process now, as if there were no handler.
        // SAFETY: plain system call; SIG_DFL is a valid disposition.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        if code <= 0 {
            // Not a fault but sent by a process, so there is no instruction to return to.
            // SAFETY: plain and async-signal-safe; blocked until the handler returns, and deadly then.
            unsafe { libc::raise(libc::SIGBUS) };
        }
    }
    // SAFETY: as above.
    unsafe { errno.write(kept) };
}

/// Maps zeros in place of the page at `address`, or of the whole mapping if single pages cannot be mapped (huge pages).
fn replace(watched: &Watched, address: usize) -> bool {
    const PAGE: usize = 4096;
    // Relaxed: `find` has acquired the entry, and the mapping that faulted stays registered meanwhile.
    let base = watched.base.load(Ordering::Relaxed);
    let len = watched.len.load(Ordering::Relaxed);
    // Relaxed: see `Entry::is_damaged`.
    watched.damaged.store(true, Ordering::Relaxed);
    map_zeros(address & !(PAGE - 1), PAGE) || map_zeros(base, len)
}

fn map_zeros(start: usize, len: usize) -> bool {
    // SAFETY: the range lies in a registered mapping, whose owner is alive (an entry is dropped before its mapping) and
    // which is accessed only through copies and atomics that expect its bytes to change at any time.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(start),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
