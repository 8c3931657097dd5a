//! Logs: appends where they end, seals, and what makes an object that nobody has made before.

use archipelago_protocol::error::ErrorCode;
use archipelago_protocol::ids::{Generation, Lineage};
use archipelago_protocol::log_sector::{CONTENT_LEN, SECTOR_LEN, UNIT, blank, sectors};
use archipelago_protocol::object::{ObjectId, ObjectOp, ObjectReply, ObjectRequest};

use super::driver::{Driver, data, pattern};

/// Units of the logs here.
const UNITS: u64 = 16;
const LEN: u64 = UNITS * UNIT as u64;
const UNIT_LEN: u32 = 4096;
const _: () = assert!(UNIT_LEN as usize == UNIT);

fn log(lineage: u128) -> ObjectId {
    ObjectId::log(Lineage(lineage), 1)
}

/// A batch whose content is the pattern of `seed`.
fn batch(id: ObjectId, seed: u64, position: u64, units: usize, token: u64) -> Vec<u8> {
    let len = units * UNIT / SECTOR_LEN * CONTENT_LEN;
    let content = pattern(seed, len.next_multiple_of(8));
    sectors(&content[..len], id.lineage, position, Generation(token))
}

/// Appends a batch of the session that it says.
fn appended(driver: &mut Driver<'_>, id: ObjectId, position: u64, bytes: &[u8]) -> ObjectReply {
    driver.append(id, position, bytes, token_of(bytes))
}

fn token_of(batch: &[u8]) -> u64 {
    u64::from_le_bytes(batch[8..16].try_into().expect("eight bytes"))
}

#[track_caller]
fn landed(reply: ObjectReply, len: usize) {
    assert_eq!(reply.result.map(|len| len as usize), Ok(len));
}

#[track_caller]
fn stale(reply: ObjectReply, there: u64) {
    assert_eq!(reply.result, Err(ErrorCode::Stale));
    assert_eq!(reply.values[0], there, "what is there");
}

/// A new log.
fn made(driver: &mut Driver<'_>, id: ObjectId) {
    let bytes = blank(id.lineage, 0..LEN);
    let half = bytes.len() / 2;
    for at in [0, half] {
        let wrote = driver.write(id, at as u64, &bytes[at..at + half]);
        assert_eq!(wrote.map(|len| len as usize), Ok(half));
    }
    assert_eq!(driver.simple(ObjectOp::Sync, id).result, Ok(0));
}

/// What a reader of the log finds at a position.
fn at(driver: &mut Driver<'_>, id: ObjectId, position: u64, len: usize) -> Vec<u8> {
    driver
        .read(id, position % LEN, len)
        .expect("a log that is there")
}

pub(super) fn circle(driver: &mut Driver<'_>) {
    made(driver, log(1));
    let mut end = 0;
    for (round, units) in (0..40).zip([1, 2, 4, 1].into_iter().cycle()) {
        let bytes = batch(log(1), round, end, units, 1);
        landed(appended(driver, log(1), end, &bytes), bytes.len());
        assert!(
            at(driver, log(1), end, bytes.len()) == bytes,
            "round {round}"
        );
        end += bytes.len() as u64;
    }
    let length = driver.simple(ObjectOp::Stat, log(1)).values[1];
    assert_eq!(length, LEN, "appends do not lengthen it");
}

pub(super) fn position(driver: &mut Driver<'_>) {
    let unit = UNIT as u64;
    made(driver, log(1));
    let first = batch(log(1), 1, 0, 2, 1);
    landed(appended(driver, log(1), 0, &first), first.len());
    for position in [0, unit, 3 * unit, UNITS * unit] {
        let other = batch(log(1), 2, position, 1, 1);
        stale(appended(driver, log(1), position, &other), 2 * unit);
    }
    // As long as the one that landed last, and at its place, but another one.
    let other = batch(log(1), 2, 0, 2, 1);
    stale(appended(driver, log(1), 0, &other), 2 * unit);
    assert!(at(driver, log(1), 0, first.len()) == first);
    let next = batch(log(1), 3, 2 * unit, 1, 1);
    landed(appended(driver, log(1), 2 * unit, &next), UNIT);
}

