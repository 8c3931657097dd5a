//! Takers of one directory, as if they ran on hosts that do not see each other's locks.

use std::sync::{Mutex, mpsc};

use super::*;

/// Short enough to wait for, and longer than any stall of a test would be mistaken for: nobody beats in these tests.
const SHORT: Duration = Duration::from_millis(300);

fn claimant(host: u32) -> Claimant {
    Claimant {
        host: Host {
            machine: host,
            boot: u64::from(host) * 100,
            namespace: 1,
            name: format!("host{host}"),
        },
        node: format!("/run/{host}").into(),
        ..Claimant::default()
    }
}

fn with(claim: Claim, host: u32) -> Claimant {
    Claimant {
        claim,
        ..claimant(host)
    }
}

fn taken_by(claimant: &Claimant, layout: &Layout) -> Result<Owner, Error> {
    claim_as(layout, claimant, &SystemClock, Reach::OtherHosts, SHORT)
}

fn pool() -> (tempfile::TempDir, Layout) {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::new(dir.path());
    reserve(&layout).unwrap();
    (dir, layout)
}

/// As a kill leaves it: nothing beats, nothing is released.
fn kill(mut owner: Owner) {
    drop(owner.heartbeat.take());
    std::mem::forget(owner);
}

#[test]
fn of_many_takers_at_once_one_owns_the_pool() {
    for made in [true, false] {
        let (_dir, layout) = pool();
        if !made {
            fs::remove_file(layout.owner(Name::FIRST)).unwrap();
        }
        let all = std::sync::Barrier::new(8);
        let results: Vec<Result<Owner, Error>> = std::thread::scope(|scope| {
            let takers: Vec<_> = (1..=8)
                .map(|host| {
                    let (all, layout) = (&all, &layout);
                    scope.spawn(move || {
                        all.wait();
                        taken_by(&claimant(host), layout)
                    })
                })
                .collect();
            takers
                .into_iter()
                .map(|taker| taker.join().unwrap())
                .collect()
        });
        let owners: Vec<&Owner> = results.iter().filter_map(|one| one.as_ref().ok()).collect();
        assert_eq!(owners.len(), 1, "{results:?}");
        let refused = results.iter().filter_map(|one| one.as_ref().err());
        for error in refused {
            assert_eq!(error.code, ErrorCode::InUse, "{error}");
        }
        assert_eq!(latest(&layout).unwrap(), Some(owners[0].name));
    }
}

#[test]
fn an_owner_of_another_host_is_named_and_only_a_person_can_declare_it_gone() {
    let (_dir, layout) = pool();
    kill(taken_by(&claimant(1), &layout).unwrap());
    let error = taken_by(&claimant(2), &layout).unwrap_err();
    assert_eq!(error.code, ErrorCode::InUse);
    let pid = std::process::id();
    for part in [
        format!("host `host1`, process {pid}, with its sockets in `/run/1`, since 20"),
        "no heartbeat for".to_owned(),
    ] {
        assert!(error.message.contains(&part), "{error}");
    }
    assert!(error.hint.contains("--take-over"), "{}", error.hint);
    let owner = taken_by(&with(Claim::TakeOver, 2), &layout).unwrap();
    assert_eq!(owner.name.incarnation, 2);
    // The former one is not let in again without being asked.
    let error = taken_by(&with(Claim::Restart, 1), &layout).unwrap_err();
    assert_eq!(error.code, ErrorCode::Stale);
    drop(owner);
    let error = taken_by(&with(Claim::Restart, 1), &layout).unwrap_err();
    assert_eq!(error.code, ErrorCode::Stale, "released meanwhile: {error}");
    drop(taken_by(&claimant(1), &layout).unwrap());
    drop(taken_by(&claimant(2), &layout).unwrap());
}

