//! Logs beyond one run of the backend: their ends and tokens are found again, whatever was under way.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use archipelago_blocker::logs::LogState;
use archipelago_protocol::Generation;
use archipelago_protocol::log_sector::{CONTENT_LEN, SECTOR_LEN, UNIT, blank, sectors};
use archipelago_protocol::object::{ObjectReply, ObjectRequest};

use super::*;
use crate::layout::{FileId, LOG_HEADER_LEN};
use crate::log_job::LogDone;
use crate::logs::{Logs, Verdict};

const UNITS: u64 = 64;
const LOG: ObjectId = ObjectId {
    lineage: Lineage(1),
    kind: archipelago_protocol::object::ObjectKind::Log,
    number: 1,
};

fn batch(fill: u8, position: u64, units: usize, token: u64) -> Vec<u8> {
    let content = vec![fill; units * UNIT / SECTOR_LEN * CONTENT_LEN];
    sectors(&content, Lineage(1), position, Generation(token))
}

/// A pool, and its runs.
struct Pool(tempfile::TempDir);

impl Pool {
    /// With a log that was made and never used.
    fn new(base: &Path) -> Self {
        let pool = Pool(tempfile::tempdir_in(base).unwrap());
        create(&pool.0.path().join("pool")).unwrap();
        pool.run(|driver| {
            let bytes = blank(Lineage(1), 0..UNITS * UNIT as u64);
            assert!(driver.write(LOG, 0, &bytes).is_ok());
            assert_eq!(driver.simple(ObjectOp::Sync, LOG).result, Ok(0));
        });
        pool
    }

