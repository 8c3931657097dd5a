//! NBD clients that people have, as the tests run them.

#![allow(
    dead_code,
    reason = "each test program is built with the whole of it and uses a part"
)]

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Node, run_within, skip};

/// How long a client may take: some of these copies are written with a sync, on whatever disk there is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Whether the clients are installed; says so if not.
pub(crate) fn has_clients() -> bool {
    let missing = ["qemu-img", "qemu-io", "nbdcopy", "nbdinfo"]
        .into_iter()
        .find(|name| {
            let mut command = Command::new(name);
            command.arg("--version").stdout(Stdio::null());
            command.status().is_err()
        });
    if let Some(name) = missing {
        skip(&format!("{name} is not installed"));
    }
    missing.is_none()
}

/// Runs a client to its end; its standard output.
pub(crate) fn client(arguments: &[&str]) -> String {
    let mut command = Command::new(arguments[0]);
    let output = run_within(command.args(&arguments[1..]), DEADLINE);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{arguments:?}: {out}{err}");
    out
}

/// Runs a client that must fail; what it says.
pub(crate) fn failing_client(arguments: &[&str]) -> String {
    let mut command = Command::new(arguments[0]);
    let output = run_within(command.args(&arguments[1..]), DEADLINE);
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success(), "{arguments:?}: {out}{err}");
    out + &err
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Bytes that no two places share, from a seed (xorshift).
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}

/// A file in the directory of `node`; its path.
pub(crate) fn file(node: &Node, name: &str, content: &[u8]) -> String {
    let path = node.path(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}
