//! A file system without a free page: what is metadata takes from the reserve, data never does.

use std::fs;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use super::*;

const LEN: &str = "size=64m";
const MIB: usize = 1 << 20;
/// The reserve of 64 MiB.
const RESERVE: u64 = 1 << 20;

/// A backend on a tmpfs, with a reserve.
struct Full<'a, 'b> {
    directory: &'a Path,
    backend: &'a RefCell<FileBackend>,
    driver: &'a mut Driver<'b>,
    seconds: u64,
}

/// Unmounts, also when a test fails.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _gone = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

fn on_a_full_file_system(test: impl FnOnce(Full<'_, '_>)) {
    let dir = tempfile::tempdir().unwrap();
    let flags = MsFlags::empty();
    if let Err(errno) = mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some(LEN)) {
        let skips = std::env::var_os("CI").is_none();
        assert!(skips, "not to be skipped: mounting needs root: {errno}");
        println!("skipped: mounting needs root: {errno}");
        return;
    }
    let _mounted = Mounted(dir.path());
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let mut reactor = reactor();
    let options = Options {
        reserve: true,
        ..options(&pool)
    };
    let backend = FileBackend::open(&options, reactor.source(), &SystemClock).unwrap();
    let backend = Rc::new(RefCell::new(backend));
    let mut pump = || {
        reactor.turn();
        reactor.sleep(Duration::from_millis(1));
    };
    let shared = Box::new(SharedBackend(Rc::clone(&backend)));
    let mut driver = Driver::new(shared, &mut pump, "full");
    // Made while there is room.
    assert_eq!(driver.write(data(1), 0, &[1; MIB]), Ok(1 << 20));
    let free = statvfs(dir.path()).unwrap();
    let free = free.blocks_available() * free.fragment_size();
    fs::write(
        dir.path().join("ballast"),
        vec![1; usize::try_from(free).unwrap()],
    )
    .unwrap();
    test(Full {
        directory: dir.path(),
        backend: &backend,
        driver: &mut driver,
        seconds: 0,
    });
}

fn data(number: u128) -> ObjectId {
    ObjectId::data(Lineage(number), Epoch(1))
}

impl Full<'_, '_> {
    fn held(&self) -> u64 {
        self.backend.borrow().pool_report().unwrap().reserve.held
    }

    /// Somebody else gives `len` bytes back.
    fn free(&self, len: usize) {
        let path = self.directory.join("ballast");
        let ballast = fs::OpenOptions::new().write(true).open(path).unwrap();
        let left = ballast.metadata().unwrap().len() - len as u64;
        ballast.set_len(left).unwrap();
    }

    fn wait_until_held(&mut self, held: u64) {
        for _ in 0..5000 {
            if self.held() == held {
                return;
            }
            // Turns the reactor.
            self.driver.read(data(1), 0, 4096).unwrap();
        }
        panic!("the reserve has {}, not {held}", self.held());
    }

    /// A second goes by.
    fn look(&mut self) {
        self.seconds += 1;
        let now = Duration::from_secs(self.seconds);
        self.backend.borrow_mut().look(now);
    }

    /// A write of data where nothing was written before.
    fn new_data(&mut self, piece: u64) -> Result<u32, ErrorCode> {
        self.driver
            .write(data(1), (piece + 1) * 2 * MIB as u64, &[2; MIB])
    }
}

