//! Small objects that compare-and-swap changes, and the end of a lineage.

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::Lineage;
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, SWAP_LEN_MAX};

use super::driver::{Driver, data, pattern};

fn head(lineage: u128) -> ObjectId {
    ObjectId::head(Lineage(lineage))
}

#[track_caller]
fn won(reply: ObjectReply, version: u64) {
    assert!(reply.result.is_ok(), "{reply:?}");
    assert_eq!(reply.values[0], version);
}

#[track_caller]
fn lost(reply: ObjectReply, version: u64) {
    assert_eq!(reply.result, Err(ErrorCode::Stale));
    assert_eq!(reply.values[0], version, "the version that is there");
}

pub(super) fn versions(driver: &mut Driver<'_>) {
    won(driver.swap(head(1), 0, b"first"), 1);
    assert_eq!(driver.read_swapped(head(1)), Ok((1, b"first".to_vec())));
    won(driver.swap(head(1), 1, b"second, longer"), 2);
    assert_eq!(
        driver.read_swapped(head(1)),
        Ok((2, b"second, longer".to_vec()))
    );
    won(driver.swap(head(1), 2, b"3rd"), 3);
    assert_eq!(driver.read_swapped(head(1)), Ok((3, b"3rd".to_vec())));
}

pub(super) fn stale(driver: &mut Driver<'_>) {
    lost(driver.swap(head(1), 4, b"nothing is there"), 0);
    assert_eq!(driver.read_swapped(head(1)), Err(ErrorCode::NotFound));
    won(driver.swap(head(1), 0, b"one"), 1);
    lost(driver.swap(head(1), 0, b"two"), 1);
    won(driver.swap(head(1), 1, b"two"), 2);
    for expected in [0, 1, 3, 4, u64::MAX >> 1] {
        lost(driver.swap(head(1), expected, b"other"), 2);
        assert_eq!(driver.read_swapped(head(1)), Ok((2, b"two".to_vec())));
    }
}

pub(super) fn repetition(driver: &mut Driver<'_>) {
    for _ in 0..3 {
        won(driver.swap(head(1), 0, b"one"), 1);
    }
    for _ in 0..3 {
        won(driver.swap(head(1), 1, b"two"), 2);
    }
    assert_eq!(driver.read_swapped(head(1)), Ok((2, b"two".to_vec())));
    // Same version, other content: somebody else's swap.
    lost(driver.swap(head(1), 1, b"owt"), 2);
    lost(driver.swap(head(1), 1, b"two "), 2);
    // Same content, other version.
    lost(driver.swap(head(1), 0, b"one"), 2);
    won(driver.swap(head(1), 2, b"two"), 3);
}

pub(super) fn lengths(driver: &mut Driver<'_>) {
    for (index, len) in [1, 511, 512, 513, 4000, SWAP_LEN_MAX as usize, 1]
        .into_iter()
        .enumerate()
    {
        let content = pattern(index as u64, len);
        won(
            driver.swap(head(1), index as u64, &content),
            index as u64 + 1,
        );
        assert!(
            driver.read_swapped(head(1)) == Ok((index as u64 + 1, content)),
            "{len} bytes"
        );
    }
}

pub(super) fn too_long(driver: &mut Driver<'_>) {
    let content = pattern(1, SWAP_LEN_MAX as usize + 1);
    assert_eq!(
        driver.swap(head(1), 0, &content).result,
        Err(ErrorCode::Invalid)
    );
    assert_eq!(driver.read_swapped(head(1)), Err(ErrorCode::NotFound));
    won(driver.swap(head(1), 0, b"short"), 1);
    assert_eq!(
        driver.swap(head(1), 1, &content).result,
        Err(ErrorCode::Invalid)
    );
    assert_eq!(driver.read_swapped(head(1)), Ok((1, b"short".to_vec())));
}

pub(super) fn many(driver: &mut Driver<'_>) {
    for lineage in 0..100_u128 {
        won(driver.swap(head(lineage), 0, &lineage.to_le_bytes()), 1);
    }
    for lineage in (0..100).step_by(3) {
        won(driver.swap(head(lineage), 1, b"changed"), 2);
    }
    for lineage in 0..100_u128 {
        let expected = if lineage % 3 == 0 {
            (2, b"changed".to_vec())
        } else {
            (1, lineage.to_le_bytes().to_vec())
        };
        assert_eq!(driver.read_swapped(head(lineage)), Ok(expected));
    }
}

pub(super) fn chain(driver: &mut Driver<'_>) {
    for version in 0..100 {
        won(
            driver.swap(head(7), version, &pattern(version, 200)),
            version + 1,
        );
    }
    assert!(driver.read_swapped(head(7)) == Ok((100, pattern(99, 200))));
}

pub(super) fn delete_lineage(driver: &mut Driver<'_>) {
    let theirs = |lineage: u128| {
        let owner = Lineage(lineage);
        [
            data(lineage, 1),
            data(lineage, 2),
            ObjectId::log(owner, 0),
            ObjectId::log(owner, 1),
            ObjectId::pack(owner, 0),
        ]
    };
    for lineage in [4, 5, 6] {
        won(driver.swap(head(lineage), 0, b"head"), 1);
        for id in theirs(lineage) {
            assert!(driver.write(id, 4096, &pattern(1, 4096)).is_ok());
        }
        assert!(
            driver
                .write(data(lineage, 1), 3 << 36, &pattern(1, 4096))
                .is_ok()
        );
    }
    for _ in 0..2 {
        assert_eq!(
            driver.simple(ObjectOp::DeleteLineage, head(5)).result,
            Ok(0)
        );
        assert_eq!(driver.read_swapped(head(5)), Err(ErrorCode::NotFound));
        for id in theirs(5) {
            assert_eq!(
                driver.read(id, 4096, 512),
                Err(ErrorCode::NotFound),
                "{id:?}"
            );
        }
    }
    for lineage in [4, 6] {
        assert_eq!(
            driver.read_swapped(head(lineage)),
            Ok((1, b"head".to_vec()))
        );
        for id in theirs(lineage) {
            assert!(
                driver.read(id, 4096, 4096) == Ok(pattern(1, 4096)),
                "{id:?}"
            );
        }
    }
    assert_eq!(
        driver.simple(ObjectOp::DeleteLineage, head(99)).result,
        Ok(0),
        "nothing there"
    );
    // The head alone goes with Delete.
    assert_eq!(driver.simple(ObjectOp::Delete, head(4)).result, Ok(0));
    assert_eq!(driver.read_swapped(head(4)), Err(ErrorCode::NotFound));
    won(driver.swap(head(4), 0, b"again"), 1);
}
