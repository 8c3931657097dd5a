//! Credits are few, and shared between volumes.

use std::rc::Rc;

use archipelago_protocol::map::MapReply;
use archipelago_protocol::volume::{
    OpenMode, Segment, VolumeEvent, VolumeHandle, VolumeOp, VolumeRequest, Volumes,
};
use archipelago_protocol::{ErrorCode, Lineage};

use super::world::{SIZE, World};

const WRITE: VolumeOp = VolumeOp::Write { durable: false };

#[test]
fn a_full_ring_and_a_blocker_that_is_away_only_delay() {
    let mut world = World::new(1, 20480);
    world.settle();
    for area in 0..16 {
        world
            .submit(WRITE, area * 4096 + 512, 8192, &[700, 800])
            .unwrap();
    }
    world.object_port.wire.borrow_mut().connected = false;
    world.settle();
    assert!(world.results.is_empty());
    world.object_port.wire.borrow_mut().connected = true;
    world.settle();
    assert_eq!(world.results.len(), 16);
    world.read_all();
}

/// The session of a second volume, whose requests nobody answers.
const ANOTHER: u32 = 500;

/// Opens a second volume. The fake mapper knows one only: the other is given its session by hand.
fn open_another(world: &mut World) -> VolumeHandle {
    let another = world.peer.open(Lineage(9), OpenMode::ReadOnly);
    world.poll();
    let reply = MapReply {
        values: [SIZE, 16],
        ..MapReply::done(ANOTHER)
    };
    world.map_port.wire.borrow_mut().answer(0, reply.encode(0));
    world.poll();
    another
}

/// Has it read sector `number`.
fn read_another(world: &mut World, another: VolumeHandle, number: u64) {
    let segment = Segment {
        region: 1,
        len: 512,
        offset: 0,
    };
    let request = VolumeRequest {
        op: VolumeOp::Read,
        offset: number * 512,
        len: 512,
        segments: &[segment],
    };
    world.peer.submit(another, number, request).unwrap();
}

#[test]
fn a_volume_whose_requests_hang_leaves_credits_to_others() {
    let mut world = World::new(8, 1 << 20);
    world.settle();
    let another = open_another(&mut world);
    for area in 0..8 {
        let read = world.submit(VolumeOp::Read, area * 4096, 4096, &[]);
        read.unwrap();
    }
    world.poll();
    read_another(&mut world, another, 0);
    world.poll();
    let wire = world.map_port.wire.borrow();
    let asked = wire.queue.iter().filter(|(_, it)| it.handle == ANOTHER);
    assert_eq!(asked.count(), 1);
    assert_eq!(wire.queue.len(), 5, "half of eight, and one of those left");
}

#[test]
fn volumes_take_turns_when_credits_are_short() {
    let mut world = World::new(4, 1 << 20);
    world.settle();
    let busy = world.handle;
    let other = open_another(&mut world);
    for area in 0..8 {
        world
            .submit(VolumeOp::Read, area * 4096, 4096, &[])
            .unwrap();
        read_another(&mut world, other, area);
    }
    let mut order = Vec::new();
    while world
        .peer
        .next_event(other)
        .is_none_or(|event| matches!(event, VolumeEvent::Opened { .. }))
    {
        world.poll();
        let wire = Rc::clone(&world.map_port.wire);
        let handle = wire.borrow().queue[0].1.handle;
        order.push(handle);
        let reply = MapReply::failed(ErrorCode::Io);
        wire.borrow_mut().answer(0, reply.encode(0));
        assert!(order.len() <= 12, "the other volume starves: {order:?}");
    }
    assert_eq!(world.handle, busy);
}
