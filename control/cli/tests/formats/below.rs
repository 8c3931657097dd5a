//! Images whose data lies in other files: below them, or beside them.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use crate::harness::content::noise;
use crate::harness::{Node, tool};
use crate::images::{compare, create, disk, has_qemu, name, qemu_img, refused, write};

/// Makes `image` above `backing`, which is read for its size.
fn overlay((backing, format): (&str, &str), image: &Path) {
    let above = ["create", "-q", "-f", "qcow2", "-F", format, "-b", backing];
    qemu_img(&[&above[..], &[name(image)]].concat());
}

/// Makes `image` of `size` above `backing`, at which nobody looks.
fn blind_overlay((backing, format): (&str, &str), image: &Path, size: &str) {
    create("qcow2", &["-u", "-F", format, "-b", backing], image, size);
}

#[test]
fn files_below_an_image_are_read_only_when_asked_for() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    write(&node, "base", &disk());
    std::fs::create_dir(node.path("dir")).unwrap();
    let (middle, top) = (node.path("dir/middle"), node.path("top"));
    overlay(("../base", "raw"), &middle);
    overlay(("dir/middle", "qcow2"), &top);
    tool(Command::new("qemu-io").args([
        "-c",
        "write -P 9 20M 1M",
        "-c",
        "write -z 1M 64k",
        name(&top),
    ]));
    refused(&node, &top, &[], 2, "has a backing file, `dir/middle`");
    node.done(&["image", "import", name(&top), "whole", "--backing"]);
    let copy = node.path("copy");
    node.done(&["image", "export", "whole", name(&copy)]);
    compare((&top, "qcow2"), (&copy, "raw"));
}

#[test]
fn a_file_below_that_ends_within_a_sector_is_whole_and_one_that_is_cut_off_is_not() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let odd = write(&node, "odd", &noise(9, 1_000_100));
    let above = node.path("above-odd");
    overlay((name(&odd), "raw"), &above);
    node.done(&["image", "import", name(&above), "odd", "--backing"]);
    let copy = node.path("copy");
    node.done(&["image", "export", "odd", name(&copy)]);
    let mut expected = std::fs::read(&odd).unwrap();
    expected.resize(expected.len().next_multiple_of(512), 0);
    assert!(std::fs::read(&copy).unwrap() == expected);

    let base = write(&node, "base", &disk());
    let short = node.path("short");
    qemu_img(&["convert", "-O", "qcow2", name(&base), name(&short)]);
    let file = OpenOptions::new().write(true).open(&short).unwrap();
    file.set_len(short.metadata().unwrap().len() - 65536)
        .unwrap();
    let above = node.path("above");
    let size = base.metadata().unwrap().len().to_string();
    blind_overlay((name(&short), "qcow2"), &above, &size);
    refused(&node, &above, &["--backing"], 7, "is truncated");
}

#[test]
fn names_below_that_are_no_files_and_formats_that_nobody_has_written_down_are_refused() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let secret = write(&node, "secret", b"not to be read");
    let evil = node.path("evil");
    for backing in [
        name(&secret),
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "nbd://127.0.0.1/x",
    ] {
        blind_overlay((backing, "raw"), &evil, "1M");
        refused(&node, &evil, &[], 2, "has a backing file");
        if backing != name(&secret) {
            refused(&node, &evil, &["--backing"], 2, "is no file");
        }
    }
    blind_overlay(("missing", "raw"), &evil, "1M");
    refused(&node, &evil, &["--backing"], 3, "missing");
    // Its extension for the format made another: nobody says what the file below is.
    let mut header = vec![0; 4096];
    let mut file = OpenOptions::new();
    let file = file.read(true).write(true).open(&evil).unwrap();
    file.read_exact_at(&mut header, 0).unwrap();
    let mut fours = header.windows(4);
    let at = fours.position(|four| four == [0xe2, 0x79, 0x2a, 0xca]);
    file.write_all_at(&[1, 2, 3, 4], at.unwrap() as u64)
        .unwrap();
    let words = "has a format that the image does not name";
    refused(&node, &evil, &["--backing"], 2, words);
}

#[test]
fn data_in_files_beside_an_image_is_refused() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let image = node.path("image");
    let option = format!("data_file={}", node.path("data").display());
    create("qcow2", &["-o", &option], &image, "1M");
    for options in [&[][..], &["--backing"]] {
        refused(&node, &image, options, 1, "its data lies in another file");
    }
    // QEMU finds the name of a VMDK's parent where nobody would look for a key.
    let secret = write(&node, "secret", b"not to be read");
    let parent = node.path("parent.vmdk");
    create("vmdk", &[], &parent, "1M");
    let file = OpenOptions::new().write(true).open(&parent).unwrap();
    let hint = format!("#parentFileNameHint=\"{}\"\n\0", secret.display());
    file.write_all_at(hint.as_bytes(), 512 + 9000).unwrap();
    refused(&node, &parent, &[], 1, "the VMDK of a snapshot");
    // A VHD of changes only: QEMU takes it for a whole disk.
    let changes = node.path("changes.vhd");
    create("vpc", &[], &changes, "1M");
    let file = OpenOptions::new().write(true).open(&changes).unwrap();
    file.write_all_at(&4_u32.to_be_bytes(), 60).unwrap();
    refused(&node, &changes, &[], 1, "a differencing disk");
    let flat = node.path("flat.vmdk");
    create("vmdk", &["-o", "subformat=monolithicFlat"], &flat, "1M");
    refused(&node, &flat, &[], 1, "a VMDK of several files");
}
