//! `kill -9` of our processes under a guest's verified I/O: the guest waits and never sees an error. Both placements.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "how much load each kill met")]

use anyhow::{Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};

/// A file system with files and sums in front, verified load on the raw end behind it.
const SIZE: usize = 256 << 20;
const LOAD: &str = "start_load /dev/vda 32m --offset=192m";

fn survives(placement: &str, victims: &[&str]) -> Result<()> {
    let node = Node::start(placement)?;
    let socket = node.create("disk", SIZE)?;
    let guest = Guest::builder().disk(Disk::new(&socket)).boot()?;
    guest
        .run("mkfs.ext4 -q -F /dev/vda 128M && mount -t ext4 /dev/vda /mnt && make_files 10 200")?;
    guest.run(LOAD)?;
    let mut met = 0;
    for victim in victims {
        guest.run("await 60 eval '[ $(in_flight vda) -gt 0 ]'")?;
        let pid = match *victim {
            "daemon" => node.daemon()?,
            role => node.process_of(role)?,
        };
        Node::kill(pid)?;
        if *victim == "daemon" {
            // Its peers die with it, so what is in flight now waits for the next one.
            let waiting = guest.run("usleep 300000; in_flight vda")?;
            met += usize::from(waiting != "0");
            println!("{victim} killed with {waiting} requests in flight");
            node.call(&["node", "start"])?;
        }
        // Served again: a write by the file system comes back from the medium, and the load makes progress.
        guest.run("echo alive >/mnt/alive && sync && no_errors")?;
        let passes = guest.run("load_passes")?;
        guest.run(&format!(
            "await 200 eval '[ $(load_passes) -gt {passes} ] || [ -e /tmp/load.result ]'"
        ))?;
    }
    guest.run("end_load && check_files && umount /mnt && check_fs /dev/vda && no_errors")?;
    ensure!(met > 0, "no kill met a request in flight");
    Ok(())
}

#[test]
fn a_guest_outlives_the_daemon_fused() -> Result<()> {
    survives("fused", &["daemon", "endpoint", "daemon"])
}

#[test]
fn a_guest_outlives_the_daemon_and_each_peer_split() -> Result<()> {
    survives("split", &["daemon", "endpoint", "mapper", "blocker"])
}