#[test]
fn an_owner_that_beats_is_not_taken_over_by_anybody() {
    let (_dir, layout) = pool();
    let mut owner = taken_by(&claimant(1), &layout).unwrap();
    // Beats of the test's own, quicker than the thread's.
    drop(owner.heartbeat.take());
    let path = layout.owner(owner.name);
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut record = Record::default();
            while ended.recv_timeout(Duration::from_millis(20))
                == Err(mpsc::RecvTimeoutError::Timeout)
            {
                record.heartbeats += 1;
                record
                    .write(&OpenOptions::new().write(true).open(&path).unwrap())
                    .unwrap();
            }
        });
        let mut same_machine = with(Claim::Start, 2);
        same_machine.host.machine = 1;
        for taker in [
            claimant(2),
            with(Claim::TakeOver, 2),
            // One of two machines with the same id.
            same_machine,
        ] {
            let error = taken_by(&taker, &layout).unwrap_err();
            assert_eq!(error.code, ErrorCode::InUse);
            assert!(error.message.contains("its heartbeat goes on"), "{error}");
        }
        drop(end);
    });
    drop(owner);
}

#[test]
fn every_step_at_which_a_process_is_killed_leaves_a_pool_that_starts_at_once() {
    let (dir, layout) = pool();
    let own = place(dir.path(), &claimant(1).host).unwrap();
    let successor = |name: Name| name.succeeded_by(own).unwrap();
    let start = || {
        let clock = SystemClock;
        let began = clock.now();
        let owner = taken_by(&claimant(1), &layout).unwrap();
        assert!(clock.now() - began < SHORT, "it waited");
        assert_eq!(names(&layout).unwrap(), [owner.name]);
        owner
    };
    // Before anything.
    let first = start();
    let name = first.name;
    kill(first);
    // Renamed, and who has not been written: the words are of the one before.
    fs::rename(layout.owner(name), layout.owner(successor(name))).unwrap();
    let error = taken_by(&claimant(2), &layout).unwrap_err();
    assert!(
        error.message.contains("has not written its name"),
        "{error}"
    );
    kill(start());
    // Written, never released; and a first record beside it, of somebody who found none.
    reserve(&layout).unwrap();
    kill(start());
    // Released.
    drop(start());
    // Written in part.
    let path = layout.owner(latest(&layout).unwrap().unwrap());
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"torn", 70).unwrap();
    drop(start());
    // A record without a byte, as of a file system that was full when it was made.
    fs::write(layout.owner(latest(&layout).unwrap().unwrap()), "").unwrap();
    drop(start());
    // No record at all: a pool of an older program.
    fs::remove_file(layout.owner(latest(&layout).unwrap().unwrap())).unwrap();
    drop(start());
}

static LOST: Mutex<Vec<Error>> = Mutex::new(Vec::new());

#[test]
fn an_owner_that_was_taken_over_says_so_and_never_writes_the_record_again() {
    // A client of NFS may remember the former name for a while: it leads to the same file.
    for remembered in [false, true] {
        let (_dir, layout) = pool();
        let former = Claimant {
            lost: |error| LOST.lock().unwrap().push(error.clone()),
            ..claimant(1)
        };
        let former = taken_by(&former, &layout).unwrap();
        let mut next = former.name;
        next.incarnation += 1;
        let record = Record {
            incarnation: next.incarnation,
            host: "beta".to_owned(),
            ..Record::default()
        };
        fs::rename(layout.owner(former.name), layout.owner(next)).unwrap();
        let file = OpenOptions::new()
            .write(true)
            .open(layout.owner(next))
            .unwrap();
        record.write(&file).unwrap();
        if remembered {
            fs::hard_link(layout.owner(next), layout.owner(former.name)).unwrap();
        }
        let deadline = SystemClock.now() + Duration::from_secs(20);
        let error = loop {
            if let Some(error) = LOST.lock().unwrap().pop() {
                break error;
            }
            assert!(
                SystemClock.now() < deadline,
                "the former owner has not noticed"
            );
            let _rested = nix::poll::poll(&mut [], 10_u8);
        };
        assert_eq!(error.code, ErrorCode::Stale);
        assert!(
            error.message.contains("taken over by host `beta`"),
            "{error}"
        );
        drop(former);
        let read = Record::read(&fs::File::open(layout.owner(next)).unwrap()).unwrap();
        assert_eq!(read, Some(record), "neither a beat nor a release");
    }
}