    fn run(&self, test: impl FnOnce(&mut Driver<'_>)) {
        let (backend, mut reactor) = open(&self.0.path().join("pool"));
        let mut pump = || {
            reactor.turn();
            reactor.sleep(Duration::from_millis(1));
        };
        let mut driver = Driver::new(Box::new(backend), &mut pump, "run");
        test(&mut driver);
        driver.finish();
    }

    fn file(&self) -> fs::File {
        let layout = Layout::new(&self.0.path().join("pool"));
        let path = layout.file(FileId::locate(LOG, 0).0);
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap()
    }
}

fn on_both(test: impl Fn(&Pool)) {
    for base in [std::env::temp_dir().as_path(), Path::new("/dev/shm")] {
        test(&Pool::new(base));
    }
}

fn landed(reply: ObjectReply, units: usize) {
    assert_eq!(reply.result.map(|len| len as usize), Ok(units * UNIT));
}

fn stale(reply: ObjectReply, there: u64) {
    assert_eq!(
        (reply.result, reply.values[0]),
        (Err(ErrorCode::Stale), there)
    );
}

#[test]
fn another_run_goes_on_where_the_log_ends_and_nowhere_else() {
    on_both(|pool| {
        let mut end = 0;
        for round in 0..4_u8 {
            let units = [1, 5, 2, 3][usize::from(round)];
            let bytes = batch(round, end, units, 3);
            let unit = UNIT as u64;
            pool.run(|driver| landed(driver.append(LOG, end, &bytes, 3), units));
            // Sent again by a client that had no answer.
            pool.run(|driver| landed(driver.append(LOG, end, &bytes, 3), units));
            let behind = end + bytes.len() as u64;
            for wrong in [end, end.saturating_sub(unit), behind + unit] {
                let other = batch(99, wrong, 1, 3);
                pool.run(|driver| stale(driver.append(LOG, wrong, &other, 3), behind));
            }
            let nothing = blank(Lineage(1), 0..unit);
            pool.run(|driver| {
                assert_eq!(driver.write(LOG, 0, &nothing), Err(ErrorCode::Stale));
            });
            end = behind;
        }
    });
}

#[test]
fn a_token_outlives_its_run() {
    on_both(|pool| {
        pool.run(|driver| assert_eq!(driver.seal(LOG, 5).result, Ok(0)));
        let old = batch(1, 0, 1, 4);
        pool.run(|driver| stale(driver.append(LOG, 0, &old, 4), 0));
        pool.run(|driver| stale(driver.seal(LOG, 4), 5));
        pool.run(|driver| {
            landed(driver.append(LOG, 0, &batch(2, 0, 1, 5), 5), 1);
            assert_eq!(driver.seal(LOG, 6).result, Ok(0));
            let unit = UNIT as u64;
            stale(driver.append(LOG, unit, &batch(3, unit, 1, 5), 5), unit);
        });
    });
}

#[test]
fn what_an_append_left_torn_is_overwritten_by_the_next() {
    on_both(|pool| {
        let unit = UNIT as u64;
        pool.run(|driver| landed(driver.append(LOG, 0, &batch(1, 0, 2, 3), 3), 2));
        let torn = batch(2, 2 * unit, 3, 3);
        for lost in [0, 8, 23] {
            let file = pool.file();
            let place = LOG_HEADER_LEN + 2 * unit;
            file.write_all_at(&blank(Lineage(1), 2 * unit..5 * unit), place)
                .unwrap();
            for sector in (0..torn.len() / SECTOR_LEN).filter(|sector| *sector != lost) {
                let bytes = &torn[sector * SECTOR_LEN..][..SECTOR_LEN];
                file.write_all_at(bytes, place + (sector * SECTOR_LEN) as u64)
                    .unwrap();
            }
            let whole = pool.0.path().join("whole");
            fs::copy(pool_log(pool), &whole).unwrap();
            for wrong in [0, 5 * unit] {
                let other = batch(4, wrong, 1, 3);
                pool.run(|driver| stale(driver.append(LOG, wrong, &other, 3), 2 * unit));
            }
            let next = batch(3, 2 * unit, 1, 4);
            pool.run(|driver| {
                landed(driver.append(LOG, 2 * unit, &next, 4), 1);
                landed(
                    driver.append(LOG, 3 * unit, &batch(5, 3 * unit, 1, 4), 4),
                    1,
                );
            });
            fs::copy(&whole, pool_log(pool)).unwrap();
        }
    });
}

fn pool_log(pool: &Pool) -> std::path::PathBuf {
    let layout = Layout::new(&pool.0.path().join("pool"));
    layout.file(FileId::locate(LOG, 0).0)
}

#[test]
fn a_damaged_token_is_damage() {
    on_both(|pool| {
        pool.run(|driver| assert_eq!(driver.seal(LOG, 5).result, Ok(0)));
        pool.file().write_all_at(&[7], 9).unwrap();
        pool.run(|driver| {
            let reply = driver.append(LOG, 0, &batch(1, 0, 1, 7), 7);
            assert_eq!(reply.result, Err(ErrorCode::Damaged));
            assert_eq!(driver.seal(LOG, 8).result, Err(ErrorCode::Damaged));
        });
    });
}

#[test]
fn a_look_at_one_log_is_a_look_at_one_file() {
    let pool = Pool::new(&std::env::temp_dir());
    let layout = Layout::new(&pool.0.path().join("pool"));
    let stat = crate::jobs::stat(&layout, LOG).unwrap();
    assert_eq!(stat.values[1], UNITS * UNIT as u64);
    fs::write(
        layout.lineage(Lineage(1)).join("log-0000000000000009"),
        b"short",
    )
    .unwrap();
    let of = |number| crate::jobs::stat(&layout, ObjectId::log(Lineage(1), number));
    assert_eq!(of(9).map(|stat| stat.values[1]), Ok(0));
    assert_eq!(of(8), Err(ErrorCode::NotFound));
}

#[test]
fn a_seal_waits_for_the_append_that_is_under_way() {
    let memory = xseg::Region::anonymous(UNIT).unwrap();
    let span = memory.span(0, UNIT as u64).unwrap();
    span.write(&batch(1, 0, 1, 1));
    let request = |op, token| ObjectRequest {
        len: u32::try_from(UNIT).unwrap(),
        token: Generation(token),
        ..ObjectRequest::new(op, LOG)
    };
    let (append, seal) = (request(ObjectOp::Append, 1), request(ObjectOp::Seal, 2));
    let id = FileId::locate(LOG, 0).0;
    let mut logs = Logs::new(0);
    let Verdict::First(_, look) = logs.begin(1, &append, std::slice::from_ref(&span), id) else {
        panic!("an append needs the log's end");
    };
    assert!(matches!(logs.begin(2, &seal, &[], id), Verdict::Wait));
    let found = LogDone::Inspected {
        state: LogState::default(),
        len: UNITS * UNIT as u64,
    };
    assert!(logs.done(look, Ok(found)).is_some());
    let begun = logs.begin(1, &append, &[span], id);
    assert!(matches!(begun, Verdict::Move(0)), "{begun:?}");
    assert!(matches!(logs.begin(2, &seal, &[], id), Verdict::Wait));
    logs.append_ended(id, Ok(append.len));
    let sealed = logs.begin(2, &seal, &[], id);
    assert!(matches!(sealed, Verdict::Answer(..)), "{sealed:?}");
}
