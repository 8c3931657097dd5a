//! Reads, writes, syncs, punches and deletes.

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Lineage, ObjectSize};
use archipelago_protocol::object::{
    FLAG_DURABLE, IO_LEN_MAX, ObjectId, ObjectKind, ObjectOp, ObjectRequest,
};

use super::driver::{Driver, data, pattern};

pub(super) fn missing(driver: &mut Driver<'_>) {
    for id in [
        data(1, 1),
        ObjectId::log(Lineage(1), 1),
        ObjectId::pack(Lineage(1), 1),
    ] {
        assert_eq!(driver.read(id, 0, 512), Err(ErrorCode::NotFound), "{id:?}");
        assert_eq!(
            driver.simple(ObjectOp::Stat, id).result,
            Err(ErrorCode::NotFound),
            "{id:?}"
        );
    }
    assert_eq!(
        driver.read_swapped(ObjectId::head(Lineage(1))),
        Err(ErrorCode::NotFound)
    );
    // To have looked creates nothing.
    assert_eq!(driver.list(data(0, 0), 4), []);
}

pub(super) fn holes(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    let bytes = pattern(1, 4096);
    assert_eq!(driver.write(id, 1 << 20, &bytes), Ok(4096));
    assert_eq!(driver.read(id, 0, 8192), Ok(vec![0; 8192]), "before");
    assert_eq!(
        driver.read(id, (1 << 20) + 4096, 8192),
        Ok(vec![0; 8192]),
        "behind"
    );
    let around = driver
        .read(id, (1 << 20) - 4096, 3 * 4096)
        .expect("written");
    assert!(
        around == [vec![0; 4096], bytes, vec![0; 4096]].concat(),
        "hole, data, hole"
    );
}

pub(super) fn sectors(driver: &mut Driver<'_>) {
    for id in [
        data(1, 1),
        ObjectId::log(Lineage(1), 0),
        ObjectId::pack(Lineage(1), 0),
    ] {
        let mut expected = vec![0; 32 * 512];
        for (turn, sector) in [3, 9, 4, 31, 0, 8, 7, 9].into_iter().enumerate() {
            let bytes = pattern(turn as u64, 512);
            assert_eq!(driver.write(id, sector as u64 * 512, &bytes), Ok(512));
            expected[sector * 512..][..512].copy_from_slice(&bytes);
            assert!(
                driver.read(id, 0, expected.len()).as_ref() == Ok(&expected),
                "after sector {sector} of {id:?}"
            );
        }
        for sector in 0..32 {
            let read = driver.read(id, sector as u64 * 512, 512);
            assert!(
                read.as_deref() == Ok(&expected[sector * 512..][..512]),
                "sector {sector} of {id:?}"
            );
        }
    }
}

pub(super) fn unaligned(driver: &mut Driver<'_>) {
    for id in [data(1, 1), ObjectId::pack(Lineage(1), 0)] {
        let mut expected = pattern(1, 20_000);
        assert_eq!(driver.write(id, 0, &expected), Ok(20_000));
        for (offset, len) in [
            (37, 100),
            (511, 2),
            (4095, 4098),
            (12_288, 1),
            (19_999, 1),
            (8192, 4000),
        ] {
            let bytes = pattern(offset as u64, len);
            assert_eq!(
                driver
                    .write(id, offset as u64, &bytes)
                    .map(|count| count as usize),
                Ok(len)
            );
            expected[offset..offset + len].copy_from_slice(&bytes);
            assert!(
                driver.read(id, 0, expected.len()).as_ref() == Ok(&expected),
                "{len} at {offset} of {id:?}"
            );
            let read = driver.read(id, offset as u64, len);
            assert!(
                read.as_deref() == Ok(&expected[offset..offset + len]),
                "{len} at {offset} of {id:?}"
            );
        }
    }
}