#[test]
fn with_no_page_left_metadata_is_written_and_data_is_not() {
    on_a_full_file_system(|mut full| {
        assert_eq!(full.held(), RESERVE);
        assert_eq!(full.new_data(0), Err(ErrorCode::NoSpace));
        assert_eq!(full.held(), RESERVE, "data takes nothing of it");
        let page = [3; 4096];
        let (pack, log) = (ObjectId::pack(Lineage(2), 1), ObjectId::log(Lineage(2), 1));
        assert_eq!(full.driver.write(pack, 0, &page), Ok(4096));
        assert_eq!(
            full.driver.write_with(log, 0, &page, FLAG_DURABLE),
            Ok(4096)
        );
        let swapped = full.driver.swap(ObjectId::head(Lineage(3)), 0, b"head");
        assert_eq!(swapped.result, Ok(0));
        // A pack, a log and the block of its token, a head of two pages.
        assert_eq!(full.held(), RESERVE - 5 * 4096);
        assert_eq!(full.backend.borrow().figures().reserve_spent, 4);
        for id in [pack, log] {
            assert_eq!(full.driver.read(id, 0, 4096).as_deref(), Ok(&page[..]));
        }
        // What has its place is written as ever.
        assert_eq!(full.driver.write(data(1), 0, &[4; MIB]), Ok(1 << 20));
        assert_eq!(full.new_data(1), Err(ErrorCode::NoSpace));
        assert_eq!(full.held(), RESERVE - 5 * 4096);
    });
}

#[test]
fn a_new_log_leaves_half_of_the_reserve_and_an_append_none() {
    on_a_full_file_system(|full| {
        let log = ObjectId::log(Lineage(2), 1);
        let (mut at, piece) = (0, vec![5; 4096]);
        let mut fill = |flags| {
            loop {
                match full.driver.write_with(log, at, &piece, flags) {
                    Ok(_) => at += 4096,
                    Err(code) => return (code, at),
                }
            }
        };
        let header = 4096;
        assert_eq!(fill(0), (ErrorCode::NoSpace, RESERVE / 2 - header));
        assert_eq!(fill(FLAG_DURABLE), (ErrorCode::NoSpace, RESERVE - header));
    });
}

#[test]
fn data_that_is_written_all_the_time_takes_nothing_of_what_is_given_up() {
    on_a_full_file_system(|full| {
        let mut taken = 0;
        for round in 0..100_u64 {
            let pack = ObjectId::pack(Lineage(2), round);
            let write = |id, offset, len| ObjectRequest {
                offset,
                len,
                ..ObjectRequest::new(ObjectOp::Write, id)
            };
            let written = full.driver.start(&write(pack, 0, 4096), &[(0, 4096)]);
            let mut next = 0;
            // The pack's directory entry, file and page are made by a thread meanwhile.
            while full.backend.borrow().figures().reserve_spent == round {
                // Where nothing was written before.
                let offset = 2 * MIB as u64 + (round * 1000 + next) * 65536;
                let span = &[(0, 4096)];
                let ticket = full.driver.start(&write(data(1), offset, 4096), span);
                match full.driver.wait(ticket).result {
                    Err(ErrorCode::NoSpace) => next += 1,
                    other => panic!("round {round}: data was written: {other:?}"),
                }
            }
            assert_eq!(full.driver.wait(written).result, Ok(4096));
            taken += 4096;
            assert_eq!(full.held(), RESERVE - taken, "round {round}");
        }
    });
}

#[test]
fn the_reserve_grows_before_data_does() {
    on_a_full_file_system(|mut full| {
        let log = ObjectId::log(Lineage(2), 1);
        let half = vec![6; 512 << 10];
        let taken = full.driver.write_with(log, 0, &half, FLAG_DURABLE);
        assert_eq!((taken, full.held()), (Ok(512 << 10), RESERVE / 2 - 4096));
        assert_eq!(full.new_data(0), Err(ErrorCode::NoSpace));
        // The first write that finds room has the reserve take the rest of what is missing.
        full.free(half.len());
        assert_eq!(full.driver.write(data(1), 1 << 30, &[2; 4096]), Ok(4096));
        full.wait_until_held(RESERVE - 2 * 4096);
        assert_eq!(full.new_data(1), Err(ErrorCode::NoSpace));
        // Without a write it is found within a second.
        full.free(2 * 4096);
        full.look();
        full.wait_until_held(RESERVE);
        assert_eq!(full.new_data(2), Err(ErrorCode::NoSpace));
        full.free(2 * MIB);
        assert_eq!(full.new_data(3), Ok(1 << 20));
        assert_eq!(full.held(), RESERVE);
    });
}
