//! Many objects, many requests at once, listings, and random requests against a model.

use std::collections::BTreeMap;

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::object::{FLAG_DURABLE, ObjectId, ObjectKind, ObjectOp, ObjectRequest};

use super::driver::{Driver, data, pattern};

pub(super) fn listing(driver: &mut Driver<'_>) {
    let mut expected = Vec::new();
    for lineage in [Lineage(0), Lineage(1), Lineage(1 << 64), Lineage(u128::MAX)] {
        assert!(
            driver
                .swap(ObjectId::head(lineage), 0, b"head")
                .result
                .is_ok()
        );
        expected.push(ObjectId::head(lineage));
        for kind in [
            ObjectKind::Data,
            ObjectKind::Log,
            ObjectKind::Pack,
            ObjectKind::Content,
        ] {
            for number in [1, 2, 300, u64::MAX] {
                let id = ObjectId {
                    lineage,
                    kind,
                    number,
                };
                assert!(driver.write(id, 0, &pattern(number, 512)).is_ok(), "{id:?}");
                expected.push(id);
            }
        }
    }
    // Several pieces of 64 GiB are one address space.
    assert!(driver.write(data(1, 2), 7 << 36, &pattern(1, 512)).is_ok());
    expected.sort_unstable();
    let least = data(0, 0);
    for room in [1, 2, 7, 1000] {
        assert_eq!(driver.list(least, room), expected, "in pages of {room}");
    }
    for (index, id) in expected.iter().enumerate() {
        assert_eq!(
            driver.list(*id, 1000),
            expected[index + 1..],
            "above {id:?}"
        );
    }
    let gone = expected.remove(20);
    assert_eq!(driver.simple(ObjectOp::Delete, gone).result, Ok(0));
    assert_eq!(driver.list(least, 3), expected, "after a delete");
    assert_eq!(
        driver.list(gone, 1000),
        expected[20..],
        "above what is no longer there"
    );
}

pub(super) fn listing_without_room(driver: &mut Driver<'_>) {
    assert!(driver.write(data(1, 1), 0, &pattern(1, 512)).is_ok());
    let request = ObjectRequest {
        len: 31,
        ..ObjectRequest::new(ObjectOp::List, data(0, 0))
    };
    assert_eq!(
        driver.call(&request, &[(0, 31)]).result,
        Err(ErrorCode::Invalid),
        "or 0 would mean: no more"
    );
    let request = ObjectRequest { len: 63, ..request };
    assert_eq!(driver.call(&request, &[(0, 63)]).result, Ok(32));
}

pub(super) fn concurrent(driver: &mut Driver<'_>) {
    const COUNT: u64 = 128;
    for round in 0..4 {
        let request = |op, index: u64| {
            let id = data(u128::from(index % 5), round);
            ObjectRequest {
                len: 4096,
                offset: index * 8192,
                ..ObjectRequest::new(op, id)
            }
        };
        let mut tickets = Vec::new();
        for index in 0..COUNT {
            driver
                .region()
                .write(index * 4096, &pattern(round << 32 | index, 4096))
                .expect("inside");
            tickets.push(driver.start(&request(ObjectOp::Write, index), &[(index * 4096, 4096)]));
        }
        // Backwards, so that replies have to wait for us too.
        for ticket in tickets.into_iter().rev() {
            assert_eq!(driver.wait(ticket).result, Ok(4096));
        }
        driver.region().fill(0, COUNT * 4096, 0).expect("inside");
        let mut tickets = Vec::new();
        for index in 0..COUNT {
            tickets.push(driver.start(&request(ObjectOp::Read, index), &[(index * 4096, 4096)]));
            if index % 16 == 0 {
                tickets.push(driver.start(&request(ObjectOp::Sync, index), &[]));
            }
        }
        for ticket in tickets {
            assert!(driver.wait(ticket).result.is_ok());
        }
        for index in 0..COUNT {
            let mut bytes = vec![0; 4096];
            driver
                .region()
                .read(index * 4096, &mut bytes)
                .expect("inside");
            assert!(
                bytes == pattern(round << 32 | index, 4096),
                "round {round}, request {index}"
            );
        }
    }
}