pub(super) fn scattered(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    let bytes = pattern(7, 64 * 512);
    // Pieces of unequal length, backwards in memory.
    let mut spans = Vec::new();
    let mut done = 0;
    for piece in (1..).map(|turn: u64| turn % 7 * 512 + 512) {
        let piece = piece.min(bytes.len() as u64 - done);
        if piece == 0 {
            break;
        }
        spans.push(((1 << 20) - done * 4, piece));
        done += piece;
    }
    let mut at = 0;
    for (offset, len) in &spans {
        let len = usize::try_from(*len).expect("small");
        driver
            .region()
            .write(*offset, &bytes[at..at + len])
            .expect("inside");
        at += len;
    }
    let len = u32::try_from(bytes.len()).expect("small");
    let write = ObjectRequest {
        len,
        offset: 8192,
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    assert_eq!(driver.call(&write, &spans).result, Ok(len));
    assert!(
        driver.read(id, 8192, bytes.len()).as_ref() == Ok(&bytes),
        "scattered write"
    );
    for (offset, len) in &spans {
        driver.region().fill(*offset, *len, 0).expect("inside");
    }
    let read = ObjectRequest {
        op: ObjectOp::Read,
        ..write
    };
    assert_eq!(driver.call(&read, &spans).result, Ok(len));
    let mut at = 0;
    for (offset, len) in &spans {
        let mut piece = vec![0; usize::try_from(*len).expect("small")];
        driver.region().read(*offset, &mut piece).expect("inside");
        assert!(
            piece == bytes[at..at + piece.len()],
            "scattered read at {offset}"
        );
        at += piece.len();
    }
    // As many pieces as a list can have, in memory that is aligned to bytes only.
    let spans: Vec<(u64, u64)> = (0..1024).map(|index| (index * 1000 + 1, 512)).collect();
    for (index, (offset, len)) in spans.iter().enumerate() {
        driver
            .region()
            .fill(*offset, *len, u8::try_from(index % 251).expect("small"))
            .expect("inside");
    }
    let write = ObjectRequest {
        len: 1024 * 512,
        offset: 1 << 22,
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    assert_eq!(driver.call(&write, &spans).result, Ok(1024 * 512));
    let read = driver.read(id, 1 << 22, 1024 * 512).expect("written");
    for (index, piece) in read.chunks_exact(512).enumerate() {
        assert!(
            piece.iter().all(|byte| usize::from(*byte) == index % 251),
            "piece {index} of 1024"
        );
    }
}

pub(super) fn overwrites(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    let mut expected = vec![0; 16 * 4096];
    for turn in 0..40_usize {
        let (offset, len) = (turn * 7 % 13 * 4096, (turn % 3 + 1) * 4096);
        let bytes = pattern(turn as u64, len);
        assert!(driver.write(id, offset as u64, &bytes).is_ok());
        expected[offset..offset + len].copy_from_slice(&bytes);
    }
    assert!(driver.read(id, 0, expected.len()).as_ref() == Ok(&expected));
}

pub(super) fn durable(driver: &mut Driver<'_>) {
    for id in [
        data(1, 1),
        ObjectId::log(Lineage(1), 0),
        ObjectId::log(Lineage::CATALOGUE, 0),
    ] {
        let bytes = pattern(3, 8192);
        assert_eq!(
            driver.write_with(id, 4096, &bytes, FLAG_DURABLE),
            Ok(8192),
            "{id:?}"
        );
        assert_eq!(
            driver.write_with(id, 0, &bytes[..512], FLAG_DURABLE),
            Ok(512),
            "{id:?}"
        );
        assert!(driver.read(id, 4096, 8192).as_ref() == Ok(&bytes), "{id:?}");
        assert!(
            driver.read(id, 0, 512).as_deref() == Ok(&bytes[..512]),
            "{id:?}"
        );
    }
}

pub(super) fn syncs(driver: &mut Driver<'_>) {
    let ids = [
        data(1, 1),
        data(2, 1),
        ObjectId::log(Lineage(1), 0),
        ObjectId::pack(Lineage(1), 0),
    ];
    for id in ids {
        assert!(driver.write(id, 0, &pattern(1, 4096)).is_ok());
        assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0), "{id:?}");
        assert_eq!(
            driver.simple(ObjectOp::Sync, id).result,
            Ok(0),
            "again {id:?}"
        );
        assert!(driver.write(id, 4096, &pattern(2, 4096)).is_ok());
    }
    assert_eq!(driver.simple(ObjectOp::SyncPool, ids[0]).result, Ok(0));
    for id in ids {
        assert!(
            driver.read(id, 4096, 4096) == Ok(pattern(2, 4096)),
            "{id:?}"
        );
    }
    // A sync covers the object, however far apart its data is.
    for places in [2, 12] {
        for far in 0..places {
            let at = (far << 36) + 512;
            assert!(driver.write(ids[0], at, &pattern(3, 512)).is_ok());
        }
        assert_eq!(driver.simple(ObjectOp::Sync, ids[0]).result, Ok(0));
    }
}

