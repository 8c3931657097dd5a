use std::collections::BTreeSet;

use archipelago_blocker::Backend;
use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Epoch, Lineage};
use archipelago_protocol::object::{FLAG_DURABLE, ObjectId, ObjectOp, ObjectReply, ObjectRequest};
use xseg::Region;

use super::*;
use crate::battery;

fn data() -> ObjectId {
    ObjectId::data(Lineage(1), Epoch(1))
}

/// A pool and a buffer.
struct Pool {
    backend: SimulatedBackend,
    region: Region,
}

impl Pool {
    fn new() -> Self {
        Pool {
            backend: SimulatedBackend::new(1),
            region: Region::anonymous(65_536).unwrap(),
        }
    }

    fn start(&mut self, request: &ObjectRequest, bytes: &[u8]) {
        self.region.write(0, bytes).unwrap();
        let span = self.region.span(0, u64::from(request.len)).unwrap();
        self.backend.start(1, request, &[span]);
    }

    fn call(&mut self, request: &ObjectRequest, bytes: &[u8]) -> ObjectReply {
        self.start(request, bytes);
        self.backend.poll().expect("a reply").1
    }

    fn write(&mut self, id: ObjectId, sector: u64, fill: &[u8], flags: u8) -> ObjectReply {
        let bytes: Vec<u8> = fill.iter().flat_map(|byte| [*byte; 512]).collect();
        self.call(&write(id, sector, fill.len(), flags), &bytes)
    }

    fn sync(&mut self, id: ObjectId) -> ObjectReply {
        self.call(&ObjectRequest::new(ObjectOp::Sync, id), &[])
    }

    /// First byte of each of `count` sectors; `None`: not there.
    fn look(&mut self, id: ObjectId, count: u32) -> Option<Vec<u8>> {
        let request = ObjectRequest {
            len: count * 512,
            ..ObjectRequest::new(ObjectOp::Read, id)
        };
        self.call(&request, &[]).result.ok()?;
        let mut bytes = vec![0; count as usize * 512];
        self.region.read(0, &mut bytes).unwrap();
        assert!(
            bytes
                .chunks(512)
                .all(|sector| sector.iter().all(|byte| *byte == sector[0])),
            "a torn sector"
        );
        Some(bytes.chunks(512).map(|sector| sector[0]).collect())
    }

    /// All that a power cut now may leave of `id`.
    fn images(&mut self, id: ObjectId, count: u32) -> BTreeSet<Option<Vec<u8>>> {
        let mut enumerator = Enumerator::new();
        let mut all = BTreeSet::new();
        loop {
            let backend = self.backend.clone().power_cut(&mut enumerator);
            all.insert(
                Pool {
                    backend,
                    region: self.region.clone(),
                }
                .look(id, count),
            );
            if !enumerator.advance() {
                return all;
            }
        }
    }
}

fn write(id: ObjectId, sector: u64, count: usize, flags: u8) -> ObjectRequest {
    let len = u32::try_from(count * 512).unwrap();
    ObjectRequest {
        offset: sector * 512,
        len,
        flags,
        ..ObjectRequest::new(ObjectOp::Write, id)
    }
}

fn some(images: &[[u8; 2]]) -> BTreeSet<Option<Vec<u8>>> {
    images.iter().map(|image| Some(image.to_vec())).collect()
}

#[test]
fn it_passes_the_battery_in_order_and_out_of_order() {
    battery::run(&mut || Box::new(SimulatedBackend::new(1)), &mut || {});
    for seed in 0..4 {
        battery::run(
            &mut || Box::new(SimulatedBackend::new(seed).shuffled()),
            &mut || {},
        );
    }
}

#[test]
fn any_subset_of_unsynced_sectors_survives_and_the_name_may_be_lost() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1, 2], 0);
    let mut expected = some(&[[0, 0], [1, 0], [0, 2], [1, 2]]);
    expected.insert(None);
    assert_eq!(pool.images(data(), 2), expected);
    pool.sync(data());
    assert_eq!(pool.images(data(), 2), some(&[[1, 2]]));
    pool.write(data(), 1, &[3], 0);
    pool.write(data(), 1, &[4], 0);
    assert_eq!(
        pool.images(data(), 2),
        some(&[[1, 2], [1, 3], [1, 4]]),
        "any version since the sync"
    );
}

#[test]
fn a_durable_write_survives_alone() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1, 1], 0);
    pool.write(data(), 1, &[2], FLAG_DURABLE);
    assert_eq!(pool.images(data(), 2), some(&[[0, 2], [1, 2]]));
    assert_eq!(pool.look(data(), 2), Some(vec![1, 2]));
}

#[test]
fn a_sync_covers_only_what_was_complete_when_it_was_started() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1], 0);
    pool.sync(data());
    pool.start(&ObjectRequest::new(ObjectOp::Sync, data()), &[]);
    pool.start(&write(data(), 1, 1, 0), &[2; 512]);
    assert!(pool.backend.complete(1).1.result.is_ok());
    assert!(pool.backend.complete(0).1.result.is_ok());
    assert_eq!(pool.images(data(), 2), some(&[[1, 0], [1, 2]]));
}

