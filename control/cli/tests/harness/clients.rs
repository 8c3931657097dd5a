//! NBD clients that people have, as the tests run them.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::content::noise;
use crate::harness::{has_programs, run_within};

/// How long a client may take: some of these copies are written with a sync, on whatever disk there is.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// Whether the clients are installed; says so if not.
pub(crate) fn has_clients() -> bool {
    has_programs(&["qemu-img", "qemu-io", "nbdcopy", "nbdinfo"])
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

/// Copies one image over another, both raw: a file or an export.
pub(crate) fn convert(source: &str, target: &str) {
    client(&[
        "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, target,
    ]);
}

/// Expects two raw images to hold the same.
pub(crate) fn compare(a: &str, b: &str) {
    client(&["qemu-img", "compare", "-f", "raw", "-F", "raw", a, b]);
}

/// Does `commands` on a raw image, each of which must succeed.
pub(crate) fn qemu_io(options: &[&str], commands: &[&str], image: &str) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let mut arguments = [&["qemu-io", "-f", "raw"][..], options].concat();
    arguments.extend(commands);
    arguments.push(image);
    let said = client(&arguments);
    assert!(
        !said.contains("failed") && !said.contains("error"),
        "{said}"
    );
}

/// Every command that QEMU knows, on an export of zeros of 256 MiB; it leaves fives in 31 MiB at 100 MiB.
pub(crate) fn do_every_command(export: &str) {
    let commands = [
        "write -P 7 1M 3M",
        "read -P 7 1M 3M",
        "write -f -P 9 512 512",
        "read -P 9 512 512",
        "read -P 0 0 512",
        "write -z 2M 512k",
        "write -z -f 2560k 512k",
        "read -P 0 2M 1M",
        "write -z -u 1M 512k",
        "read -P 0 1M 512k",
        "read -P 7 1536k 512k",
        "discard 3M 1M",
        "read -P 0 3M 1M",
        "write -P 5 100M 31M",
        "read -P 5 100M 31M",
        "flush",
    ];
    qemu_io(&["-d", "unmap"], &commands, export);
}

/// Writes and reads in several sizes and depths, as fast as it goes.
pub(crate) fn bench(export: &str) {
    for arguments in [&["-w"][..], &["-w", "-d", "16", "-s", "64k"], &["-d", "32"]] {
        let bench = ["qemu-img", "bench", "-f", "raw", "-c", "2000"];
        client(&[&bench[..], arguments, &[export]].concat());
    }
}

/// Expects a write to be refused: by us, or by QEMU's own refusal to open it for writing.
pub(crate) fn refuses_writes(export: &str) {
    let refused = failing_client(&["qemu-io", "-f", "raw", "-c", "write 0 4k", export]);
    assert!(
        refused.contains("denied") || refused.contains("read-only"),
        "{refused}"
    );
}

/// Expects an export to say what one of a snapshot says, which holds what [`do_every_command`] left; what it says.
pub(crate) fn is_read_only(export: &str) -> Value {
    let info = client(&["nbdinfo", "--json", export]);
    let info: Value = serde_json::from_str(&info).unwrap();
    for (flag, expected) in [
        ("is_read_only", true),
        ("can_multi_conn", true),
        ("can_flush", true),
        ("can_trim", false),
        ("can_zero", false),
    ] {
        assert_eq!(info["exports"][0][flag], expected, "{flag}: {info}");
    }
    qemu_io(&["-r"], &["read -P 5 100M 31M"], export);
    refuses_writes(export);
    info
}

/// Content with a hole from 8 MiB to 24 MiB, for an export of 64 MiB.
pub(crate) fn content_with_a_hole() -> Vec<u8> {
    let mut content = noise(1, 64 << 20);
    content[8 << 20..24 << 20].fill(0);
    content
}

/// Expects the map of an export that holds [`content_with_a_hole`].
pub(crate) fn has_the_hole(export: &str) {
    let map = client(&["nbdinfo", "--map", "--json", export]);
    let map: Value = serde_json::from_str(&map).unwrap();
    let extents = map.as_array().unwrap().iter();
    let extents: Vec<_> = extents
        .map(|it| ["offset", "length", "type"].map(|key| it[key].as_u64().unwrap()))
        .collect();
    let expected = [
        [0, 8 << 20, 0],
        [8 << 20, 16 << 20, 3],
        [24 << 20, 40 << 20, 0],
    ];
    assert_eq!(extents, expected, "{map}");
    let map = client(&["qemu-img", "map", "--output=json", "-f", "raw", export]);
    let map: Value = serde_json::from_str(&map).unwrap();
    assert_eq!(map[1]["zero"], true, "{map}");
    assert_eq!(map[1]["length"].as_u64(), Some(16 << 20), "{map}");
}

/// A client that has an export open until its standard input is closed.
pub(crate) fn holder(export: &str) -> Child {
    let mut holder = Command::new("qemu-io");
    holder.args(["-f", "raw", export]).stdin(Stdio::piped());
    holder.stdout(Stdio::null()).spawn().unwrap()
}

/// A copy that takes its time, `rate` bytes a second: for kills to come in the midst of it.
pub(crate) fn slow_copy(rate: &str, source: &str, target: &str) -> Child {
    let mut copy = Command::new("qemu-img");
    copy.args(["convert", "-n", "-f", "raw", "-O", "raw", "-r", rate]);
    copy.args([source, target]);
    copy.stdout(Stdio::piped()).stderr(Stdio::piped());
    copy.spawn().unwrap()
}