pub(super) fn repetition(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    let bytes = pattern(1, 4096);
    let punch = ObjectRequest {
        offset: 8192,
        len: 4096,
        ..ObjectRequest::new(ObjectOp::Punch, id)
    };
    for _ in 0..3 {
        assert_eq!(driver.write(id, 0, &bytes), Ok(4096));
        assert_eq!(driver.write_with(id, 4096, &bytes, FLAG_DURABLE), Ok(4096));
        assert_eq!(driver.call(&punch, &[]).result, Ok(0));
        assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
    }
    assert!(driver.read(id, 0, 12_288) == Ok([bytes.clone(), bytes, vec![0; 4096]].concat()));
}

pub(super) fn punch(driver: &mut Driver<'_>) {
    for id in [data(1, 1), ObjectId::log(Lineage(1), 0)] {
        let mut expected = pattern(1, 1 << 20);
        assert!(driver.write(id, 0, &expected).is_ok());
        for (offset, len) in [
            (65_536_usize, 131_072_usize),
            (4096, 4096),
            (512, 512),
            (262_144 + 512, 8192),
        ] {
            let count = u32::try_from(len).expect("small");
            let punch = ObjectRequest {
                offset: offset as u64,
                len: count,
                ..ObjectRequest::new(ObjectOp::Punch, id)
            };
            assert_eq!(driver.call(&punch, &[]).result, Ok(0));
            expected[offset..offset + len].fill(0);
            assert!(
                driver.read(id, 0, expected.len()).as_ref() == Ok(&expected),
                "{len} at {offset} of {id:?}"
            );
        }
        // Beyond the end: nothing to free, and nothing grows.
        let punch = ObjectRequest {
            offset: 4 << 20,
            len: 65_536,
            ..ObjectRequest::new(ObjectOp::Punch, id)
        };
        assert_eq!(driver.call(&punch, &[]).result, Ok(0));
        assert!(
            driver.read(id, 0, expected.len()).as_ref() == Ok(&expected),
            "{id:?}"
        );
        // A punched place takes data again.
        assert!(driver.write(id, 65_536, &pattern(2, 512)).is_ok());
        assert!(
            driver.read(id, 65_536, 512) == Ok(pattern(2, 512)),
            "{id:?}"
        );
    }
}

