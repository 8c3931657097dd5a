//! The device through `virtio-driver`.

use std::os::fd::AsRawFd;

use virtio_driver::{
    VhostUser, VirtioBlkQueue, VirtioBlkReqBuf, VirtioBlkTransport, VirtioFeatureFlags,
};
use xseg::Region;

use crate::host::{Host, eventually};

fn finish(
    queue: &mut VirtioBlkQueue<'static, usize>,
    transport: &VirtioBlkTransport,
    count: usize,
) -> Vec<(usize, i32)> {
    if queue.avail_notif_needed() {
        transport.get_submission_notifier(0).notify().unwrap();
    }
    let mut done = Vec::new();
    eventually("completions", || {
        done.extend(queue.completions().map(|done| (done.context, done.ret)));
        done.len() >= count
    });
    done
}

fn reads_back_what_was_written(features: VirtioFeatureFlags) {
    let host = Host::new();
    let block = 1 << 9 | 1 << 6 | 1 << 11 | 1 << 12 | 1 << 13 | 1 << 14;
    let front_end: VhostUser<_, VirtioBlkReqBuf> =
        VhostUser::new(&host.socket, features.bits() | block).unwrap();
    let mut transport: Box<VirtioBlkTransport> = Box::new(front_end);
    let mut queues = VirtioBlkQueue::setup_queues(transport.as_mut(), 2, 128).unwrap();
    let queue = &mut queues[0];
    let memory = Region::anonymous(1 << 20).unwrap();
    let address = memory.span(0, 1 << 20).unwrap().address();
    let fd = memory.descriptor().0.as_raw_fd();
    transport
        .map_mem_region(address.addr(), 1 << 20, fd, 0)
        .unwrap();
    let config = transport.get_config().unwrap();
    assert_eq!(config.capacity.to_native() * 512, 16 << 20);
    assert_eq!((config.writeback, config.num_queues.to_native()), (1, 2));

    memory.fill(0, 65_536, 0xa5).unwrap();
    for round in 0..40u64 {
        for slot in 0..20 {
            let offset = (round * 20 + slot as u64) * 4096;
            // SAFETY: the memory outlives the requests, and nobody has a reference into it.
            unsafe { queue.write_raw(offset, address, 4096, slot) }.unwrap();
        }
        let done = finish(queue, transport.as_ref(), 20);
        assert!(done.iter().all(|(_, result)| *result == 0));
    }
    // SAFETY: as above; the second half of the memory.
    unsafe { queue.read_raw(4096, address.wrapping_add(524_288), 262_144, 1) }.unwrap();
    queue.flush(2).unwrap();
    let done = finish(queue, transport.as_ref(), 2);
    assert!(done.iter().all(|(_, result)| *result == 0));
    let mut bytes = vec![0; 262_144];
    memory.read(524_288, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xa5));

    queue.discard(0, 8192, 3).unwrap();
    queue.write_zeroes(16_384, 4096, true, 4).unwrap();
    assert!(
        finish(queue, transport.as_ref(), 2)
            .iter()
            .all(|done| done.1 == 0)
    );
    assert!(
        host.volumes.state().data[..8192]
            .iter()
            .all(|byte| *byte == 0)
    );
    assert_eq!(host.volumes.state().data[8192], 0xa5);
    // SAFETY: as above. One sector past the end.
    unsafe { queue.read_raw(16 << 20, address, 512, 5) }.unwrap();
    assert!(finish(queue, transport.as_ref(), 1)[0].1 < 0);
    let status = host.status();
    assert_eq!((status.writes, status.reads, status.flushes), (800, 2, 1));
    assert_eq!(
        (status.discards, status.write_zeroes, status.errors),
        (1, 1, 1)
    );
    assert!(status.calls <= 800 && status.malformed == 0);
    drop(queues);
    drop(transport);
    eventually("the volume is closed", || !host.volumes.state().open);
    assert_eq!(host.volumes.state().regions(), 0);
}

#[test]
fn a_driver_reads_back_what_it_wrote() {
    reads_back_what_was_written(
        VirtioFeatureFlags::VERSION_1
            | VirtioFeatureFlags::RING_EVENT_IDX
            | VirtioFeatureFlags::RING_INDIRECT_DESC,
    );
}

#[test]
fn a_driver_without_ring_features_reads_back_what_it_wrote() {
    reads_back_what_was_written(VirtioFeatureFlags::VERSION_1);
}
