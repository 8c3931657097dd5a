//! What works with no byte left in the pool's file system: the table in `docs/operations.md`, cell by cell.
//!
//! Needs root for mounts, and the tools of the file systems.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::fs::{self, File};
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk, InFlight};
use archipelago_crash_tests::filesystem::{FileSystem, Kind};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::skip;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
const HEADING: &str = "## What works with no byte left";

const MIB: usize = 1 << 20;
/// The least that mkfs.xfs makes, and some.
const DISK_LEN: u64 = 384 << 20;
const MEMORY_LEN: u64 = 64 << 20;
const TIMEOUT: Duration = Duration::from_secs(20);
/// A write that is not done by then waits for room.
const WITHOUT_ROOM: Duration = Duration::from_secs(2);
/// Exit code of a command that found no room.
const NO_SPACE: i32 = 6;
/// MiB of the guest's disk that were written before.
const WRITTEN: usize = 4;

/// Files that take what the ballast leaves, in pieces of so many bytes.
const FILLERS: [(&str, usize); 2] = [("fill-1", 4096), ("fill-2", 512)];

/// Takes every block that there is.
fn fill(file_system: &FileSystem) -> Result<()> {
    // Made first: a full xfs makes no file.
    let mut files = Vec::new();
    for (name, len) in FILLERS {
        files.push((File::create(file_system.path().join(name))?, vec![7; len]));
    }
    file_system.leave(0)?;
    // Twice: what was set aside for writes on their way is free once they are done.
    for _ in 0..2 {
        for (file, bytes) in &mut files {
            while file.write_all(bytes).is_ok() {}
            let _full = file.sync_all();
        }
    }
    Ok(())
}

/// Gives back what [`fill`] took.
fn drain(file_system: &FileSystem) -> Result<()> {
    for (name, _) in FILLERS {
        fs::remove_file(file_system.path().join(name))?;
    }
    file_system.remove_ballast()
}

/// What came of an operation, as a cell of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Works,
    Waits,
    Refused,
}

impl Outcome {
    fn cell(self) -> &'static str {
        match self {
            Outcome::Works => "yes",
            Outcome::Waits => "waits",
            Outcome::Refused => "refused",
        }
    }
}

/// The rows of the table: an operation and its cell in the column `kind`.
fn documented(kind: &str) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(DOCUMENT)?;
    let (_, section) = text
        .split_once(HEADING)
        .context("there is no such heading")?;
    let mut rows = section
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().to_owned())
        });
    let head: Vec<String> = rows.next().context("there is no table")?.collect();
    let column = head.iter().position(|cell| cell == kind);
    let column = column.with_context(|| format!("no column {kind}"))?;
    let mut found = Vec::new();
    for row in rows.skip(1) {
        let cells: Vec<String> = row.collect();
        found.push((cells[0].clone(), cells[column].clone()));
    }
    Ok(found)
}

/// A guest with one request at a time.
struct Guest {
    disk: Disk,
}

impl Guest {
    fn result(&mut self, timeout: Duration) -> Result<Option<i32>> {
        let done = self.disk.done_within(timeout, TIMEOUT)?;
        Ok(done.map(|done| done.result))
    }

    fn outcome(&mut self, op: Op, offset: usize, len: usize) -> Result<Outcome> {
        self.disk.submit(0, op, offset as u64, len)?;
        self.disk.kick()?;
        match self.result(WITHOUT_ROOM)? {
            Some(0) => Ok(Outcome::Works),
            Some(status) => bail!("the guest sees the error {status} of {op:?}"),
            None => Ok(Outcome::Waits),
        }
    }

    fn write(&mut self, piece: usize, byte: u8) -> Result<Outcome> {
        self.disk.fill(0, &vec![byte; MIB])?;
        self.outcome(Op::Write, piece * MIB, MIB)
    }

    fn read(&mut self, piece: usize, byte: u8) -> Result<Outcome> {
        let outcome = self.outcome(Op::Read, piece * MIB, MIB)?;
        let mut data = vec![0; MIB];
        self.disk.take(0, &mut data)?;
        ensure!(
            data == vec![byte; MIB],
            "MiB {piece} is not what was written"
        );
        Ok(outcome)
    }
}

/// A node on a full file system, and what is tried there.
struct Trial {
    node: Node,
    guest: Guest,
    found: Vec<(String, String)>,
}

impl Trial {
    fn note(&mut self, operation: &str, outcome: Outcome) {
        self.found
            .push((operation.to_owned(), outcome.cell().to_owned()));
    }

