//! Images that are cut off or made up.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::harness::content::noise;
use crate::harness::{Node, tool};
use crate::images::{MIB, create, disk, entries, has_qemu, name, qemu_img, refused, said, write};

#[test]
fn what_is_cut_off_or_made_up_is_refused_and_nothing_is_left() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let mut content = disk();
    content.truncate(12 * MIB);
    let raw = write(&node, "raw", &content);
    for (format, flags) in [
        ("qcow2", &[][..]),
        ("qcow2", &["-c"]),
        ("vmdk", &[]),
        ("vpc", &["-o", "force_size=on"]),
        ("vhdx", &[]),
    ] {
        let image = node.path("image");
        let mut convert = vec!["convert", "-O", format];
        convert.extend(flags);
        convert.extend([name(&raw), name(&image)]);
        qemu_img(&convert);
        let len = image.metadata().unwrap().len();
        for cut in [len - 512, len - MIB as u64, len / 2, 70_000, 600, 20] {
            let file = OpenOptions::new().write(true).open(&image).unwrap();
            file.set_len(cut).unwrap();
            let before = entries(&node);
            let output = node.output(&["image", "import", name(&image), "cut"]);
            let words = said(&output);
            if output.status.success() {
                // Nothing of the disk was cut off.
                assert!(cut >= len - MIB as u64, "{format} {flags:?} {cut} of {len}");
                let copy = node.path("copy");
                node.done(&["image", "export", "cut", name(&copy)]);
                assert!(
                    std::fs::read(&copy).unwrap() == content,
                    "{format} {flags:?} {cut}"
                );
                node.done(&["volume", "remove", "cut"]);
                continue;
            }
            assert_eq!(
                output.status.code(),
                Some(7),
                "{format} {flags:?} {cut} of {len}: {words}"
            );
            assert!(words.contains(name(&image)), "{words}");
            assert_eq!(entries(&node), before);
        }
    }
    // Its clusters have places where nothing was written: QEMU takes what was cut off for zeros.
    let image = node.path("image");
    create("qcow2", &["-o", "preallocation=metadata"], &image, "64M");
    tool(Command::new("qemu-io").args(["-c", "write -P 9 48M 1M", name(&image)]));
    let whole = image.metadata().unwrap().len();
    node.done(&["image", "import", name(&image), "sparse"]);
    node.done(&["volume", "remove", "sparse"]);
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(whole / 2).unwrap();
    refused(&node, &image, &[], 7, "is truncated");
    create("qcow2", &[], &image, "1M");
    let file = OpenOptions::new().write(true).open(&image).unwrap();
    // 2^60 bytes: more than a volume may have, if QEMU takes it at all.
    file.write_all_at(&(1_u64 << 60).to_be_bytes(), 24).unwrap();
    let output = node.output(&["image", "import", name(&image), "huge"]);
    assert!(matches!(output.status.code(), Some(2 | 7)), "{output:?}");
    file.write_all_at(&0_u64.to_be_bytes(), 24).unwrap();
    refused(&node, &image, &[], 2, "holds a disk of 0 bytes");
    refused(
        &node,
        &write(&node, "noise", &noise(6, MIB)),
        &["--format", "qcow2"],
        7,
        "noise",
    );
    refused(&node, &node.path("absent"), &[], 3, "absent");
    assert_eq!(entries(&node), 0);
}
