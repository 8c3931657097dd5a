//! Images: what they hold, how they are made, and what an import leaves that refuses one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::harness::content::{file, noise, repeated_noise};
use crate::harness::{Node, has_programs, run, tool};

pub(crate) const MIB: usize = 1 << 20;

/// Whether QEMU's programs are installed; says so if not.
pub(crate) fn has_qemu() -> bool {
    has_programs(&["qemu-img", "qemu-nbd", "qemu-io"])
}

/// Data, a hole, data that can be compressed, a hole, and an odd end.
pub(crate) fn disk() -> Vec<u8> {
    let mut content = noise(1, 3 * MIB);
    content.resize(9 * MIB + 4096, 0);
    content.extend(repeated_noise(2, 6 * MIB, 64));
    content.resize(40 * MIB - 512, 0);
    content.extend(noise(3, 512));
    content
}

pub(crate) fn qemu_img(arguments: &[&str]) {
    tool(Command::new("qemu-img").args(arguments));
}

/// Makes an image of `size`, with further options.
pub(crate) fn create(format: &str, options: &[&str], image: &Path, size: &str) {
    let create = ["create", "-q", "-f", format];
    qemu_img(&[&create[..], options, &[name(image), size]].concat());
}

/// Expects two images to hold the same.
pub(crate) fn compare((a, a_format): (&Path, &str), (b, b_format): (&Path, &str)) {
    let formats = ["compare", "-f", a_format, "-F", b_format];
    qemu_img(&[&formats[..], &[name(a), name(b)]].concat());
}

pub(crate) fn write(node: &Node, name: &str, content: &[u8]) -> PathBuf {
    file(node, name, content).into()
}

/// The checksum of a file, as the command takes it.
pub(crate) fn checksum(path: &Path) -> String {
    let output = run(Command::new("sha256sum").arg(path));
    let output = String::from_utf8(output.stdout).unwrap();
    format!("sha256:{}", output.split_whitespace().next().unwrap())
}

pub(crate) fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How many things the pool holds, hidden ones too.
pub(crate) fn entries(node: &Node) -> u64 {
    // Without a process of its own: some callers are in a hurry.
    let pool: Value = node.client().get("/v1/pools/default").unwrap();
    pool["entries"].as_u64().unwrap()
}

/// Imports `source`, which must be refused with this code and these words, leaving nothing.
pub(crate) fn refused(node: &Node, source: &Path, options: &[&str], code: i32, words: &str) {
    let before = entries(node);
    let import = ["image", "import", name(source), "refused"];
    let said = node.refused(&[&import[..], options].concat(), code);
    assert!(said.contains(words), "{words}: {said}");
    assert_eq!(entries(node), before, "{said}");
}
