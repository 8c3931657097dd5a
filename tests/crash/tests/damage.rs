//! Damaged metadata is named and refused, and nothing is written over it.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use archipelago_crash_tests::model::Model;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::pattern::SECTOR;
use archipelago_crash_tests::verifier::Verifier;

const SIZE: usize = 16 << 20;

/// Exit code of a command that met damaged data.
const DAMAGED: i32 = 7;
/// Exit code of a command that met what another version of the program wrote.
const UNSUPPORTED: i32 = 8;

/// Bytes in front of a log in its file.
const LOG_HEADER: usize = 4096;
/// Bytes of a log that have a header of their own.
const LOG_SECTOR: usize = 512;

/// All files below `dir` that hold metadata: heads, logs and packs.
fn metadata_files(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if ["head", "log-", "pack-"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
            {
                let content = fs::read(&path)?;
                files.insert(path, content);
            }
        }
    }
    Ok(files)
}

/// How the error names a metadata file: its kind, and whose it is.
fn named(path: &Path) -> Result<[String; 2]> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    let (kind, lineage) = name(path)
        .zip(path.parent().and_then(name))
        .context("a metadata file lies in a lineage's directory")?;
    let kind = kind.split('-').next().unwrap_or_default().to_owned();
    // The catalogue is lineage 0.
    if lineage.bytes().all(|digit| digit == b'0') {
        return Ok([kind, "catalogue".to_owned()]);
    }
    Ok([kind, lineage])
}

/// Where the last batch of a log ends in its file.
fn log_end(content: &[u8]) -> usize {
    // Sectors to which something was appended have a number of their own.
    let mut sectors = content.chunks(LOG_SECTOR);
    let last = sectors.rposition(|sector| sector[16..20] != [0xff; 4]);
    last.map_or(0, |last| (last + 1) * LOG_SECTOR)
}

/// Breaks one metadata file of a stopped node, and sees that a command which needs it names it, exits with
/// `code` and writes nothing; then mends it.
fn refuses(
    node: &Node,
    code: i32,
    good: &BTreeMap<PathBuf, Vec<u8>>,
    path: &Path,
    broken: &[u8],
    command: &[&str],
) -> Result<()> {
    fs::write(path, broken)?;
    let checked = node.output(&["--json", "doctor"])?;
    let found = String::from_utf8_lossy(&checked.stdout);
    ensure!(
        checked.status.code() == Some(code),
        "the doctor exits with {:?}: {found}",
        checked.status.code()
    );
    for name in named(path)? {
        ensure!(
            found.contains(&name),
            "the doctor does not say {name}: {found}"
        );
    }
    // A damaged catalogue keeps the node from serving at all.
    let started = node.output(&["--json", "node", "start"])?;
    let output = if started.status.success() {
        node.output(command)?
    } else {
        started
    };
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // A node that never started has nothing to stop; one that serves may try to close what is damaged.
    node.output(&["node", "stop"])?;
    ensure!(
        output.status.code() == Some(code),
        "exit {:?}, expected {code}: {said}",
        output.status.code()
    );
    for name in named(path)? {
        ensure!(
            said.contains(&name),
            "the error does not say {name}: {said}"
        );
    }
    let catalogue_is_sound = named(path)?[1] != "catalogue";
    for (other, content) in good {
        let expected = if other == path { broken } else { content };
        let [kind, owner] = named(other)?;
        // A start that finds the catalogue sound notes itself in its head and appends to its log.
        let is_noted = catalogue_is_sound && owner == "catalogue";
        let fixed = match kind.as_str() {
            "head" if is_noted => continue,
            "log" if is_noted => LOG_HEADER..log_end(content),
            // Starts, and sessions that replay, are noted in the block in front of a log.
            "log" => LOG_HEADER..usize::MAX,
            _ => 0..usize::MAX,
        };
        let part = |bytes: &[u8]| {
            bytes
                .get(fixed.start..fixed.end.min(bytes.len()))
                .map(<[u8]>::to_vec)
        };
        ensure!(
            part(&fs::read(other)?) == part(expected),
            "{} was written",
            other.display()
        );
    }
    for (path, content) in good {
        fs::write(path, content)?;
    }
    Ok(())
}

