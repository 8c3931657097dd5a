//! Every format, in and out, and what is said on the way.

use crate::harness::content::noise;
use crate::harness::{Node, run};
use crate::images::{MIB, checksum, compare, disk, has_qemu, name, qemu_img, refused, said, write};

#[test]
fn every_format_comes_in_and_goes_out() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let content = disk();
    let raw = write(&node, "raw", &content);
    let sources: [(&str, &str, &[&str]); 8] = [
        ("qcow2", "", &[]),
        ("qcow2", "cluster_size=4k", &[]),
        ("qcow2", "compression_type=zlib", &["-c"]),
        ("qcow2", "compression_type=zstd", &["-c"]),
        ("vmdk", "", &[]),
        ("vmdk", "subformat=streamOptimized", &[]),
        ("vpc", "force_size=on", &[]),
        ("vhdx", "", &[]),
    ];
    for (index, (format, options, flags)) in sources.into_iter().enumerate() {
        let (image, copy) = (format!("{format}-{index}"), node.path("copy"));
        let source = node.path(&image);
        let mut convert = vec!["convert", "-f", "raw", "-O", format];
        convert.extend(flags);
        if !options.is_empty() {
            convert.extend(["-o", options]);
        }
        convert.extend([name(&raw), name(&source)]);
        qemu_img(&convert);
        let output = node.output(&["image", "import", name(&source), &image]);
        assert!(output.status.success(), "{image} {options}: {output:?}");
        let expected = format!(
            "note: {} looks like {format}, and is read as such; --format raw imports it unchanged\n",
            source.display()
        );
        // And no bar: this is no terminal.
        assert_eq!(said(&output), expected);
        node.done(&["image", "export", &image, name(&copy)]);
        assert!(
            std::fs::read(&copy).unwrap() == content,
            "{image} {options}"
        );
    }
    // A fixed VHD has its mark at the end only.
    let fixed = node.path("fixed");
    let options = "subformat=fixed,force_size=on";
    qemu_img(&[
        "convert",
        "-O",
        "vpc",
        "-o",
        options,
        name(&raw),
        name(&fixed),
    ]);
    let imported = node.json(&["image", "import", name(&fixed), "fixed"]);
    assert_eq!(imported["format"], "vpc", "{imported}");
    assert_eq!(imported["size"], content.len(), "{imported}");
    // What looks like an image is one only if nobody says otherwise.
    let inner = node.path("qcow2-0");
    let imported = node.json(&["image", "import", name(&inner), "as-is", "--format", "raw"]);
    assert_eq!(imported["format"], "raw");
    node.done(&["image", "export", "as-is", name(&node.path("copy"))]);
    assert!(std::fs::read(node.path("copy")).unwrap() == std::fs::read(&inner).unwrap());

    let all: [(&str, &[&str]); 7] = [
        ("raw", &[]),
        ("qcow2", &[]),
        ("qcow2", &["--compress"]),
        ("qcow2", &["--compress=zstd"]),
        ("vmdk", &[]),
        ("vpc", &[]),
        ("vhdx", &[]),
    ];
    for (format, options) in all {
        let target = node.path("target");
        let mut arguments = vec![
            "image",
            "export",
            "fixed",
            name(&target),
            "--format",
            format,
        ];
        arguments.extend(options);
        node.done(&arguments);
        compare((&raw, "raw"), (&target, format));
        let len = target.metadata().unwrap().len();
        if format == "qcow2" {
            qemu_img(&["check", "-q", "-f", "qcow2", name(&target)]);
            // 3 MiB of noise; 6 MiB that are a tenth of that, if they are compressed.
            let limit = if options.is_empty() {
                10 * MIB
            } else {
                6 * MIB
            };
            assert!(len < limit as u64, "{options:?}: {len}");
        }
    }
    let listing: Vec<_> = std::fs::read_dir(node.root()).unwrap().collect();
    let left = format!("{listing:?}");
    assert!(!left.contains("archipelago-export"), "{left}");
    assert_eq!(
        node.json(&["volume", "attachments"])["attachments"],
        serde_json::json!([])
    );
}

#[test]
fn object_sizes_odd_lengths_and_wrong_wishes() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let odd = write(&node, "odd", &noise(4, 100_001));
    let output = node.output(&["image", "import", name(&odd), "odd", "--object-size", "64K"]);
    assert!(
        said(&output).contains("100001 bytes are not a multiple of 512: 351 zeros"),
        "{output:?}"
    );
    let info = node.json(&["volume", "info", "odd"]);
    assert_eq!(
        (info["size"].as_u64(), info["object_size"].as_u64()),
        (Some(100_352), Some(65536))
    );
    let again = node.refused(&["image", "import", name(&odd), "odd"], 4);
    assert!(again.contains("the name `odd` is taken"), "{again}");
    let target = node.path("target");
    for (arguments, words) in [
        (
            &["--format", "vmdk", "--compress"][..],
            "vmdk is not compressed",
        ),
        (&["--format", "qcow3"], "invalid value"),
    ] {
        let mut all = vec!["image", "export", "odd", name(&target)];
        all.extend(arguments);
        assert!(node.refused(&all, 2).contains(words), "{words}");
    }
    let output = node.refused(&["image", "export", "odd", "-", "--format", "qcow2"], 2);
    assert!(
        output.contains("not written to the standard output"),
        "{output}"
    );
    let output = node.refused(
        &["image", "export", "odd", "/dev/null", "--format", "qcow2"],
        2,
    );
    assert!(output.contains("which /dev/null is not"), "{output}");
    assert!(!target.exists());

    // Without QEMU's programs raw images come and go, and the others say what is missing.
    let image = node.path("image");
    qemu_img(&["convert", "-O", "qcow2", name(&odd), name(&image)]);
    let without = |arguments: &[&str]| run(node.command(arguments).env("PATH", "/nonexistent"));
    for arguments in [
        &["image", "import", name(&image), "i"][..],
        &["image", "export", "odd", name(&target), "--format", "qcow2"],
    ] {
        let output = without(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let words = said(&output);
        assert!(
            words.contains("is not installed") && words.contains("qemu-utils"),
            "{words}"
        );
    }
    assert!(!target.exists());
    assert!(
        without(&["image", "import", name(&odd), "raw"])
            .status
            .success()
    );
    assert!(
        without(&["image", "export", "raw", name(&target)])
            .status
            .success()
    );
}

#[test]
fn a_checksum_is_that_of_the_file() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let raw = write(&node, "raw", &noise(5, 3 * MIB + 77));
    let image = node.path("image");
    qemu_img(&["convert", "-O", "qcow2", name(&raw), name(&image)]);
    for (index, file) in [&raw, &image].into_iter().enumerate() {
        let right = checksum(file);
        let digits = right.strip_prefix("sha256:").unwrap();
        let wrong = format!("sha256:{}", "0".repeat(64));
        refused(&node, file, &["--checksum", &wrong], 7, &right);
        refused(&node, file, &["--checksum", digits], 2, "is not a checksum");
        let image = format!("i{index}");
        node.done(&["image", "import", name(file), &image, "--checksum", &right]);
    }
}