#[test]
fn the_record_of_a_local_pool_needs_no_room_and_decides_nothing() {
    let (dir, layout) = pool();
    kill(claim(&layout, &claimant(1), &SystemClock).unwrap().unwrap());
    let owner = claim(&layout, &claimant(2), &SystemClock).unwrap().unwrap();
    assert_eq!(owner.name.incarnation, 2);
    assert!(
        owner.text().contains("of this host alone"),
        "{}",
        owner.text()
    );
    drop(owner);
    fs::remove_file(layout.owner(latest(&layout).unwrap().unwrap())).unwrap();
    // Nothing can be made there: the pool is served all the same.
    let gone = dir.path().join("gone");
    assert!(
        claim(&Layout::new(&gone), &claimant(1), &SystemClock).is_err(),
        "not known to be local"
    );
}

#[test]
fn strays_are_named() {
    let (dir, layout) = pool();
    fs::write(layout.lock(), "").unwrap();
    assert_eq!(stray_records(dir.path()).unwrap(), Vec::<PathBuf>::new());
    let odd = layout.owners().join("of-the-house");
    fs::write(&odd, "").unwrap();
    let mut second = Name::FIRST;
    second.incarnation = 1;
    fs::write(layout.owner(second), "").unwrap();
    assert_eq!(
        stray_records(dir.path()).unwrap(),
        [layout.owner(Name::FIRST), odd]
    );
}

#[test]
fn what_a_node_keeps_goes_when_another_one_has_had_the_pool() {
    let kept = tempfile::tempdir().unwrap();
    let file = kept.path().join("file");
    let ours = |claim| Claimant {
        kept: Some(kept.path().to_owned()),
        ..with(claim, 1)
    };
    let (_dir, layout) = pool();
    let is_left_after = |claim| {
        fs::write(&file, "").unwrap();
        let owner = taken_by(&ours(claim), &layout).unwrap();
        (owner, file.exists())
    };
    let (owner, is_left) = is_left_after(Claim::Start);
    assert!(!is_left, "nobody knows who had the pool before");
    drop(owner);
    let (owner, is_left) = is_left_after(Claim::Start);
    assert!(is_left, "released by this node");
    kill(owner);
    let (owner, is_left) = is_left_after(Claim::Restart);
    assert!(is_left, "killed");
    drop(owner);
    // One that was killed between the rename and its note.
    let note = fs::read(kept.path().join("owner")).unwrap();
    let before = latest(&layout).unwrap().unwrap();
    kill(taken_by(&ours(Claim::Start), &layout).unwrap());
    let taken = latest(&layout).unwrap().unwrap();
    let born = String::from_utf8(note).unwrap();
    let born = born.trim().rsplit(' ').next().unwrap().to_owned();
    let between = format!("had {before} {born}\ntakes {taken} {born}\n");
    fs::write(kept.path().join("owner"), between).unwrap();
    let (owner, is_left) = is_left_after(Claim::Restart);
    assert!(is_left, "killed before it had noted that it took the pool");
    drop(owner);
    drop(taken_by(&claimant(2), &layout).unwrap());
    let (owner, is_left) = is_left_after(Claim::Start);
    assert!(!is_left, "another host came and went");
    kill(owner);
    // A copy has the same names.
    let record = layout.owner(latest(&layout).unwrap().unwrap());
    let copy = record.with_extension("copy");
    fs::copy(&record, &copy).unwrap();
    if fs::metadata(&copy).unwrap().created().is_ok() {
        fs::rename(&copy, &record).unwrap();
        let (_owner, is_left) = is_left_after(Claim::Restart);
        assert!(!is_left, "the pool was restored from a copy");
    }
}