pub(super) fn repetition(driver: &mut Driver<'_>) {
    made(driver, log(1));
    let mut end = 0;
    for round in 0..6 {
        let bytes = batch(log(1), round, end, 3, 1);
        for _ in 0..3 {
            landed(appended(driver, log(1), end, &bytes), bytes.len());
        }
        end += bytes.len() as u64;
        if LEN - end % LEN < bytes.len() as u64 {
            break;
        }
    }
    assert_eq!(end, 5 * 3 * UNIT as u64, "each landed once");
    let before = batch(log(1), 3, end - 6 * UNIT as u64, 3, 1);
    stale(
        appended(driver, log(1), end - 6 * UNIT as u64, &before),
        end,
    );
}

pub(super) fn malformed(driver: &mut Driver<'_>) {
    let invalid = |reply: ObjectReply| assert_eq!(reply.result, Err(ErrorCode::Invalid));
    made(driver, log(1));
    let whole = batch(log(1), 1, 0, 2, 1);
    invalid(appended(driver, log(1), 0, &whole[..UNIT]));
    invalid(appended(driver, log(1), 0, &pattern(1, UNIT)));
    invalid(appended(driver, log(1), 0, &batch(log(2), 1, 0, 1, 1)));
    invalid(appended(
        driver,
        log(1),
        0,
        &batch(log(1), 1, UNIT as u64, 1, 1),
    ));
    let mut end = 0;
    for _ in 0..5 {
        let bytes = batch(log(1), 1, end, 3, 1);
        landed(appended(driver, log(1), end, &bytes), bytes.len());
        end += bytes.len() as u64;
    }
    // Across the end of the circle.
    invalid(appended(driver, log(1), end, &batch(log(1), 1, end, 2, 1)));
    landed(
        appended(driver, log(1), end, &batch(log(1), 1, end, 1, 1)),
        UNIT,
    );
    // No log.
    let missing = appended(driver, log(3), 0, &batch(log(3), 1, 0, 1, 1));
    assert_eq!(missing.result, Err(ErrorCode::NotFound));
    assert_eq!(driver.seal(log(3), 1).result, Err(ErrorCode::NotFound));
    for id in [
        data(1, 1),
        ObjectId::pack(Lineage(1), 1),
        ObjectId::head(Lineage(1)),
    ] {
        invalid(driver.seal(id, 1));
        invalid(appended(driver, id, 0, &batch(id, 1, 0, 1, 1)));
    }
}

pub(super) fn token(driver: &mut Driver<'_>) {
    let unit = UNIT as u64;
    made(driver, log(1));
    landed(
        appended(driver, log(1), 0, &batch(log(1), 1, 0, 1, 3)),
        UNIT,
    );
    for _ in 0..2 {
        assert_eq!(driver.seal(log(1), 5).result, Ok(0));
    }
    stale(driver.seal(log(1), 4), 5);
    for token in [3, 4] {
        let old = batch(log(1), 2, unit, 1, token);
        stale(appended(driver, log(1), unit, &old), unit);
    }
    // The repetition of what landed before the seal, too.
    stale(
        appended(driver, log(1), 0, &batch(log(1), 1, 0, 1, 3)),
        unit,
    );
    landed(
        appended(driver, log(1), unit, &batch(log(1), 3, unit, 1, 5)),
        UNIT,
    );
    let next = batch(log(1), 4, 2 * unit, 1, 6);
    landed(appended(driver, log(1), 2 * unit, &next), UNIT);
    let before = batch(log(1), 5, 3 * unit, 1, 5);
    landed(appended(driver, log(1), 3 * unit, &before), UNIT);
    // Another log has a token of its own.
    made(driver, log(2));
    landed(
        appended(driver, log(2), 0, &batch(log(2), 1, 0, 1, 1)),
        UNIT,
    );
}

