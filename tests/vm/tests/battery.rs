//! What a guest does with a disk in its life: file system, trim, zeroes, growth, reboot, hotplug. Both placements.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};

const SIZE: usize = 512 << 20;
const LARGER: usize = 768 << 20;

/// One guest with two queues and two processors: the battery, a file system that grows while it is used, a reset.
fn whole_life(placement: &str) -> Result<()> {
    let node = Node::start(placement)?;
    node.call(&["volume", "create", "disk", "--size", &SIZE.to_string()])?;
    let socket = node.call(&["volume", "attach", "disk", "--queues", "2"])?;
    let disk = Disk::new(socket.trim().as_ref()).queues(2);
    let guest = Guest::builder().processors(2).disk(disk).boot()?;
    let queues = guest.run("ls /sys/block/vda/mq | wc -l")?;
    ensure!(queues == "2", "the guest sees {queues} queues");
    ensure!(
        guest.run("cat /sys/block/vda/queue/write_cache")? == "write back",
        "flushes would not be sent"
    );
    guest.run("battery vda")?;

    guest.run("make_fs /dev/vda && make_files 10 256")?;
    node.call(&["volume", "resize", "disk", &LARGER.to_string()])?;
    guest.run(&format!("await 60 sectors_are vda {}", LARGER / 512))?;
    guest.run("resize2fs /dev/vda >/dev/null 2>&1")?;
    let blocks = guest.run("stat -f -c %b /mnt")?.parse::<usize>()?;
    ensure!(blocks * 4096 > SIZE, "the file system has {blocks} blocks");
    guest.run("verify /mnt/fio 64m && rm /mnt/fio && check_files && sync && no_errors")?;

    guest.reset()?;
    guest.run("recover_fs /dev/vda && mount -t ext4 /dev/vda /mnt && check_files && umount /mnt && no_errors")?;
    Ok(())
}

/// A disk is plugged in and pulled out twice while the guest runs, and holds what was written.
fn hotplug(placement: &str) -> Result<()> {
    let node = Node::start(placement)?;
    let first = node.create("first", 64 << 20)?;
    let second = node.create("second", 128 << 20)?;
    let guest = Guest::builder().disk(Disk::new(&first)).boot()?;
    for round in 0..2 {
        guest.plug("second", &second)?;
        guest.run("await 60 is_disk vdb")?;
        match round {
            0 => guest.run("make_fs /dev/vdb && make_files 5 200")?,
            _ => guest.run("mount -t ext4 /dev/vdb /mnt && check_files")?,
        };
        guest.run("umount /mnt && check_fs /dev/vdb && verify /dev/vda 16m")?;
        guest.unplug("second")?;
        guest.run("await 60 is_gone vdb")?;
    }
    guest.run("no_errors")?;
    Ok(())
}

#[test]
fn a_disk_serves_a_whole_life_fused() -> Result<()> {
    whole_life("fused")
}

#[test]
fn a_disk_serves_a_whole_life_split() -> Result<()> {
    whole_life("split")
}

#[test]
fn a_disk_is_plugged_in_and_out_twice_fused() -> Result<()> {
    hotplug("fused")
}

#[test]
fn a_disk_is_plugged_in_and_out_twice_split() -> Result<()> {
    hotplug("split")
}
