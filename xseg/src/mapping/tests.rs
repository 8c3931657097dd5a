use std::sync::atomic::Ordering;

use super::*;
use crate::region::Region;
use crate::ring::{OwnWords, Words};

#[test]
fn a_peer_cannot_write_resize_or_remap_control_memory() {
    let own = OwnHalf::new(8192).unwrap();
    own.store(3, 77, Ordering::Release);
    let copy = own.descriptor().try_clone().unwrap();
    let peer = PeerHalf::new(copy, 8192).unwrap();
    assert_eq!(peer.load(3, Ordering::Acquire), 77);
    let fd = own.descriptor().try_clone().unwrap();
    let refused = Mapping::from_fd(fd, 0, 8192).unwrap_err();
    assert_eq!(
        refused.raw_os_error(),
        Some(libc::EPERM),
        "no second writable mapping"
    );
    assert!(nix::unistd::ftruncate(own.descriptor(), 0).is_err());
    assert!(nix::unistd::write(own.descriptor(), b"x").is_err());
    // SAFETY: changes the protection of a mapping that `peer` owns; it is expected to fail.
    let result = unsafe {
        libc::mprotect(
            peer_address(&peer),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
        )
    };
    assert_eq!(
        (result, io::Error::last_os_error().raw_os_error()),
        (-1, Some(libc::EACCES))
    );
}

fn peer_address(peer: &PeerHalf) -> *mut libc::c_void {
    peer.mapping().address(0).cast()
}

#[test]
fn memory_without_the_seals_or_of_another_size_is_refused() {
    let unsealed = || memfd(4096).unwrap();
    assert!(PeerHalf::new(unsealed(), 4096).is_err());
    assert!(Mapping::arena_of_peer(unsealed(), 4096).is_err());
    let partly = unsealed();
    add_seals(&partly, SIZE_SEALS).unwrap();
    assert!(
        PeerHalf::new(partly.try_clone().unwrap(), 4096).is_err(),
        "writable by its receiver"
    );
    assert!(
        Mapping::arena_of_peer(partly.try_clone().unwrap(), 8192).is_err(),
        "shorter than announced"
    );
    assert!(Mapping::arena_of_peer(partly, 4096).is_ok());
    assert!(
        PeerHalf::new(tempfile::tempfile().unwrap().into(), 4096).is_err(),
        "no memfd at all"
    );
}

#[test]
fn a_truncated_file_reads_as_zeros_and_is_marked() {
    guard_against_truncation().unwrap();
    let file = tempfile::tempfile().unwrap();
    file.set_len(16384).unwrap();
    let damaged = Region::from_fd(file.try_clone().unwrap().into(), 0, 16384).unwrap();
    let other = Region::from_fd(file.try_clone().unwrap().into(), 0, 4096).unwrap();
    damaged.fill(0, 16384, 0xaa).unwrap();
    file.set_len(4096).unwrap();
    assert!(!damaged.is_damaged());
    let mut page = [0xff; 4096];
    damaged.read(8000, &mut page).unwrap();
    assert!(page.iter().all(|byte| *byte == 0));
    assert!(damaged.is_damaged() && !other.is_damaged());
    damaged.write(12288, b"into the void").unwrap();
    assert_eq!(damaged.load_u64(4096, Ordering::Relaxed).unwrap(), 0);
    let mut kept = [0; 4];
    damaged.read(0, &mut kept).unwrap();
    assert_eq!(
        kept, [0xaa; 4],
        "what is left of the file is still the file"
    );
    drop(damaged);
    let fresh = tempfile::tempfile().unwrap();
    fresh.set_len(16384).unwrap();
    assert!(
        !Region::from_fd(fresh.into(), 0, 16384)
            .unwrap()
            .is_damaged(),
        "a place in the table used again"
    );
}
