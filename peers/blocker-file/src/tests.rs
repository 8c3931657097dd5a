//! The conformance battery on a disk and in memory, and what only files have.

mod full;
mod joined;
mod logs;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::Backend as _;
use archipelago_doubles::battery::{self, Driver};
use archipelago_protocol::object::{FLAG_DURABLE, ObjectId, ObjectOp, ObjectRequest};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};
use archipelago_runtime::{Config, Reactor, SystemClock};

use super::*;
use crate::pool::check_marker;

fn options(directory: &Path) -> Options {
    Options {
        directory: directory.to_path_buf(),
        direct: true,
        reserve: false,
        lock_timeout: Duration::from_secs(5),
        claimant: Claimant::default(),
        backends: 1,
    }
}

fn reactor() -> Reactor {
    let config = Config {
        poll: Duration::ZERO,
        ..Config::default()
    };
    Reactor::new(config, Arc::new(SystemClock)).unwrap()
}

/// A backend on a ring of its own, and what turns the ring.
fn open(directory: &Path) -> (FileBackend, Reactor) {
    let reactor = reactor();
    let source = reactor.source();
    (
        FileBackend::open(&options(directory), source, &SystemClock).unwrap(),
        reactor,
    )
}

fn battery_in(base: &Path) {
    for case in battery::CASES {
        let dir = tempfile::tempdir_in(base).unwrap();
        let pool = dir.path().join("pool");
        create(&pool).unwrap();
        let (backend, mut reactor) = open(&pool);
        battery::run_case(case, Box::new(backend), &mut || {
            reactor.turn();
            reactor.sleep(Duration::from_millis(1));
        });
    }
}

#[test]
fn the_battery_passes_on_a_disk() {
    battery_in(&std::env::temp_dir());
}

#[test]
fn the_battery_passes_in_memory() {
    battery_in(Path::new("/dev/shm"));
}

