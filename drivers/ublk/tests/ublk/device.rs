//! Requests, waits, ends and recoveries of a device.

use archipelago_endpoint::Detach;
use archipelago_protocol::ErrorCode;
use archipelago_protocol::volume::{OnFull, VolumeOp};
use archipelago_runtime::ublk::abi::operation::{
    DISCARD, FLUSH, FUA, NO_UNMAP, READ, WRITE, WRITE_ZEROES,
};
use archipelago_ublk::layout::{BUFFER_LEN, DEPTH};

use crate::host::Host;
use crate::kernel::KernelRequest;

fn write(start_sector: u64, byte: u8) -> KernelRequest {
    KernelRequest::with(WRITE, start_sector, &[byte; 4096])
}

#[test]
fn what_is_written_is_read_and_every_operation_reaches_the_volume() {
    let mut host = Host::new();
    assert_eq!(host.volumes.state().opens, 0, "attaching opens nothing");
    assert_eq!(host.ask(write(8, 0x5a)).result, 4096);
    let read = host.ask(KernelRequest::new(READ, 9, 3));
    assert_eq!((read.result, read.buffer), (1536, vec![0x5a; 1536]));
    assert_eq!(host.ask(KernelRequest::new(FLUSH, 0, 0)).result, 0);
    assert_eq!(host.ask(KernelRequest::new(DISCARD, 8, 1)).result, 0);
    assert_eq!(
        host.ask(KernelRequest::new(WRITE_ZEROES | NO_UNMAP, 9, 1))
            .result,
        0
    );
    let read = host.ask(KernelRequest::new(READ, 8, 3));
    assert_eq!(read.buffer[..1024], [0; 1024]);
    assert_eq!(read.buffer[1024..], [0x5a; 512]);
    let longest = vec![0x77; BUFFER_LEN as usize];
    assert_eq!(
        host.ask(KernelRequest::with(WRITE, 64, &longest)).result,
        131_072
    );
    let ops: Vec<VolumeOp> = host
        .volumes
        .state()
        .journal
        .iter()
        .map(|it| it.op)
        .collect();
    let zeroes = VolumeOp::WriteZeroes {
        unmap: false,
        durable: false,
    };
    assert_eq!(ops[2..5], [VolumeOp::Flush, VolumeOp::Discard, zeroes]);
    let status = host.status();
    assert_eq!((status.reads, status.writes, status.errors), (2, 2, 0));
    assert_eq!(
        (status.flushes, status.discards, status.write_zeroes),
        (1, 1, 1)
    );
}

#[test]
fn a_write_with_fua_is_durable_before_it_is_answered_and_one_without_need_not_be() {
    let mut host = Host::new();
    host.ask(KernelRequest::with(WRITE | FUA, 0, &[1; 512]));
    host.ask(KernelRequest::with(WRITE, 0, &[2; 512]));
    let ops: Vec<VolumeOp> = host
        .volumes
        .state()
        .journal
        .iter()
        .map(|it| it.op)
        .collect();
    let of = |durable| VolumeOp::Write { durable };
    assert_eq!(ops, [of(true), of(false)]);
    assert_eq!(host.status().durable_writes, 1);
}

#[test]
fn what_makes_no_sense_and_what_the_volume_refuses_is_an_error_of_that_request_alone() {
    let mut host = Host::new();
    let errno = |code: nix::errno::Errno| -(code as i32);
    let unsupported = host.ask(KernelRequest::new(17, 0, 1));
    assert_eq!(unsupported.result, errno(nix::errno::Errno::EOPNOTSUPP));
    let too_long = host.ask(KernelRequest::new(READ, 0, BUFFER_LEN / 512 + 1));
    assert_eq!(too_long.result, errno(nix::errno::Errno::EINVAL));
    host.volumes.state().fail = Some(ErrorCode::NoSpace);
    assert_eq!(
        host.ask(write(0, 1)).result,
        errno(nix::errno::Errno::ENOSPC)
    );
    host.volumes.state().fail = None;
    assert_eq!(host.ask(write(0, 1)).result, 4096);
    assert_eq!(host.status().errors, 3);
}

#[test]
fn what_the_volume_has_no_place_for_waits_and_keeps_its_order() {
    let mut host = Host::new();
    host.ask(write(0, 0));
    host.volumes.state().credits = Some(0);
    for number in 1..=5 {
        host.kernel
            .device
            .borrow_mut()
            .ask(write(u64::from(number) * 8, number));
    }
    host.settle();
    assert_eq!(host.kernel.device.borrow().answered.len(), 1);
    host.volumes.state().credits = None;
    host.settle();
    let device = host.kernel.device.borrow();
    let starts: Vec<u64> = device
        .answered
        .iter()
        .map(|it| it.request.start_sector)
        .collect();
    assert_eq!(starts, [0, 8, 16, 24, 32, 40]);
}

