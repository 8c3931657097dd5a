//! Imports and exports in the midst of which something dies, stops or changes.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::content::noise;
use crate::harness::{COMMAND_DEADLINE, Node, PLACEMENTS, ended, wait, wait_for};
use crate::images::{MIB, compare, entries, has_qemu, name, qemu_img, said, write};

/// The process of `qemu-nbd` that `command` has started.
fn server_of(command: &Child) -> Pid {
    let children = format!("/proc/{0}/task/{0}/children", command.id());
    wait_for("qemu-nbd", || {
        let children = std::fs::read_to_string(&children).ok()?;
        let mut children = children.split_whitespace();
        children.find_map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
            (name.trim() == "qemu-nbd").then(|| Pid::from_raw(pid.parse().unwrap()))
        })
    })
}

/// An import that stands still in its midst, the process that it waits for, and its source.
fn stopped_import(node: &Node) -> (Child, Pid, PathBuf) {
    let source = node.path("source");
    if !source.exists() {
        let raw = write(node, "raw", &noise(7, 256 * MIB));
        qemu_img(&["convert", "-O", "qcow2", name(&raw), name(&source)]);
        std::fs::remove_file(raw).unwrap();
    }
    std::fs::create_dir_all(node.path("tmp")).unwrap();
    let mut command = node.command(&["image", "import", name(&source), "i"]);
    command.env("TMPDIR", node.path("tmp")).stdin(Stdio::null());
    let import = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let server = server_of(&import);
    wait("the import's channel", || entries(node) == 1);
    kill(server, Signal::SIGSTOP).unwrap();
    let visible = node.json(&["volume", "list"]);
    assert_eq!(visible["volumes"], serde_json::json!([]), "too late");
    (import, server, source)
}

fn is_gone(pid: Pid) -> bool {
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    state.map_or(true, |text| text.contains(") Z"))
}

/// Expects an import to end with this code and these words.
fn fails(import: Child, code: i32, words: &str) {
    let output = ended(import, "the import", COMMAND_DEADLINE);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(said(&output).contains(words), "{output:?}");
}

/// Nothing of an import: no name, no process, no file.
fn nothing_is_left(node: &Node, server: Pid) {
    let ended = std::panic::catch_unwind(|| {
        wait("the end of the import", || entries(node) == 0);
    });
    assert!(ended.is_ok(), "{}", node.log());
    wait("the end of qemu-nbd", || is_gone(server));
    assert_eq!(std::fs::read_dir(node.path("tmp")).unwrap().count(), 0);
    let sockets = std::fs::read_dir(node.path("run/volume")).unwrap();
    let sockets: Vec<_> = sockets.map(|entry| entry.unwrap().file_name()).collect();
    assert!(sockets.is_empty(), "{sockets:?}");
    assert_eq!(
        node.json(&["volume", "list"])["volumes"],
        serde_json::json!([])
    );
    node.done(&["volume", "create", "i", "--size", "1M"]);
    node.done(&["volume", "remove", "i"]);
}

#[test]
fn an_import_that_is_interrupted_or_killed_leaves_nothing() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let (import, server, _) = stopped_import(&node);
        kill(Pid::from_raw(i32::try_from(import.id()).unwrap()), signal).unwrap();
        if signal == Signal::SIGKILL {
            ended(import, "the import", COMMAND_DEADLINE);
        } else {
            fails(import, 1, "interrupted");
        }
        nothing_is_left(&node, server);
    }
    // The process that decodes dies alone.
    let (import, server, _) = stopped_import(&node);
    kill(server, Signal::SIGKILL).unwrap();
    fails(import, 7, "qemu-nbd ended");
    nothing_is_left(&node, server);
}

#[test]
fn an_export_that_is_interrupted_or_killed_leaves_nothing() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let raw = write(&node, "raw", &noise(8, 128 * MIB));
    node.done(&["image", "import", name(&raw), "i"]);
    let target = node.path("out/target");
    std::fs::create_dir(node.path("out")).unwrap();
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let mut export =
            node.command(&["image", "export", "i", name(&target), "--format", "qcow2"]);
        export
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let export = export.spawn().unwrap();
        let server = server_of(&export);
        kill(server, Signal::SIGSTOP).unwrap();
        kill(Pid::from_raw(i32::try_from(export.id()).unwrap()), signal).unwrap();
        let output = ended(export, "the export", COMMAND_DEADLINE);
        assert!(!output.status.success());
        wait("the end of qemu-nbd", || is_gone(server));
        assert_eq!(std::fs::read_dir(node.path("out")).unwrap().count(), 0);
    }
    // Raw is replaced too, and keeps its mode.
    std::fs::write(&target, b"before").unwrap();
    std::fs::set_permissions(&target, Permissions::from_mode(0o600)).unwrap();
    node.done(&["image", "export", "i", name(&target)]);
    let mode = target.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    wait("the end of the channel", || {
        node.output(&["volume", "remove", "i"]).status.success()
    });
}

#[test]
fn a_source_that_changes_is_refused() {
    if !has_qemu() {
        return;
    }
    let node = Node::start("fused");
    let (import, server, source) = stopped_import(&node);
    let mut file = OpenOptions::new().append(true).open(&source).unwrap();
    file.write_all(&[0]).unwrap();
    kill(server, Signal::SIGCONT).unwrap();
    fails(import, 5, "grew from");
    nothing_is_left(&node, server);
}

#[test]
fn an_import_goes_on_when_its_node_has_died_and_is_back() {
    if !has_qemu() {
        return;
    }
    for placement in PLACEMENTS {
        let node = Node::start(placement);
        let (import, server, source) = stopped_import(&node);
        let daemon = Pid::from_raw(node.daemon().unwrap());
        kill(daemon, Signal::SIGKILL).unwrap();
        wait("the end of the daemon", || is_gone(daemon));
        // Perhaps the command has noticed, and ended it.
        let _runs = kill(server, Signal::SIGCONT);
        // It has noticed before the node is back.
        wait("the end of the first try", || is_gone(server));
        node.done(&["node", "start"]);
        let output = ended(import, "the import", COMMAND_DEADLINE);
        let words = said(&output);
        assert!(output.status.success(), "{placement}: {words}");
        assert!(
            words.contains("waiting for the node") && words.contains("begins again"),
            "{words}"
        );
        let copy = node.path("copy");
        node.done(&["image", "export", "i", name(&copy)]);
        compare((&source, "qcow2"), (&copy, "raw"));
        assert_eq!(entries(&node), 1);
    }
}
