//! Block status: which runs are answered, and what the peer asks for them.

use archipelago_protocol::ErrorCode;
use archipelago_protocol::map::MapReply;
use archipelago_protocol::status::BlockState::{Data, Hole};
use archipelago_protocol::status::{BlockState, MapRuns};
use archipelago_protocol::volume::{Segment, VolumeEvent, VolumeOp, VolumeRequest, Volumes};
use archipelago_runtime::Peer;

use super::fakes::OWN;
use super::world::{SECTOR, SIZE, World};

const WRITE: VolumeOp = VolumeOp::Write { durable: false };
const BLOCK: u64 = 4096;

/// The runs of `len` bytes at `offset`, in a page of as many runs as there are sectors.
fn status(world: &mut World, offset: u64, len: u64) -> Vec<(u64, BlockState)> {
    assert_eq!(world.run(VolumeOp::BlockStatus, offset, len), Ok(()));
    let runs = world.statuses.pop().unwrap();
    runs.iter().map(|run| (run.len, run.state)).collect()
}

/// Submits a status of the first `len` bytes with a page of `page` bytes at the beginning of the guest's memory.
fn submit(world: &mut World, len: u64, page: u32) {
    let request = VolumeRequest {
        op: VolumeOp::BlockStatus,
        offset: 0,
        len,
        segments: &[Segment {
            region: 1,
            len: page,
            offset: 0,
        }],
    };
    world.peer.submit(world.handle, 3, request).unwrap();
}

fn next_answer(world: &mut World) -> Option<Result<(), ErrorCode>> {
    match world.peer.next_event(world.handle) {
        Some(VolumeEvent::Done { result, .. }) => Some(result),
        Some(VolumeEvent::Resized { .. }) | None => None,
        Some(event) => panic!("{event:?}"),
    }
}

/// Eight bytes of the guest's memory.
fn memory(world: &World, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; 8];
    world.guest_memory().read(at, &mut bytes).unwrap();
    bytes
}

#[test]
fn runs_begin_and_end_where_the_request_does_and_no_data_is_read() {
    let mut world = World::opened();
    // Every third block is in the parent: 0, 3, 6, ...
    assert_eq!(
        status(&mut world, 512, 3 * BLOCK),
        [(BLOCK - 512, Data), (2 * BLOCK, Hole), (512, Data)]
    );
    assert_eq!(status(&mut world, 4096 + 512, 1024), [(1024, Hole)]);
    // The last block is cut off by the end of the volume; it is number 40.
    assert_eq!(
        status(&mut world, SIZE - 2 * BLOCK, 2 * BLOCK),
        [
            (BLOCK - 3 * SECTOR, Hole),
            (BLOCK, Data),
            (3 * SECTOR, Hole)
        ]
    );
    assert_eq!(world.object_log.len(), 0);
}

#[test]
fn what_was_written_is_data_at_once_and_what_was_discarded_is_a_hole() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, BLOCK + 512, 512), Ok(()));
    assert_eq!(
        status(&mut world, 0, 4 * BLOCK),
        [(2 * BLOCK, Data), (BLOCK, Hole), (BLOCK, Data)]
    );
    assert_eq!(world.run(VolumeOp::Discard, 0, 2 * BLOCK), Ok(()));
    assert_eq!(
        status(&mut world, 0, 4 * BLOCK),
        [(3 * BLOCK, Hole), (BLOCK, Data)]
    );
}

#[test]
fn answers_of_the_mapper_are_joined_to_runs_that_differ() {
    let mut world = World::opened();
    assert_eq!(world.run(WRITE, 0, 9 * BLOCK), Ok(()));
    world.mapper.run_max = 1;
    world.map_log.clear();
    assert_eq!(
        status(&mut world, 0, 12 * BLOCK),
        [(10 * BLOCK, Data), (2 * BLOCK, Hole)]
    );
    let asked: Vec<u64> = world.map_log.iter().map(|ask| ask.offset).collect();
    assert_eq!(asked, [0, 4 * BLOCK, 8 * BLOCK], "four runs an answer");
}

