//! Guests whose memory the device cannot see: they hang, so the endpoint has to say why.

use archipelago_vhost_user::Problem;
use xseg::Region;

use crate::front_end::{FrontEnd, MEMORY, WRITE};
use crate::host::{Host, eventually};
use crate::log::{collect, lines};

fn problem(host: &Host) -> Option<Problem> {
    host.endpoint.as_ref().unwrap().problem()
}

fn warnings(host: &Host) -> usize {
    lines(&host.socket, "share=on").len()
}

/// QEMU with plain `-m`: no memory slot, and rings all the same.
#[test]
fn rings_in_no_memory_slot_are_a_problem_until_there_is_one() {
    collect();
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    guest.start_ring(0, None);
    guest.submit(0, 0, 0, 512, WRITE);
    eventually("the problem", || problem(&host) == Some(Problem::NoMemory));
    eventually("the warning", || warnings(&host) == 1);
    guest.add_memory();
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
    eventually("the end of the problem", || problem(&host).is_none());
    assert_eq!(warnings(&host), 1);
}

/// `share=off`: what the guest writes stays in its own copies of the pages.
#[test]
fn kicks_of_a_guest_whose_memory_is_private_are_a_problem_until_it_is_seen() {
    collect();
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.start();
    let copies = Region::anonymous(usize::try_from(MEMORY).unwrap()).unwrap();
    let shared = std::mem::replace(&mut guest.memory, copies);
    guest.submit(0, 0, 0, 512, WRITE);
    eventually("the problem", || {
        problem(&host) == Some(Problem::NoRequests)
    });
    eventually("the warning", || warnings(&host) == 1);
    guest.memory = shared;
    guest.avail = 0;
    guest.submit(0, 0, 0, 512, WRITE);
    assert_eq!((guest.used(), guest.status(0)), ((0, 513), 0));
    eventually("the end of the problem", || problem(&host).is_none());
    assert_eq!(warnings(&host), 1);
}

#[test]
fn a_problem_ends_with_its_connection() {
    let host = Host::new();
    let mut guest = FrontEnd::connect(&host.socket);
    guest.negotiate();
    guest.start_ring(0, None);
    eventually("the problem", || problem(&host).is_some());
    drop(guest);
    eventually("the end of the problem", || problem(&host).is_none());
}