pub(super) fn stat(driver: &mut Driver<'_>) {
    let id = ObjectId::pack(Lineage(1), 3);
    let mut end = 0;
    for (turn, len) in [4096_usize, 65_536, 8192].into_iter().enumerate() {
        assert!(driver.write(id, end, &pattern(turn as u64, len)).is_ok());
        end += len as u64;
        let reply = driver.simple(ObjectOp::Stat, id);
        assert_eq!(reply.result, Ok(0));
        assert_eq!(
            reply.values[1], end,
            "the length of a pack is where the next page goes"
        );
    }
    assert!(driver.write(id, 0, &pattern(9, 4096)).is_ok());
    assert_eq!(
        driver.simple(ObjectOp::Stat, id).values[1],
        end,
        "overwriting does not grow it"
    );
    assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
    assert!(
        driver.simple(ObjectOp::Stat, id).values[0] > 0,
        "it occupies something"
    );
    let sparse = data(1, 1);
    assert!(driver.write(sparse, 1 << 30, &pattern(1, 4096)).is_ok());
    let reply = driver.simple(ObjectOp::Stat, sparse);
    assert_eq!(reply.result, Ok(0));
    assert!(
        reply.values[1] >= (1 << 30) + 4096,
        "length {}",
        reply.values[1]
    );
}

pub(super) fn identities(driver: &mut Driver<'_>) {
    let mut ids = Vec::new();
    for lineage in [0, 1, 1 << 64, u128::MAX] {
        for number in [0, 1, u64::MAX] {
            for kind in [ObjectKind::Data, ObjectKind::Log, ObjectKind::Pack] {
                ids.push(ObjectId {
                    lineage: Lineage(lineage),
                    kind,
                    number,
                });
            }
        }
    }
    for (index, id) in ids.iter().enumerate() {
        assert!(
            driver.write(*id, 512, &pattern(index as u64, 512)).is_ok(),
            "{id:?}"
        );
    }
    for (index, id) in ids.iter().enumerate() {
        assert!(
            driver.read(*id, 512, 512) == Ok(pattern(index as u64, 512)),
            "{id:?}"
        );
    }
    for id in ids.iter().step_by(2) {
        assert_eq!(driver.simple(ObjectOp::Delete, *id).result, Ok(0), "{id:?}");
    }
    for (index, id) in ids.iter().enumerate() {
        let expected = if index % 2 == 0 {
            Err(ErrorCode::NotFound)
        } else {
            Ok(pattern(index as u64, 512))
        };
        assert!(driver.read(*id, 512, 512) == expected, "{id:?}");
    }
}

pub(super) fn delete(driver: &mut Driver<'_>) {
    for id in [
        data(1, 1),
        ObjectId::log(Lineage(1), 0),
        ObjectId::pack(Lineage(1), 1),
    ] {
        assert_eq!(
            driver.simple(ObjectOp::Delete, id).result,
            Ok(0),
            "nothing there: {id:?}"
        );
        assert!(driver.write(id, 0, &pattern(1, 4096)).is_ok());
        assert!(driver.write(id, 8 << 20, &pattern(1, 1 << 20)).is_ok());
        assert_eq!(driver.simple(ObjectOp::Delete, id).result, Ok(0), "{id:?}");
        assert_eq!(
            driver.simple(ObjectOp::Delete, id).result,
            Ok(0),
            "again {id:?}"
        );
        assert_eq!(driver.read(id, 0, 512), Err(ErrorCode::NotFound), "{id:?}");
        assert_eq!(
            driver.simple(ObjectOp::Stat, id).result,
            Err(ErrorCode::NotFound),
            "{id:?}"
        );
        assert!(driver.write(id, 4096, &pattern(2, 512)).is_ok());
        assert!(
            driver.read(id, 0, 4096) == Ok(vec![0; 4096]),
            "nothing of the old one is left: {id:?}"
        );
    }
    let wide = data(3, 1);
    for chunk in 0..3 {
        assert!(
            driver
                .write(wide, chunk << 36, &pattern(chunk, 4096))
                .is_ok()
        );
    }
    assert_eq!(driver.simple(ObjectOp::Delete, wide).result, Ok(0));
    for chunk in 0..3 {
        assert_eq!(
            driver.read(wide, chunk << 36, 4096),
            Err(ErrorCode::NotFound),
            "chunk {chunk}"
        );
    }
}