pub(super) fn racing_swaps(driver: &mut Driver<'_>) {
    let id = ObjectId::head(Lineage(1));
    for version in 0..8_u64 {
        let tickets: Vec<u64> = (0..8_u64)
            .map(|racer| {
                driver
                    .region()
                    .write(racer * 4096, &pattern(racer, 256))
                    .expect("inside");
                let swap = ObjectRequest {
                    offset: version,
                    len: 256,
                    ..ObjectRequest::new(ObjectOp::CompareAndSwap, id)
                };
                driver.start(&swap, &[(racer * 4096, 256)])
            })
            .collect();
        let mut winner = None;
        for (racer, ticket) in tickets.into_iter().enumerate() {
            let reply = driver.wait(ticket);
            match reply.result {
                Ok(_) => assert_eq!(winner.replace(racer as u64), None, "two winners"),
                Err(code) => assert_eq!(code, ErrorCode::Stale),
            }
            assert_eq!(reply.values[0], version + 1);
        }
        let winner = winner.expect("somebody wins");
        assert!(driver.read_swapped(id) == Ok((version + 1, pattern(winner, 256))));
    }
}

pub(super) fn hundreds(driver: &mut Driver<'_>) {
    const COUNT: u64 = 600;
    for index in 0..COUNT {
        assert!(
            driver
                .write(
                    data(u128::from(index % 7), index),
                    4096,
                    &pattern(index, 512)
                )
                .is_ok()
        );
    }
    assert_eq!(driver.simple(ObjectOp::SyncPool, data(0, 0)).result, Ok(0));
    for index in (0..COUNT).rev() {
        assert!(
            driver.read(data(u128::from(index % 7), index), 4096, 512) == Ok(pattern(index, 512)),
            "{index}"
        );
    }
    let tickets: Vec<u64> = (0..COUNT)
        .map(|index| {
            driver.start(
                &ObjectRequest::new(ObjectOp::Sync, data(u128::from(index % 7), index)),
                &[],
            )
        })
        .collect();
    for ticket in tickets {
        assert_eq!(driver.wait(ticket).result, Ok(0));
    }
    assert_eq!(
        driver.list(data(0, 0), 100).len() as u64,
        COUNT - 1,
        "all but the one above which they are listed"
    );
}

pub(super) fn pool(driver: &mut Driver<'_>) {
    let reply = driver.simple(ObjectOp::StatPool, data(0, 0));
    assert_eq!(reply.result, Ok(0));
    let [free, total] = reply.values;
    let unknown = free == 0 && total == 0;
    assert!(unknown || 0 < free && free <= total, "{free} of {total}");
}

pub(super) fn model(driver: &mut Driver<'_>) {
    const SPACE: usize = 64 * 512;
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % bound
    };
    let mut model: BTreeMap<ObjectId, Vec<u8>> = BTreeMap::new();
    for turn in 0..2000 {
        let id = data(u128::from(random(3)), random(2));
        let sector = random(64);
        let count = 1 + random(64 - sector);
        let (offset, len) = (sector * 512, usize::try_from(count * 512).expect("small"));
        let at = usize::try_from(offset).expect("small");
        match random(20) {
            0 => {
                assert_eq!(driver.simple(ObjectOp::Delete, id).result, Ok(0));
                model.remove(&id);
            }
            1..3 => {
                if let Some(bytes) = model.get_mut(&id) {
                    let len = u32::try_from(len).expect("small");
                    let punch = ObjectRequest {
                        offset,
                        len,
                        ..ObjectRequest::new(ObjectOp::Punch, id)
                    };
                    assert_eq!(driver.call(&punch, &[]).result, Ok(0));
                    bytes[at..at + len as usize].fill(0);
                }
            }
            3..6 => {
                if model.contains_key(&id) {
                    assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
                }
            }
            6..13 => {
                let bytes = pattern(turn, len);
                let flags = if random(4) == 0 { FLAG_DURABLE } else { 0 };
                assert!(driver.write_with(id, offset, &bytes, flags).is_ok());
                model.entry(id).or_insert_with(|| vec![0; SPACE])[at..at + len]
                    .copy_from_slice(&bytes);
            }
            _ => {
                let expected = model
                    .get(&id)
                    .map(|bytes| bytes[at..at + len].to_vec())
                    .ok_or(ErrorCode::NotFound);
                assert!(
                    driver.read(id, offset, len) == expected,
                    "turn {turn}: {len} at {offset} of {id:?}"
                );
            }
        }
    }
}
