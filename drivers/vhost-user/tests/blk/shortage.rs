//! A volume that cannot be opened for want of space: its guest waits or gets errors as the policy says, and is served as soon
//! as there is some.

use std::time::{Duration, Instant};

use archipelago_doubles::memory_volumes::MemoryVolumes;
use archipelago_protocol::{ErrorCode, OnFull};

use crate::front_end::{FrontEnd, WRITE};
use crate::host::{Host, SIZE, eventually};

fn without_room(on_full: OnFull) -> (Host, FrontEnd) {
    let volumes = MemoryVolumes::new(SIZE);
    volumes.state().fail_open = Some(ErrorCode::NoSpace);
    let host = Host::with(volumes, |config| config.volume.on_full = on_full);
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    (host, guest)
}

/// A read: its status.
fn read(guest: &mut FrontEnd) -> u8 {
    guest.submit(0, 0, 0, 512, WRITE);
    guest.used();
    guest.status(0)
}

#[test]
fn a_guest_whose_volume_reports_gets_errors_until_there_is_room() {
    let (host, mut guest) = without_room(OnFull::Report);
    for _ in 0..3 {
        assert_eq!(read(&mut guest), 1);
    }
    eventually("another open", || host.volumes.state().opens >= 3);
    assert_eq!(read(&mut guest), 1);
    let status = host.status();
    assert_eq!((status.errors, status.errors_no_space), (4, 4));
    host.volumes.state().fail_open = None;
    eventually("the open", || host.volumes.state().open);
    assert_eq!(read(&mut guest), 0);
    let policies = host.volumes.state().policies.clone();
    assert!(policies.iter().all(|policy| *policy == OnFull::Report));
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "the limit is in the device's time"
)]
fn a_guest_whose_volume_waits_for_a_second_waits_that_long_and_once() {
    let limit = Duration::from_secs(1);
    let waits = OnFull::Wait { limit: Some(limit) };
    let begun = Instant::now();
    let (host, mut guest) = without_room(waits);
    assert_eq!(read(&mut guest), 1);
    assert!(begun.elapsed() >= limit);
    assert!(host.volumes.state().opens >= 2, "asked again meanwhile");
    let over = Instant::now();
    for _ in 0..3 {
        assert_eq!(read(&mut guest), 1);
    }
    assert!(over.elapsed() < limit / 2);
    // From then on the volume peer does not wait either, until the volume is open.
    let opens = host.volumes.state().opens;
    eventually("another open", || host.volumes.state().opens > opens);
    assert_eq!(host.volumes.state().policies.last(), Some(&OnFull::Report));
    host.volumes.state().fail_open = None;
    eventually("the open", || {
        host.volumes.state().policies.last() == Some(&waits)
    });
    assert_eq!(read(&mut guest), 0);
}
