//! Images, snapshots and clones as guests see them. Both placements.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::node::Node;
use archipelago_vm_tests::guest::{Disk, Guest};
use archipelago_vm_tests::parts::Parts;

/// A clone of a snapshot that was taken while a guest wrote: its file system is as after a power cut, its files whole.
fn clone_of_a_running_disk(placement: &str) -> Result<()> {
    let node = Node::start(placement)?;
    let socket = node.create("disk", 256 << 20)?;
    let writer = Guest::builder().disk(Disk::new(&socket)).boot()?;
    writer.run("make_fs /dev/vda && make_files 10 300")?;
    writer.run("start_load /mnt/fio 32m && await 60 eval '[ $(in_flight vda) -gt 0 ]'")?;
    node.call(&["volume", "snapshot", "disk", "running"])?;
    node.call(&["volume", "clone", "running", "copy"])?;
    writer.run("rm -r /mnt/files && sync")?;

    let copy = node.attach("copy")?;
    let reader = Guest::builder().disk(Disk::new(&copy)).boot()?;
    reader.run("recover_fs /dev/vda && mount -t ext4 /dev/vda /mnt && check_files")?;
    reader.run("verify /mnt/other 16m && umount /mnt && check_fs /dev/vda && no_errors")?;

    writer
        .run("end_load && [ ! -e /mnt/files ] && umount /mnt && check_fs /dev/vda && no_errors")?;
    Ok(())
}

/// The firmware, the boot loader and the kernel read a clone of an image; what the guest writes stays in the clone.
fn boots_from_a_clone(placement: &str) -> Result<()> {
    let node = Node::start(placement)?;
    let image = Parts::get()?
        .boot_image
        .to_str()
        .context("a path in UTF-8")?;
    node.call(&["image", "import", image, "image"])?;
    node.call(&["volume", "clone", "image", "system"])?;
    let socket = node.attach("system")?;
    let guest = Guest::builder()
        .disk(Disk::new(&socket).bootable())
        .boot()?;
    let root = guest.run("sed -n 's|^\\([^ ]*\\) / ext4.*|\\1|p' /proc/mounts")?;
    ensure!(root == "/dev/vda1", "the root file system is on `{root}`");
    guest.run("make_files 3 100 && sync && no_errors")?;
    guest.reset()?;
    guest.run("check_files && no_errors")?;
    drop(guest);
    node.call(&["volume", "clone", "image", "another"])?;
    let socket = node.attach("another")?;
    let guest = Guest::builder()
        .disk(Disk::new(&socket).bootable())
        .boot()?;
    guest.run("[ ! -e /mnt/files ] && no_errors")?;
    Ok(())
}

#[test]
fn a_clone_of_a_running_disk_is_consistent_fused() -> Result<()> {
    clone_of_a_running_disk("fused")
}

#[test]
fn a_clone_of_a_running_disk_is_consistent_split() -> Result<()> {
    clone_of_a_running_disk("split")
}

#[test]
fn a_guest_boots_from_a_clone_of_an_image_fused() -> Result<()> {
    boots_from_a_clone("fused")
}

#[test]
fn a_guest_boots_from_a_clone_of_an_image_split() -> Result<()> {
    boots_from_a_clone("split")
}