pub(super) fn plain_writes(driver: &mut Driver<'_>) {
    made(driver, log(1));
    made(driver, log(1));
    assert_eq!(driver.seal(log(1), 1).result, Ok(0));
    let bytes = batch(log(1), 1, 0, 2, 1);
    landed(appended(driver, log(1), 0, &bytes), bytes.len());
    for place in [0, UNIT as u64, LEN - UNIT as u64] {
        let nothing = blank(Lineage(1), place..place + UNIT as u64);
        assert_eq!(driver.write(log(1), place, &nothing), Err(ErrorCode::Stale));
    }
    assert!(at(driver, log(1), 0, bytes.len()) == bytes);
}

/// Appends in flight together have one winner, a seal among them lets nothing through that comes after it.
pub(super) fn racing(driver: &mut Driver<'_>) {
    for round in 0..20_u64 {
        let id = log(u128::from(round) + 1);
        made(driver, id);
        let mut tickets = Vec::new();
        for racer in 0..4_u64 {
            let (bytes, at) = (batch(id, racer, 0, 1, 1), racer * UNIT as u64);
            driver
                .region()
                .write(at, &bytes)
                .expect("inside the buffer");
            let request = ObjectRequest {
                len: UNIT_LEN,
                token: Generation(1),
                ..ObjectRequest::new(ObjectOp::Append, id)
            };
            tickets.push(driver.start(&request, &[(at, UNIT as u64)]));
            if racer == round % 4 {
                let seal = ObjectRequest {
                    token: Generation(2),
                    ..ObjectRequest::new(ObjectOp::Seal, id)
                };
                tickets.push(driver.start(&seal, &[]));
            }
        }
        let replies: Vec<_> = tickets
            .into_iter()
            .map(|ticket| driver.wait(ticket))
            .collect();
        let winners = replies.iter().filter(|reply| reply.result == Ok(UNIT_LEN));
        assert!(winners.count() <= 1, "{replies:?}");
        let sealed = replies.iter().filter(|reply| reply.result == Ok(0)).count();
        assert_eq!(sealed, 1);
        let end = if replies.iter().any(|reply| reply.result == Ok(UNIT_LEN)) {
            UNIT as u64
        } else {
            0
        };
        stale(appended(driver, id, end, &batch(id, 9, end, 1, 1)), end);
        landed(appended(driver, id, end, &batch(id, 9, end, 1, 2)), UNIT);
    }
}

pub(super) fn create(driver: &mut Driver<'_>) {
    for id in [log(1), ObjectId::pack(Lineage(1), 4)] {
        assert_eq!(driver.simple(ObjectOp::Create, id).result, Ok(0));
        for _ in 0..2 {
            let again = driver.simple(ObjectOp::Create, id).result;
            assert_eq!(again, Err(ErrorCode::Exists));
        }
        assert_eq!(driver.simple(ObjectOp::Stat, id).values[1], 0);
        assert_eq!(driver.simple(ObjectOp::Delete, id).result, Ok(0));
        assert_eq!(driver.simple(ObjectOp::Create, id).result, Ok(0));
    }
    assert_eq!(
        driver.list(data(0, 0), 8),
        [log(1), ObjectId::pack(Lineage(1), 4)]
    );
    // One that was made by a write is there, too.
    let written = ObjectId::pack(Lineage(1), 5);
    assert!(driver.write(written, 0, b"something").is_ok());
    let exists = driver.simple(ObjectOp::Create, written).result;
    assert_eq!(exists, Err(ErrorCode::Exists));
    for id in [data(1, 1), ObjectId::head(Lineage(1))] {
        let refused = driver.simple(ObjectOp::Create, id).result;
        assert_eq!(refused, Err(ErrorCode::Invalid));
    }
    // A log that was made so is as any other.
    made(driver, log(1));
    landed(
        appended(driver, log(1), 0, &batch(log(1), 1, 0, 1, 1)),
        UNIT,
    );
}