    fn command(&mut self, operation: &str, arguments: &[&str]) -> Result<Outcome> {
        let output = self.node.output(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        let outcome = match output.status.code() {
            Some(0) => Outcome::Works,
            Some(NO_SPACE) if said.contains("full") => Outcome::Refused,
            _ => bail!("{arguments:?}: {}: {said}", output.status),
        };
        self.note(operation, outcome);
        Ok(outcome)
    }

    fn run(&mut self) -> Result<()> {
        let outcome = self.guest.read(0, 1)?;
        self.note("a guest reads", outcome);
        let outcome = self.guest.write(1, 9)?;
        self.note("a guest writes blocks that it has written before", outcome);
        let outcome = self.guest.outcome(Op::Flush, 0, 0)?;
        self.note("a guest flushes", outcome);
        self.command("`node status`", &["node", "status"])?;
        self.command("`pool info`", &["pool", "info", "default"])?;
        self.command("`volume list`", &["volume", "list"])?;
        let exported = self.node.root().join("exported");
        let exported = exported.to_str().context("a path in UTF-8")?;
        self.command("`image export`", &["image", "export", "image", exported])?;
        let size = ["volume", "create", "fresh", "--size", "64M"];
        self.command("`volume create`", &size)?;
        self.command("`volume rename`", &["volume", "rename", "other", "another"])?;
        let resize = ["volume", "resize", "another", "128M"];
        self.command("`volume resize`", &resize)?;
        let set = ["volume", "set", "another", "--on-full", "report"];
        self.command("`volume set`", &set)?;
        let import = ["image", "import", exported, "imported"];
        self.command("`image import`", &import)?;
        let clone = ["volume", "clone", "image", "second"];
        self.command("`volume clone`", &clone)?;
        self.command(
            "`volume snapshot` of a volume in use",
            &["volume", "snapshot", "vm", "now"],
        )?;
        self.command(
            "`volume snapshot` of an idle volume",
            &["volume", "snapshot", "idle", "then"],
        )?;
        self.command("`volume attach`", &["volume", "attach", "idle"])?;
        self.command("`volume detach`", &["volume", "detach", "idle"])?;
        Node::kill(self.node.process_of("blocker")?)?;
        let outcome = self.guest.read(2, 3)?;
        self.note("the death of the data process", outcome);
        self.command("`node stop`", &["node", "stop"])?;
        self.command("`node start`", &["node", "start"])?;
        ensure!(
            self.guest.read(1, 9)? == Outcome::Works,
            "after the restart"
        );
        self.command("`doctor`", &["doctor"])?;
        self.command("`volume remove`", &["volume", "remove", "idle"])?;
        self.command(
            "`volume remove` of a snapshot",
            &["volume", "remove", "before"],
        )?;
        let outcome = self.guest.write(WRITTEN, 5)?;
        self.note("a guest writes new blocks", outcome);
        Ok(())
    }
}

fn prepare(file_system: &FileSystem) -> Result<Trial> {
    let pool = file_system.path().join("pool");
    let node = Node::builder("fused").pool(&pool).start()?;
    let source = node.root().join("source");
    fs::write(&source, vec![7; 3 * MIB])?;
    let source = source.to_str().context("a path in UTF-8")?;
    node.call(&["image", "import", source, "image"])?;
    for name in ["idle", "other"] {
        node.call(&["volume", "create", name, "--size", "64M"])?;
    }
    let socket = node.create("vm", 64 * MIB)?;
    let disk = Disk::connect(&socket, 1, MIB, InFlight::Tracked, TIMEOUT)?;
    let mut guest = Guest { disk };
    node.call(&["volume", "snapshot", "vm", "before"])?;
    for piece in 0..WRITTEN {
        let byte = u8::try_from(piece)? + 1;
        ensure!(guest.write(piece, byte)? == Outcome::Works, "MiB {piece}");
    }
    ensure!(guest.outcome(Op::Flush, 0, 0)? == Outcome::Works, "a flush");
    Ok(Trial {
        node,
        guest,
        found: Vec::new(),
    })
}

fn table_is_right(kind: Kind) -> Result<()> {
    let len = if kind == Kind::Tmpfs {
        MEMORY_LEN
    } else {
        DISK_LEN
    };
    let file_system = match FileSystem::new(kind, len) {
        Ok(made) => made,
        Err(error) => return skip(&format!("no {kind} can be made and mounted here: {error}")),
    };
    let mut trial = prepare(&file_system)?;
    fill(&file_system)?;
    trial.run()?;
    drain(&file_system)?;
    let result = trial.guest.result(TIMEOUT)?;
    ensure!(result == Some(0), "with room again: {result:?}");
    for (piece, byte) in [(0, 1), (1, 9), (2, 3), (3, 4), (WRITTEN, 5)] {
        trial.guest.read(piece, byte)?;
    }
    trial
        .node
        .wait_for_status("the reserve is whole", |status| {
            let reserve = &status["pools"][0]["reserve"];
            reserve["held"] == reserve["wanted"] && reserve["held"].as_u64() > Some(0)
        })?;
    drop(trial.guest);
    trial.node.call(&["node", "stop"])?;
    trial.node.call(&["doctor"])?;
    drop(trial.node);
    file_system.finish()?;
    let mut documented = documented(kind.name())?;
    documented.sort_unstable();
    trial.found.sort_unstable();
    ensure!(
        documented == trial.found,
        "{kind}: {documented:#?} is written, found is {:#?}",
        trial.found
    );
    Ok(())
}

#[test]
fn the_column_of_ext4_is_right() -> Result<()> {
    table_is_right(Kind::Ext4)
}

#[test]
fn the_column_of_xfs_is_right() -> Result<()> {
    table_is_right(Kind::Xfs)
}

#[test]
fn the_column_of_btrfs_is_right() -> Result<()> {
    table_is_right(Kind::Btrfs)
}

#[test]
fn the_column_of_tmpfs_is_right() -> Result<()> {
    table_is_right(Kind::Tmpfs)
}