#[test]
fn a_call_in_flight_has_happened_in_any_part() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1, 1], FLAG_DURABLE);
    pool.start(&write(data(), 0, 2, FLAG_DURABLE), &[5; 1024]);
    assert_eq!(
        pool.images(data(), 2),
        some(&[[1, 1], [5, 1], [1, 5], [5, 5]])
    );
    let kept = pool
        .backend
        .clone()
        .process_kill(&mut |options| options - 1);
    assert_eq!(
        Pool {
            backend: kept,
            region: pool.region.clone()
        }
        .look(data(), 2),
        Some(vec![5, 5])
    );
    let lost = pool.backend.clone().process_kill(&mut |_options| 0);
    assert_eq!(
        Pool {
            backend: lost,
            region: pool.region.clone()
        }
        .look(data(), 2),
        Some(vec![1, 1])
    );
}

#[test]
fn a_swap_cut_off_anywhere_leaves_old_or_new() {
    let head = ObjectId::head(Lineage(1));
    let swap = |version: u64| ObjectRequest {
        offset: version,
        len: 4000,
        ..ObjectRequest::new(ObjectOp::CompareAndSwap, head)
    };
    let content = |version: u64| vec![u8::try_from(version + 1).unwrap(); 4000];
    let read = ObjectRequest {
        len: 4096,
        ..ObjectRequest::new(ObjectOp::ReadSwapped, head)
    };
    let mut pool = Pool::new();
    for version in 0..4 {
        pool.start(&swap(version), &content(version));
        let mut seen = BTreeSet::new();
        let mut enumerator = Enumerator::new();
        loop {
            let backend = pool.backend.clone().power_cut(&mut enumerator);
            let mut after = Pool {
                backend,
                region: pool.region.clone(),
            };
            let reply = after.call(&read, &[]);
            seen.insert((reply.result.ok(), reply.values[0]));
            // The next swap starts from what is there.
            let now = reply.values[0];
            assert_eq!(after.call(&swap(now), &content(7)).values[0], now + 1);
            if !enumerator.advance() {
                break;
            }
        }
        let old = if version == 0 {
            (None, 0)
        } else {
            (Some(4000), version)
        };
        assert_eq!(seen, BTreeSet::from([old, (Some(4000), version + 1)]));
        pool.region.write(0, &content(version)).unwrap();
        assert_eq!(pool.backend.poll().unwrap().1.values[0], version + 1);
    }
}

#[test]
fn a_failed_sync_drops_what_was_not_durable() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1, 1], FLAG_DURABLE);
    pool.write(data(), 0, &[2, 2], 0);
    pool.backend
        .fail_call(pool.backend.calls() + 1, ErrorCode::SyncFailed);
    assert_eq!(pool.sync(data()).result, Err(ErrorCode::SyncFailed));
    assert_eq!(
        pool.sync(data()).result,
        Ok(0),
        "the next one succeeds, and means nothing"
    );
    assert_eq!(pool.look(data(), 2), Some(vec![1, 1]));
}

#[test]
fn every_code_and_silence_can_be_had() {
    for code in ErrorCode::ALL {
        let mut pool = Pool::new();
        pool.backend.fail_call(2, code);
        assert_eq!(pool.write(data(), 0, &[1], 0).result, Ok(512));
        assert_eq!(pool.write(data(), 0, &[1], 0).result, Err(code));
        assert_eq!(pool.write(data(), 0, &[1], 0).result, Ok(512));
        pool.backend.set_fault(4, Fault::Hang);
        pool.start(&write(data(), 1, 1, 0), &[9; 512]);
        assert_eq!(pool.backend.poll(), None);
        assert_eq!(pool.look(data(), 2), Some(vec![1, 0]), "others go on");
        assert_eq!(pool.backend.count(ObjectOp::Write), 4);
    }
}

#[test]
fn a_delete_may_be_undone_until_the_pool_is_synced() {
    let mut pool = Pool::new();
    pool.write(data(), 0, &[1, 2], FLAG_DURABLE);
    pool.call(&ObjectRequest::new(ObjectOp::Delete, data()), &[]);
    let mut expected = some(&[[1, 2]]);
    expected.insert(None);
    assert_eq!(pool.images(data(), 2), expected);
    pool.call(&ObjectRequest::new(ObjectOp::SyncPool, data()), &[]);
    assert_eq!(pool.images(data(), 2), BTreeSet::from([None]));
}

#[test]
fn the_same_seed_gives_the_same_order() {
    let order = |seed| {
        let mut pool = Pool::new();
        pool.backend = SimulatedBackend::new(seed).shuffled();
        for ticket in 0..20 {
            pool.backend
                .start(ticket, &ObjectRequest::new(ObjectOp::SyncPool, data()), &[]);
        }
        std::iter::from_fn(|| pool.backend.poll())
            .map(|(ticket, _)| ticket)
            .collect::<Vec<u64>>()
    };
    assert_eq!(order(1), order(1));
    assert_ne!(order(1), order(2));
}