#[test]
fn more_requests_than_the_queue_holds_are_all_served() {
    let mut host = Host::new();
    host.volumes.state().hold = true;
    let count = u64::from(DEPTH) + 40;
    for number in 0..count {
        host.kernel.device.borrow_mut().ask(write(number * 8, 9));
    }
    host.settle();
    assert_eq!(host.volumes.state().held.len(), usize::from(DEPTH));
    assert_eq!(host.status().in_flight, u64::from(DEPTH));
    host.volumes.state().hold = false;
    // The last first.
    for index in (0..usize::from(DEPTH)).rev() {
        host.volumes.state().release(index);
    }
    host.settle();
    let device = host.kernel.device.borrow();
    assert_eq!(device.answered.len() as u64, count);
    assert_eq!(
        device.answered[0].request.start_sector,
        (u64::from(DEPTH) - 1) * 8
    );
}

#[test]
fn an_open_that_fails_fails_requests_and_the_device_goes_on() {
    let mut host = Host::new();
    host.volumes.state().fail_open = Some(ErrorCode::Damaged);
    let answered = host.ask(write(0, 1));
    assert_eq!(answered.result, -(nix::errno::Errno::EIO as i32));
    assert_eq!(host.status().open_failures, 1);
}

#[test]
fn the_end_of_a_server_answers_what_is_done_and_leaves_the_rest_to_the_next_one() {
    let mut host = Host::new();
    host.ask(write(0, 1));
    host.volumes.state().hold = true;
    for number in 1..=3 {
        host.kernel
            .device
            .borrow_mut()
            .ask(write(u64::from(number) * 8, number));
    }
    host.settle();
    assert_eq!(host.volumes.state().held.len(), 3);
    let ending = host.detach(Detach::Force);
    // What waits for room is given back once the end has begun.
    while host.volumes.state().policies.last() != Some(&OnFull::Report) {
        host.settle();
        std::thread::yield_now();
    }
    host.kernel.device.borrow_mut().ask(write(80, 10));
    host.settle();
    // One is done, one fails, as calls do that a dying process makes, and one is done last.
    host.volumes.state().release(0);
    host.volumes.state().fail = Some(ErrorCode::Io);
    host.volumes.state().release(0);
    host.volumes.state().fail = None;
    host.volumes.state().release(0);
    host.volumes.state().hold = false;
    let (kernel, volumes) = (host.kernel.clone(), host.volumes.clone());
    host.finish(ending);
    let results: Vec<(u64, i32)> = {
        let device = kernel.device.borrow();
        let answered = device.answered.iter();
        answered
            .map(|it| (it.request.start_sector, it.result))
            .collect()
    };
    let of_the_three: Vec<&(u64, i32)> = results
        .iter()
        .filter(|(start, _)| (8..=24).contains(start))
        .collect();
    assert_eq!(of_the_three, [&(8, 4096), &(24, 4096)], "never an error");
    let left = kernel.device.borrow().unanswered();
    assert!(left.contains(&write(16, 2)) && left.contains(&write(80, 10)));
    // The next server gets them, and nothing twice.
    kernel.device.borrow_mut().recover();
    let mut next = Host::serve(kernel.clone(), volumes);
    next.settle();
    assert_eq!(kernel.device.borrow().unanswered(), []);
    let device = kernel.device.borrow();
    assert!(device.answered.iter().all(|it| it.result == 4096));
    drop(device);
    let read = next.ask(KernelRequest::new(READ, 16, 8));
    assert_eq!(read.buffer, vec![2; 4096]);
}

#[test]
fn writes_that_wait_for_room_at_the_end_wait_for_the_next_server() {
    let mut host = Host::new();
    host.ask(write(0, 1));
    host.volumes.state().full = true;
    host.kernel.device.borrow_mut().ask(write(8, 2));
    host.settle();
    assert_eq!(host.volumes.state().parked.len(), 1);
    let ending = host.detach(Detach::Force);
    let (kernel, volumes) = (host.kernel.clone(), host.volumes.clone());
    host.finish(ending);
    assert_eq!(kernel.device.borrow().unanswered(), [write(8, 2)]);
    volumes.state().full = false;
    kernel.device.borrow_mut().recover();
    let mut next = Host::serve(kernel.clone(), volumes);
    next.settle();
    assert_eq!(kernel.device.borrow().answered.last().unwrap().result, 4096);
}

#[test]
fn a_detach_waits_for_the_end_of_the_device_and_gives_everything_back() {
    let mut host = Host::new();
    host.ask(write(0, 1));
    assert_eq!(host.problem(), None);
    host.kernel.device.borrow_mut().stop();
    host.settle();
    assert!(host.problem().unwrap().contains("/dev/ublkb0"));
    let ending = host.detach(Detach::IfUnused);
    host.finish(ending);
    // Before the end of the device, the kernel has commands that name the buffers.
    let mut early = Host::new();
    let ending = early.detach(Detach::IfUnused);
    for _ in 0..1000 {
        early.settle();
        std::thread::yield_now();
    }
    assert!(!early.is_finished());
    early.kernel.device.borrow_mut().stop();
    early.finish(ending);
}