/// Has `test` drive a backend on a fresh pool in this directory, and look into it meanwhile.
fn with_backend(test: impl FnOnce(&Path, &RefCell<FileBackend>, &mut Driver<'_>)) {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let (backend, mut reactor) = open(&pool);
    let backend = Rc::new(RefCell::new(backend));
    let mut pump = || {
        reactor.turn();
        reactor.sleep(Duration::from_millis(1));
    };
    let shared = Box::new(SharedBackend(Rc::clone(&backend)));
    let mut driver = Driver::new(shared, &mut pump, "shared");
    test(&pool, &backend, &mut driver);
    driver.finish();
}

#[test]
fn what_a_short_write_left_is_written_before_the_answer() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let (mut backend, mut reactor) = open(&pool);
    let id = ObjectId::data(Lineage(1), Epoch(1));
    let request = ObjectRequest {
        len: 8192,
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    let memory = xseg::Region::anonymous(8192).unwrap();
    backend.start(7, &request, &[memory.span(0, 8192).unwrap()]);
    let mut pump = |backend: &mut FileBackend| {
        reactor.turn();
        reactor.sleep(Duration::from_millis(1));
        backend.poll()
    };
    let moved = loop {
        // A thread opens the file first.
        assert_eq!(pump(&mut backend), None);
        // As if the kernel had moved a half; it says so only of what it cannot continue itself.
        if let Some(moved) = backend.move_part(4096) {
            break moved;
        }
    };
    assert!(!backend.has_reply(), "answered after a half");
    assert_eq!(moved, 4096);
    let reply = loop {
        if let Some((ticket, reply)) = pump(&mut backend) {
            assert_eq!(ticket, 7);
            break reply;
        }
    };
    assert_eq!(reply.result, Ok(8192));
}

#[test]
fn two_hundred_dirty_objects_are_one_sync() {
    with_backend(|_, backend, driver| {
        let id = ObjectId::data(Lineage(1), Epoch(1));
        for object in 0..200_u64 {
            assert_eq!(driver.write(id, object << 22, &[1; 4096]), Ok(4096));
        }
        assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
        assert_eq!(backend.borrow().figures().file_syncs, 1);
        assert_eq!(backend.borrow().figures().creations, 1);
    });
}

#[test]
fn a_failed_sync_of_the_pool_is_reported_by_the_next_sync_of_what_it_may_have_dropped() {
    with_backend(|_, backend, driver| {
        let [dirty, synced, pooled] = [1, 2, 3].map(|n| ObjectId::data(Lineage(n), Epoch(1)));
        assert_eq!(driver.write(pooled, 0, &[1; 4096]), Ok(4096));
        assert_eq!(driver.simple(ObjectOp::SyncPool, pooled).result, Ok(0));
        for id in [dirty, synced] {
            assert_eq!(driver.write(id, 0, &[1; 4096]), Ok(4096));
        }
        assert_eq!(driver.simple(ObjectOp::Sync, synced).result, Ok(0));
        backend.borrow_mut().fail_pool_sync();
        // A sync of the pool that succeeds now is another one's: it says nothing of what was dropped.
        assert_eq!(driver.simple(ObjectOp::SyncPool, pooled).result, Ok(0));
        let mut sync = |id| driver.simple(ObjectOp::Sync, id).result;
        assert_eq!(sync(synced), Ok(0));
        assert_eq!(sync(pooled), Ok(0));
        assert_eq!(sync(dirty), Err(ErrorCode::SyncFailed));
        assert_eq!(sync(dirty), Ok(0), "reported once");
        // What is under way when a sync fails does not know which of the two the disk did first.
        assert_eq!(driver.write(dirty, 0, &[2; 4096]), Ok(4096));
        let write = ObjectRequest {
            offset: 4096,
            len: 4096,
            flags: FLAG_DURABLE,
            ..ObjectRequest::new(ObjectOp::Write, synced)
        };
        let under_way = [
            driver.start(&ObjectRequest::new(ObjectOp::Sync, dirty), &[]),
            driver.start(&ObjectRequest::new(ObjectOp::Sync, dirty), &[]),
            driver.start(&write, &[(0, 4096)]),
        ];
        backend.borrow_mut().fail_pool_sync();
        for ticket in under_way {
            assert_eq!(driver.wait(ticket).result, Err(ErrorCode::SyncFailed));
        }
        assert_eq!(driver.simple(ObjectOp::Sync, dirty).result, Ok(0));
        let pool = driver.start(&ObjectRequest::new(ObjectOp::SyncPool, pooled), &[]);
        backend.borrow_mut().fail_pool_sync();
        assert_eq!(driver.wait(pool).result, Err(ErrorCode::SyncFailed));
        assert_eq!(driver.simple(ObjectOp::SyncPool, pooled).result, Ok(0));
    });
}

#[test]
fn what_fails_without_a_sync_costs_nobody_else_anything() {
    with_backend(|pool, _, driver| {
        let dirty = ObjectId::data(Lineage(1), Epoch(1));
        assert_eq!(driver.write(dirty, 0, &[1; 4096]), Ok(4096));
        // A directory where a head should be: neither read nor swapped.
        let head = ObjectId::head(Lineage(2));
        let path = Layout::new(pool).file(crate::layout::FileId::locate(head, 0).0);
        std::fs::create_dir_all(path).unwrap();
        assert_eq!(driver.read_swapped(head), Err(ErrorCode::Io));
        assert_eq!(driver.swap(head, 0, &[1]).result, Err(ErrorCode::Io));
        assert_eq!(driver.simple(ObjectOp::Sync, dirty).result, Ok(0));
    });
}

#[test]
fn a_failed_sync_at_the_start_is_reported_once_to_whoever_may_have_lost_something() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    // A client announces the first as written before. The second is written again, the third only now.
    let objects = [1, 2, 3].map(|n| ObjectId::data(Lineage(n), Epoch(1)));
    let [announced, again, after] = objects;
    for incarnation in 0..2 {
        let (mut backend, mut reactor) = open(&pool);
        if incarnation == 1 {
            backend.suspect_all();
            backend.written_before(announced);
        }
        let mut pump = || {
            reactor.turn();
            reactor.sleep(Duration::from_millis(1));
        };
        let mut driver = Driver::new(Box::new(backend), &mut pump, "suspect");
        if incarnation == 0 {
            assert_eq!(driver.write(announced, 0, &[1; 4096]), Ok(4096));
            assert_eq!(driver.write(again, 0, &[1; 4096]), Ok(4096));
            driver.finish();
            continue;
        }
        assert_eq!(driver.write(again, 0, &[1; 4096]), Ok(4096));
        assert_eq!(driver.write(after, 0, &[1; 4096]), Ok(4096));
        for reported in [Err(ErrorCode::SyncFailed), Ok(0)] {
            assert_eq!(driver.simple(ObjectOp::Sync, announced).result, reported);
            assert_eq!(driver.simple(ObjectOp::SyncPool, again).result, reported);
            assert_eq!(driver.simple(ObjectOp::Sync, again).result, reported);
            assert_eq!(driver.simple(ObjectOp::Sync, after).result, Ok(0));
        }
        driver.finish();
    }
}

/// A backend of which the test keeps hold.
struct SharedBackend(Rc<RefCell<FileBackend>>);

impl archipelago_blocker::Backend for SharedBackend {
    fn name(&self) -> &str {
        "shared"
    }

    fn start(
        &mut self,
        ticket: u64,
        request: &archipelago_protocol::object::ObjectRequest,
        memory: &[xseg::Span],
    ) {
        self.0.borrow_mut().start(ticket, request, memory);
    }

    fn poll(&mut self) -> Option<(u64, archipelago_protocol::object::ObjectReply)> {
        self.0.borrow_mut().poll()
    }
}

#[test]
fn a_pool_is_served_by_one_process_and_known_by_its_version() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    create(&pool).unwrap();
    let (first, ring) = open(&pool);
    let other = reactor();
    let options = Options {
        direct: true,
        reserve: false,
        lock_timeout: Duration::from_millis(20),
        ..options(&pool)
    };
    let refused = FileBackend::open(&options, other.source(), &SystemClock).unwrap_err();
    assert_eq!(refused.code, ErrorCode::InUse);
    assert!(
        refused.message.contains(&std::process::id().to_string()),
        "{refused}"
    );
    drop((first, ring));
    drop(open(&pool));
    std::fs::write(pool.join("pool.toml"), "version = 2\n").unwrap();
    assert_eq!(
        check_marker(&Layout::new(&pool)).unwrap_err().code,
        ErrorCode::UnsupportedFormat
    );
}

#[test]
fn a_directory_with_other_things_does_not_become_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert_eq!(create(dir.path()).unwrap_err().code, ErrorCode::Exists);
}