/// Every metadata file of `kind`, broken in each of the ways that `breaks` gives, is refused with `code`.
fn all_refused(
    node: &Node,
    code: i32,
    kind: &str,
    command: &[&str],
    breaks: impl Fn(&[u8]) -> Vec<(&'static str, Vec<u8>)>,
) -> Result<usize> {
    let good = metadata_files(node.root())?;
    let mut failures = Vec::new();
    let mut rounds = 0;
    for (path, content) in &good {
        if named(path)?[0] != kind {
            continue;
        }
        for (what, broken) in breaks(content) {
            rounds += 1;
            if let Err(error) = refuses(node, code, &good, path, &broken, command) {
                failures.push(format!("{what} of {}: {error:#}", path.display()));
                for (path, content) in &good {
                    fs::write(path, content)?;
                }
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(rounds)
}

/// A node with a volume that has been written, stopped or killed.
fn written_node(kill: bool) -> Result<Node> {
    let node = Node::start("fused")?;
    let socket = node.create("disk", SIZE)?;
    // So that each log gets more than one batch.
    node.call(&["volume", "create", "other", "--size", "1M"])?;
    let mut disk = Verifier::connect(&socket, Model::new(1, SIZE / SECTOR), 1)?;
    for _ in 0..4 {
        disk.run(40)?;
        disk.flush()?;
    }
    if kill {
        Node::kill(node.daemon()?)?;
        return Ok(node);
    }
    drop(disk);
    node.detach("disk")?;
    node.call(&["volume", "snapshot", "disk", "before"])?;
    node.call(&["node", "stop"])?;
    Ok(node)
}

/// Reads all of the volume, which needs its head, its log and its map pages.
const EXPORT: [&str; 5] = ["--json", "image", "export", "disk", "/dev/null"];

#[test]
fn damaged_heads_are_refused_by_name() -> Result<()> {
    let node = written_node(false)?;
    let rounds = all_refused(&node, DAMAGED, "head", &EXPORT, |content| {
        // Both slots: one bad slot of two is what a crash leaves, and is survived.
        let mut flipped = content.to_vec();
        for slot in flipped.chunks_mut(4096) {
            slot[100] ^= 0x10;
        }
        vec![
            ("bit flips", flipped),
            ("foreign content", vec![0x5a; content.len()]),
            ("truncation to 100 bytes", content[..100].to_vec()),
        ]
    })?;
    ensure!(rounds == 6, "the volume and the catalogue have a head each");
    node.call(&["node", "start"])?;
    node.call(&EXPORT).map(drop)
}

#[test]
fn damaged_packs_are_refused_by_name() -> Result<()> {
    let node = written_node(false)?;
    let rounds = all_refused(&node, DAMAGED, "pack", &EXPORT, |content| {
        let used = content.iter().rposition(|byte| *byte != 0).unwrap_or(0);
        let mut flipped = content.to_vec();
        flipped[used] ^= 1;
        vec![
            ("a bit flip", flipped),
            ("truncation", content[..used / 2].to_vec()),
            ("truncation to nothing", Vec::new()),
        ]
    })?;
    ensure!(rounds >= 3, "a volume closed cleanly has map pages");
    node.call(&["node", "start"])?;
    node.call(&EXPORT).map(drop)
}

#[test]
fn damaged_logs_are_refused_by_name() -> Result<()> {
    let node = written_node(true)?;
    let rounds = all_refused(&node, DAMAGED, "log", &EXPORT, |content| {
        let mut flipped = content.to_vec();
        flipped[LOG_HEADER + 60] ^= 1;
        let mut last_flipped = content.to_vec();
        last_flipped[log_end(content) - LOG_SECTOR + 100] ^= 1;
        vec![
            ("a bit flip before a good batch", flipped),
            ("a bit flip in the last batch", last_flipped),
            ("truncation", content[..LOG_HEADER + 4096].to_vec()),
        ]
    })?;
    ensure!(rounds == 6, "the volume and the catalogue have a log each");
    node.call(&["node", "start"])?;
    node.call(&["volume", "info", "disk"]).map(drop)
}

#[test]
fn what_another_version_wrote_is_refused_by_name_and_is_no_damage() -> Result<()> {
    let node = written_node(false)?;
    let rounds = all_refused(&node, UNSUPPORTED, "pack", &EXPORT, |content| {
        // The envelope of the last page: its version, its incompatible features.
        let mut pages = (0..content.len()).step_by(64);
        let is_page = |at: &usize| content[*at..].starts_with(b"ARCH");
        let page = pages.rfind(is_page).unwrap_or(0);
        let resealed = |at: usize, value: u8| {
            let mut broken = content.to_vec();
            let len = u32::from_le_bytes([12, 13, 14, 15].map(|at| content[page + at]));
            let page = &mut broken[page..][..len as usize];
            page[at] = value;
            let crc = crc32c::crc32c_append(crc32c::crc32c(&page[..16]), &page[20..]);
            page[16..20].copy_from_slice(&crc.to_le_bytes());
            broken
        };
        vec![
            ("a newer version", resealed(8, 4)),
            ("an older version", resealed(8, 2)),
            ("an unknown feature", resealed(23, 0x80)),
        ]
    })?;
    ensure!(rounds >= 3, "a volume closed cleanly has map pages");
    let marker = node.root().join("pool/pool.toml");
    let original = fs::read(&marker)?;
    for broken in [
        "version = 2\n",
        "version = 1\nincompatible = [\"striped\"]\n",
    ] {
        fs::write(&marker, broken)?;
        for command in [["node", "start"].as_slice(), &["doctor"]] {
            let refused = node.output(command)?;
            let text = String::from_utf8_lossy(&refused.stderr);
            ensure!(refused.status.code() == Some(UNSUPPORTED), "{refused:?}");
            ensure!(
                text.contains("pool.toml") && !text.contains("damaged"),
                "{text}"
            );
        }
        ensure!(fs::read(&marker)? == broken.as_bytes(), "it was written");
    }
    fs::write(&marker, original)?;
    node.call(&["node", "start"])?;
    node.call(&EXPORT).map(drop)
}
