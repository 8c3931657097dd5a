//! The reserve: space for metadata when data has filled the file system.
//!
//! A file of the pool that is allocated and empty. A call for metadata that finds no space shortens the file and is repeated; what the call
//! did not use is allocated again at once. Metadata are logs, heads, map and catalogue pages, names, and deletions, which need space on
//! file systems that copy on write.
//!
//! Invariants
//! - Data never takes released space: no data write begins, and none of ours is in flight, from before the file is shortened until it has
//!   taken back the rest ([`crate::write_gate`]).
//! - The reserve comes before data: when there is space again, the file grows first.
//! - A new log, of megabytes, never takes the second half: that is for what exists already, above all for recoveries.
//! - Without it, or with too little of it, a pool works; then a call that finds no space fails.
//!
//! The file is allocated in pieces of [`PIECE`]: btrfs frees an extent only as a whole.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};

use crate::access::is_full;
use crate::layout::Layout;
use crate::room::room;
use crate::write_gate::WriteGate;

/// The unit in which the file is allocated, and first released.
const PIECE: u64 = 256 << 10;
/// The rest of a piece is taken back in multiples of this.
const UNIT: u64 = 4096;
/// The reserve's share of the file system: one byte in so many.
const SHARE: u64 = 64;
/// Shortest reserve: enough for some directories and heads, and for the map pages of a recovery.
const LEN_MIN: u64 = 1 << 20;
/// Longest reserve: enough for fifteen new logs, or for a recovery of many volumes.
const LEN_MAX: u64 = 64 << 20;
const _: () = assert!(LEN_MIN.is_multiple_of(PIECE) && LEN_MAX.is_multiple_of(PIECE));

/// How much of the reserve a call may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// All of it.
    All,
    /// The first half.
    Half,
}

/// The state of the file.
#[derive(Debug)]
enum Kept {
    /// It does not exist.
    Missing,
    File {
        file: File,
        len: u64,
    },
    /// The file system does not support preallocation.
    Refused,
}

/// The reserve of a pool. Except for the figures, its calls are made by threads that may block.
#[derive(Debug)]
pub(crate) struct Reserve {
    directory: PathBuf,
    path: PathBuf,
    kept: Mutex<Kept>,
    /// Held by the one thread that spends.
    turn: Mutex<()>,
    gate: WriteGate,
    /// Bytes that it has, and should have: atomics, for readers that must not wait.
    held: AtomicU64,
    wanted: AtomicU64,
    /// Free bytes when the last try to grow found no space: another try needs more.
    futile: AtomicU64,
    /// Calls that took from it.
    spent: AtomicU64,
    /// A thread has been asked to grow it.
    growing: AtomicBool,
    /// Whether it was logged that the reserve is being spent.
    reported: Mutex<bool>,
}

