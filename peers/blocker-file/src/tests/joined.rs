//! Several backends of one pool in one process, each on a ring of its own.

use super::*;

/// A backend, and what turns its ring.
type Opened = (FileBackend, Reactor);

/// The pool in `directory` with two backends.
fn open_two(directory: &Path) -> (Opened, Opened) {
    let reactor = reactor();
    let options = Options {
        backends: 2,
        ..options(directory)
    };
    let first = FileBackend::open(&options, reactor.source(), &SystemClock).unwrap();
    let ring = super::reactor();
    let second = FileBackend::open_joined(first.join(), ring.source(), &SystemClock).unwrap();
    ((first, reactor), (second, ring))
}

/// Has `test` drive both backends of a fresh pool.
fn with_two(test: impl FnOnce([&RefCell<FileBackend>; 2], [&mut Driver<'_>; 2])) {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let (one, two) = open_two(&pool);
    let [(one, mut ring), (two, mut other)] =
        [one, two].map(|(backend, ring)| (Rc::new(RefCell::new(backend)), ring));
    let turn = |ring: &mut Reactor| {
        ring.turn();
        ring.sleep(Duration::from_millis(1));
    };
    let (mut pump, mut pump_other) = (|| turn(&mut ring), || turn(&mut other));
    let mut driver = Driver::new(Box::new(SharedBackend(Rc::clone(&one))), &mut pump, "one");
    let shared = Box::new(SharedBackend(Rc::clone(&two)));
    let mut driver_other = Driver::new(shared, &mut pump_other, "two");
    test([&*one, &*two], [&mut driver, &mut driver_other]);
    driver.finish();
    driver_other.finish();
}

fn data(lineage: u128) -> ObjectId {
    ObjectId::data(Lineage(lineage), Epoch(1))
}

#[test]
fn the_battery_passes_beside_another_backend() {
    for case in battery::CASES {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = dir.path().join("pool");
        create(&pool).unwrap();
        let (_first, (second, mut ring)) = open_two(&pool);
        battery::run_case(case, Box::new(second), &mut || {
            ring.turn();
            ring.sleep(Duration::from_millis(1));
        });
    }
}

#[test]
fn the_pool_is_locked_until_the_last_ring_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool");
    create(&pool).unwrap();
    let (first, second) = open_two(&pool);
    let third = FileBackend::open_joined(first.0.join(), second.1.source(), &SystemClock);
    assert_eq!(third.unwrap_err().code, ErrorCode::Internal, "for two");
    let again = |lock_timeout| {
        let ring = reactor();
        let options = Options {
            lock_timeout,
            ..options(&pool)
        };
        let opened = FileBackend::open(&options, ring.source(), &SystemClock);
        opened.map(drop).map_err(|error| error.code)
    };
    drop(first);
    let soon = Duration::from_millis(20);
    assert_eq!(again(soon), Err(ErrorCode::InUse));
    let (backend, ring) = second;
    drop(backend);
    assert_eq!(again(soon), Err(ErrorCode::InUse), "its ring may write");
    drop(ring);
    assert_eq!(again(Duration::from_secs(5)), Ok(()));
}

#[test]
fn a_failed_sync_of_one_backend_is_a_loss_of_the_others() {
    with_two(|[one, two], [_, driver]| {
        let (dirty, clean) = (data(1), data(2));
        for id in [dirty, clean] {
            assert_eq!(driver.write(id, 0, &[1; 4096]), Ok(4096));
        }
        assert_eq!(driver.simple(ObjectOp::Sync, clean).result, Ok(0));
        assert_eq!(two.borrow().failed_pool_syncs_elsewhere(), 0);
        one.borrow_mut().fail_pool_sync();
        assert_eq!(one.borrow().failed_pool_syncs_elsewhere(), 0);
        assert_eq!(two.borrow().failed_pool_syncs_elsewhere(), 1);
        for (op, id, lost) in [
            (ObjectOp::Sync, clean, false),
            (ObjectOp::Sync, dirty, true),
            (ObjectOp::Sync, dirty, false),
            (ObjectOp::SyncPool, clean, true),
            (ObjectOp::SyncPool, clean, false),
        ] {
            let synced = driver.simple(op, id).result;
            let expected = if lost {
                Err(ErrorCode::SyncFailed)
            } else {
                Ok(0)
            };
            assert_eq!(synced, expected, "{op:?} of {id:?}");
        }
    });
}

#[test]
fn a_sync_that_is_under_way_fails_if_another_backend_reports_a_loss() {
    with_two(|[one, two], [_, driver]| {
        let id = data(1);
        assert_eq!(driver.write(id, 0, &[1; 4096]), Ok(4096));
        let ticket = driver.start(&ObjectRequest::new(ObjectOp::Sync, id), &[]);
        one.borrow_mut().fail_pool_sync();
        let synced = driver.wait(ticket).result;
        assert_eq!(synced, Err(ErrorCode::SyncFailed));
        assert!(!two.borrow().has_reply());
    });
}

#[test]
fn what_one_backend_deletes_the_others_close() {
    with_two(|[_, two], [deleting, driver]| {
        let [kept, deleted] = [data(1), data(2)];
        for id in [kept, deleted] {
            assert_eq!(driver.write(id, 0, &[1; 4096]), Ok(4096));
            assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
        }
        let delete = deleting.simple(ObjectOp::DeleteLineage, deleted);
        assert_eq!(delete.result, Ok(0));
        // It has the file open still, which nobody else finds.
        assert!(driver.read(deleted, 0, 4096).is_ok());
        two.borrow_mut().look(Duration::from_secs(1));
        assert_eq!(driver.read(deleted, 0, 4096), Err(ErrorCode::NotFound));
        assert_eq!(driver.read(kept, 0, 4096), Ok(vec![1; 4096]));
        assert_eq!(two.borrow().figures().opens, 2, "the other one stays open");
    });
}