#[test]
fn a_page_that_is_full_ends_with_its_last_run() {
    let mut world = World::opened();
    world.guest_memory().fill(0, 24, 0xff).unwrap();
    submit(&mut world, SIZE, 16);
    world.peer.poll();
    while world.map_waiting() > 0 {
        world.map_step(0, None);
        world.peer.poll();
    }
    assert_eq!(next_answer(&mut world), Some(Ok(())));
    let words = [0, 8, 16].map(|at| u64::from_le_bytes(memory(&world, at).try_into().unwrap()));
    assert_eq!(
        words,
        [BLOCK + 1, 2 * BLOCK, u64::MAX],
        "and nothing behind the page"
    );
}

#[test]
fn a_status_that_cannot_be_right_is_refused() {
    let mut world = World::opened();
    let page = |len| {
        vec![Segment {
            region: 1,
            len,
            offset: 0,
        }]
    };
    for (offset, len, segments) in [
        (0, 4096, vec![]),
        (0, 4096, page(4)),
        (0, 4096, page(12)),
        (0, 4096, page(4096 + 8)),
        (0, 0, page(64)),
        (0, 100, page(64)),
        (SIZE, 512, page(64)),
        (
            0,
            4096,
            vec![Segment {
                region: 9,
                len: 64,
                offset: 0,
            }],
        ),
    ] {
        let request = VolumeRequest {
            op: VolumeOp::BlockStatus,
            offset,
            len,
            segments: &segments,
        };
        world.peer.submit(world.handle, 9, request).unwrap();
        let refused = VolumeEvent::Done {
            cookie: 9,
            result: Err(ErrorCode::Invalid),
        };
        assert_eq!(
            world.peer.next_event(world.handle),
            Some(refused),
            "{request:?}"
        );
    }
}

#[test]
fn a_mapper_that_answers_more_than_was_asked_fails_the_request() {
    let mut world = World::opened();
    for blocks in [3, MapRuns::BLOCKS_MAX] {
        world
            .submit(VolumeOp::BlockStatus, 0, 2 * BLOCK, &[])
            .unwrap();
        world.poll();
        let mut runs = MapRuns::default();
        runs.push(Hole, blocks);
        world.map_answer(&MapReply::status(&runs));
        world.poll();
        assert_eq!(world.results.pop(), Some((0, Err(ErrorCode::Internal))));
    }
}

#[test]
fn the_work_of_one_status_is_bounded() {
    let mut world = World::opened();
    world.peer.resized(OWN, 1 << 30);
    let mut runs = MapRuns::default();
    runs.push(Data, 1);
    let mut asked = 0;
    submit(&mut world, 1 << 30, 64);
    while next_answer(&mut world).is_none() {
        world.peer.poll();
        if world.map_waiting() > 0 {
            world.map_answer(&MapReply::status(&runs));
            asked += 1;
        }
    }
    assert_eq!(asked, 64);
    let word = u64::from_le_bytes(memory(&world, 0).try_into().unwrap());
    assert_eq!(word, 64 * BLOCK + 1, "what was seen until then");
}

#[test]
fn a_status_begins_again_with_the_next_mapper() {
    let mut world = World::opened();
    world.mapper.run_max = 1;
    world
        .submit(VolumeOp::BlockStatus, 0, 12 * BLOCK, &[])
        .unwrap();
    world.poll();
    world.map_step(0, None);
    world.poll();
    world.kill_mapper();
    world.revive_mapper();
    world.settle();
    assert_eq!(world.results.pop(), Some((0, Ok(()))));
    let covered: u64 = world
        .statuses
        .pop()
        .unwrap()
        .iter()
        .map(|run| run.len)
        .sum();
    assert_eq!(covered, 12 * BLOCK);
}