/// The length of the reserve of a file system of `total` bytes.
fn wanted_of(total: u64) -> u64 {
    match total {
        // The file system has no limit that it reports.
        0 => 0,
        _ => (total / SHARE / PIECE * PIECE).clamp(LEN_MIN, LEN_MAX),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data is consistent between any two calls.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn signed(value: u64) -> io::Result<i64> {
    i64::try_from(value).map_err(io::Error::other)
}

/// Whether `error` means that the file system does not support preallocation.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}

impl Reserve {
    /// The reserve of the pool at `layout`, in its present state; nothing is made.
    pub(crate) fn open(layout: &Layout) -> io::Result<Reserve> {
        let reserve = Reserve {
            directory: layout.directory().to_owned(),
            path: layout.reserve(),
            kept: Mutex::new(Kept::Missing),
            turn: Mutex::default(),
            gate: WriteGate::default(),
            held: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            futile: AtomicU64::new(0),
            spent: AtomicU64::new(0),
            growing: AtomicBool::new(false),
            reported: Mutex::default(),
        };
        match OpenOptions::new().write(true).open(&reserve.path) {
            Ok(file) => {
                let metadata = file.metadata()?;
                let len = metadata.len().min(metadata.blocks() * 512);
                reserve.keep(&mut lock(&reserve.kept), Kept::File { file, len });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!("{}: {error}", reserve.path.display()),
        }
        Ok(reserve)
    }

    /// The gate before data writes.
    pub(crate) fn gate(&self) -> &WriteGate {
        &self.gate
    }

    /// Bytes that it has, and should have; at most a moment old. Never blocks.
    pub(crate) fn figures(&self) -> [u64; 2] {
        // Only shown: they order nothing else.
        [&self.held, &self.wanted].map(|figure| figure.load(Ordering::Relaxed))
    }

    /// Calls that took from it so far.
    pub(crate) fn spent(&self) -> u64 {
        self.spent.load(Ordering::Relaxed)
    }

    /// Whether it has less than it should have.
    pub(crate) fn is_short(&self) -> bool {
        let [held, wanted] = self.figures();
        held < wanted
    }

    fn keep(&self, kept: &mut Kept, now: Kept) {
        let (held, wanted) = match &now {
            Kept::Missing => (0, self.wanted.load(Ordering::Relaxed)),
            Kept::File { len, .. } => (*len, self.wanted.load(Ordering::Relaxed)),
            Kept::Refused => (0, 0),
        };
        self.held.store(held, Ordering::Relaxed);
        self.wanted.store(wanted, Ordering::Relaxed);
        *kept = now;
    }

    /// Runs `call`; while it finds no space, runs it again, each time with more of the reserve.
    pub(crate) fn spend<T>(
        &self,
        claim: Claim,
        mut call: impl FnMut() -> T,
        finds_no_room: impl Fn(&T) -> bool,
    ) -> T {
        let mut result = call();
        if !finds_no_room(&result) || self.figures()[0] == 0 {
            return result;
        }
        let _turn = lock(&self.turn);
        self.gate.close();
        let mut give = PIECE;
        while finds_no_room(&result) && self.give(give, claim) {
            give *= 2;
            result = call();
        }
        self.grow();
        self.gate.open();
        if !finds_no_room(&result) {
            self.spent.fetch_add(1, Ordering::Relaxed);
            self.report_spent();
        }
        result
    }

    /// Releases `len` bytes or a little more. Returns whether any were released.
    fn give(&self, len: u64, claim: Claim) -> bool {
        let least = match claim {
            Claim::All => 0,
            Claim::Half => self.figures()[1] / 2,
        };
        let mut kept = lock(&self.kept);
        let Kept::File { file, len: held } = &mut *kept else {
            return false;
        };
        let left = held.saturating_sub(len).max(least) / PIECE * PIECE;
        if left >= *held {
            return false;
        }
        if let Err(error) = file.set_len(left) {
            tracing::warn!("{}: {error}", self.path.display());
            return false;
        }
        *held = left;
        self.held.store(left, Ordering::Relaxed);
        true
    }

    /// Whether no thread has been asked to grow it; a caller that gets `true` asks one.
    pub(crate) fn may_begin_growing(&self) -> bool {
        !self.growing.swap(true, Ordering::Relaxed)
    }

    /// Grows to its full length if there is space, before data takes it.
    pub(crate) fn grow_if_room(&self) {
        self.growing.store(false, Ordering::Relaxed);
        let _turn = lock(&self.turn);
        let Ok(room) = room(&self.directory) else {
            return;
        };
        if room.free < UNIT || room.free <= self.futile.load(Ordering::Relaxed) {
            return;
        }
        self.gate.close();
        self.grow();
        self.gate.open();
    }

    /// Grows as far as there is space.
    pub(crate) fn grow(&self) {
        let mut kept = lock(&self.kept);
        if let Err(error) = self.try_grow(&mut kept) {
            tracing::debug!("{}: {error}", self.path.display());
        }
        drop(kept);
        if !self.is_short() {
            self.report_whole();
        }
    }

    fn try_grow(&self, kept: &mut Kept) -> io::Result<()> {
        let room = room(&self.directory)?;
        if matches!(kept, Kept::Refused) {
            return Ok(());
        }
        self.wanted.store(wanted_of(room.total), Ordering::Relaxed);
        let [_, wanted] = self.figures();
        if wanted == 0 {
            return Ok(());
        }
        if matches!(kept, Kept::Missing) {
            if room.free < UNIT {
                return Ok(());
            }
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&self.path)?;
            let len = file.metadata()?.len();
            self.keep(kept, Kept::File { file, len });
        }
        let Kept::File { file, len } = kept else {
            return Ok(());
        };
        let before = *len;
        let done = allocate(file, len, wanted, room.free);
        self.held.store(*len, Ordering::Relaxed);
        let left = room.free.saturating_sub(*len - before);
        let futile = if self.is_short() { left } else { 0 };
        self.futile.store(futile, Ordering::Relaxed);
        match done {
            Err(error) if is_unsupported(&error) => {
                tracing::info!(
                    "pool {}: without a reserve: the file system allocates nothing ahead ({error})",
                    self.directory.display()
                );
                self.keep(kept, Kept::Refused);
                fs::remove_file(&self.path)
            }
            done => done,
        }
    }

    /// Logs a warning if there is less than there should be.
    pub(crate) fn report_start(&self) {
        let [held, wanted] = self.figures();
        if held < wanted {
            *lock(&self.reported) = true;
            tracing::warn!(
                "pool {}: its file system has room for {held} of {wanted} bytes of the reserve: while it is full, commands may \
                 be refused; free space there, or grow the file system",
                self.directory.display()
            );
        }
    }

    fn report_spent(&self) {
        if std::mem::replace(&mut *lock(&self.reported), true) {
            return;
        }
        let [held, wanted] = self.figures();
        tracing::warn!(
            "pool {}: its file system is full: metadata is written from the reserve, {held} of {wanted} bytes are left; \
             free space there, or grow the file system",
            self.directory.display()
        );
    }

    fn report_whole(&self) {
        if std::mem::replace(&mut *lock(&self.reported), false) {
            tracing::info!(
                "pool {}: the reserve is whole again",
                self.directory.display()
            );
        }
    }
}

/// Allocates `file`, of which `len` bytes are allocated, up to `wanted`, as far as the `free` bytes reach.
fn allocate(file: &File, len: &mut u64, wanted: u64, mut free: u64) -> io::Result<()> {
    while *len < wanted {
        let piece = (PIECE - *len % PIECE).min(wanted - *len);
        let mut size = piece.min(free / UNIT * UNIT);
        loop {
            if size < UNIT {
                return Ok(());
            }
            let result = fallocate(file, FallocateFlags::empty(), signed(*len)?, signed(size)?);
            match result.map_err(io::Error::from) {
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) => {
                    // The newly allocated part may be a hole.
                    file.set_len(*len)?;
                    size = size / 2 / UNIT * UNIT;
                }
                Err(error) => return Err(error),
            }
        }
        *len += size;
        free -= size;
        if size < piece {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> (tempfile::TempDir, Reserve) {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let reserve = Reserve::open(&Layout::new(dir.path())).unwrap();
        reserve.grow();
        (dir, reserve)
    }

    fn allocated(reserve: &Reserve) -> u64 {
        fs::metadata(&reserve.path).unwrap().blocks() * 512
    }

    #[test]
    fn a_reserve_is_a_part_of_its_file_system_within_bounds() {
        for (total, wanted) in [
            (0, 0),
            (16 << 20, LEN_MIN),
            (1 << 30, 16 << 20),
            ((1 << 30) + (1 << 23), 16 << 20),
            (1 << 40, LEN_MAX),
            (u64::MAX, LEN_MAX),
        ] {
            assert_eq!(wanted_of(total), wanted, "{total}");
        }
    }

    #[test]
    fn what_is_given_up_and_not_taken_is_the_reserves_again() {
        let (_dir, reserve) = fresh();
        let [held, wanted] = reserve.figures();
        assert_eq!((held, allocated(&reserve)), (wanted, wanted));
        let mut left = Vec::new();
        let done = reserve.spend(
            Claim::All,
            || {
                left.push(wanted - allocated(&reserve));
                left.len()
            },
            |tries| *tries < 4,
        );
        assert_eq!(done, 4);
        // Twice as much more each time, in whole pieces.
        assert_eq!(left, [0, PIECE, 3 * PIECE, 7 * PIECE]);
        assert_eq!(reserve.figures(), [wanted, wanted]);
        assert_eq!(allocated(&reserve), wanted);
        assert_eq!(reserve.spent(), 1);
        let again = Reserve::open(&Layout::new(&reserve.directory)).unwrap();
        assert_eq!(again.figures()[0], wanted);
    }

    #[test]
    fn a_new_log_leaves_half_of_it() {
        let (_dir, reserve) = fresh();
        let [_, wanted] = reserve.figures();
        for (claim, least) in [(Claim::Half, wanted / 2), (Claim::All, 0)] {
            let mut left = wanted;
            let full = reserve.spend(
                claim,
                || {
                    left = left.min(allocated(&reserve));
                    false
                },
                |room| !room,
            );
            assert!(!full);
            assert!(left.abs_diff(least) < PIECE, "{claim:?}: {left}");
        }
        assert_eq!(reserve.spent(), 0, "it found no room with it either");
    }

    #[test]
    fn a_call_that_finds_room_costs_nothing() {
        let (_dir, reserve) = fresh();
        let mut calls = 0;
        reserve.spend(Claim::All, || calls += 1, |()| false);
        assert_eq!((calls, reserve.spent()), (1, 0));
    }
}