pub(super) fn beyond_the_end(driver: &mut Driver<'_>) {
    let id = ObjectId::log(Lineage(1), 0);
    let bytes = pattern(1, 4096);
    assert!(driver.write(id, 0, &bytes).is_ok());
    assert!(
        driver.read(id, 0, 16_384) == Ok([bytes, vec![0; 12_288]].concat()),
        "across the end"
    );
    assert!(
        driver.read(id, 1 << 20, 16_384) == Ok(vec![0; 16_384]),
        "far behind the end"
    );
    // Nothing of a former reader's memory may show.
    assert!(driver.read(id, 4096, 65_536) == Ok(vec![0; 65_536]));
}

pub(super) fn far_offsets(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    const CHUNK: u64 = 64 << 30;
    let places = [
        0,
        CHUNK - 4096,
        CHUNK,
        CHUNK + 512,
        3 * CHUNK + (5 << 20),
        (10 << 40) + 8192,
        (1 << 50) - 4096,
    ];
    for (index, offset) in places.into_iter().enumerate() {
        assert!(
            driver
                .write(id, offset, &pattern(index as u64, 512))
                .is_ok(),
            "at {offset}"
        );
    }
    for (index, offset) in places.into_iter().enumerate() {
        assert!(
            driver.read(id, offset, 512) == Ok(pattern(index as u64, 512)),
            "at {offset}"
        );
        let sync = ObjectRequest {
            offset,
            ..ObjectRequest::new(ObjectOp::Sync, id)
        };
        assert_eq!(driver.call(&sync, &[]).result, Ok(0), "at {offset}");
    }
    let behind = driver.read(id, (3 * CHUNK) + (5 << 20) + 512, 512);
    assert!(behind == Ok(vec![0; 512]), "in the same object");
}

pub(super) fn largest(driver: &mut Driver<'_>) {
    let id = data(1, 1);
    let bytes = pattern(1, IO_LEN_MAX as usize);
    let request = ObjectRequest {
        object_size: ObjectSize::MAX,
        len: IO_LEN_MAX,
        ..ObjectRequest::new(ObjectOp::Write, id)
    };
    driver.region().write(0, &bytes).expect("inside");
    assert_eq!(
        driver.call(&request, &[(0, u64::from(IO_LEN_MAX))]).result,
        Ok(IO_LEN_MAX)
    );
    let back = u64::from(IO_LEN_MAX);
    let read = ObjectRequest {
        op: ObjectOp::Read,
        ..request
    };
    assert_eq!(driver.call(&read, &[(back, back)]).result, Ok(IO_LEN_MAX));
    let mut read = vec![0; bytes.len()];
    driver.region().read(back, &mut read).expect("inside");
    assert!(read == bytes, "32 MiB");
}

pub(super) fn object_sizes(driver: &mut Driver<'_>) {
    for log2 in ObjectSize::MIN.log2()..=ObjectSize::MAX.log2() {
        let object_size = ObjectSize::from_log2(log2).expect("a legal size");
        let id = data(u128::from(log2), 1);
        // The last sectors of object 2 and the first of object 3.
        for offset in [3 * object_size.bytes() - 1024, 3 * object_size.bytes()] {
            driver
                .region()
                .write(0, &pattern(offset, 1024))
                .expect("inside");
            let write = ObjectRequest {
                object_size,
                offset,
                len: 1024,
                ..ObjectRequest::new(ObjectOp::Write, id)
            };
            assert_eq!(driver.call(&write, &[(0, 1024)]).result, Ok(1024));
            let read = ObjectRequest {
                op: ObjectOp::Read,
                ..write
            };
            assert_eq!(driver.call(&read, &[(4096, 1024)]).result, Ok(1024));
            let mut bytes = vec![0; 1024];
            driver.region().read(4096, &mut bytes).expect("inside");
            assert!(
                bytes == pattern(offset, 1024),
                "objects of {} at {offset}",
                object_size.bytes()
            );
        }
    }
}
