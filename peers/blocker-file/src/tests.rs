//! The conformance battery on a disk and in memory, and what only files have.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use archipelago_blocker::battery::{self, Driver};
use archipelago_protocol::object::{ObjectId, ObjectOp};
use archipelago_protocol::{Epoch, ErrorCode, Lineage};
use archipelago_runtime::{Config, Reactor, SystemClock};

use super::*;
use crate::pool::check_marker;

fn options(directory: &Path) -> Options {
    Options {
        directory: directory.to_path_buf(),
        lock_patience: Duration::from_secs(5),
    }
}

fn reactor() -> Reactor {
    let config = Config {
        poll: Duration::ZERO,
        ..Config::default()
    };
    Reactor::new(config, Arc::new(SystemClock), Box::new(|_| {})).unwrap()
}

/// A backend on a ring of its own, and what turns the ring.
fn open(directory: &Path) -> (FileBackend, Reactor) {
    let mut reactor = reactor();
    let source = reactor.context().source();
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

#[test]
fn two_hundred_dirty_objects_are_one_sync() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let (backend, reactor) = open(&pool);
    let reactor = RefCell::new(reactor);
    let backend = Rc::new(RefCell::new(backend));
    let mut pump = || {
        reactor.borrow_mut().turn();
        reactor.borrow_mut().sleep(Duration::from_millis(1));
    };
    let mut driver = Driver::new(
        Box::new(SharedBackend(Rc::clone(&backend))),
        &mut pump,
        "sync",
    );
    let id = ObjectId::data(Lineage(1), Epoch(1));
    for object in 0..200_u64 {
        assert_eq!(driver.write(id, object << 22, &[1; 4096]), Ok(4096));
    }
    assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
    assert_eq!(backend.borrow().figures().file_syncs, 1);
    assert_eq!(backend.borrow().figures().creations, 1);
    driver.finish();
}

/// A backend of which the test keeps hold.
struct SharedBackend(Rc<RefCell<FileBackend>>);

impl archipelago_blocker::Backend for SharedBackend {
    fn name(&self) -> &str {
        "shared"
    }

    fn capabilities(&self) -> archipelago_blocker::Capabilities {
        self.0.borrow().capabilities()
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
    let mut other = reactor();
    let options = Options {
        lock_patience: Duration::from_millis(20),
        ..options(&pool)
    };
    let refused = FileBackend::open(&options, other.context().source(), &SystemClock).unwrap_err();
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
        ErrorCode::Damaged
    );
}

#[test]
fn a_directory_with_other_things_does_not_become_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    assert_eq!(create(dir.path()).unwrap_err().code, ErrorCode::Exists);
}
