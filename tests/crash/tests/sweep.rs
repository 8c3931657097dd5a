//! Every control command at every free space of the pool's file system, from none to 2 MiB in steps of a block: done, or refused in
//! words with the code for no space; never by halves; and a guest that needs no space notices nothing.
//!
//! `SWEEP=all` tries every step, `SWEEP=FROM-TO` those from FROM to TO KiB; without it some, which a printed seed chooses.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_bench::load::Random;
use archipelago_bench::waiting::wait_until;
use archipelago_crash_tests::control::{Command, Control, Listing, orphans};
use archipelago_crash_tests::disk::{Disk, InFlight};
use archipelago_crash_tests::filesystem::{BLOCK, FileSystem, Kind};
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::rewriter::{self, Rewriter};
use archipelago_crash_tests::witness::Witness;
use archipelago_crash_tests::{seed, skip};
use archipelago_protocol::{ErrorCode, OnFull};

const MIB: u64 = 1 << 20;
/// The last step.
const END: u64 = 2 * MIB;
/// What a command has that is tried again: more than any of them takes.
const ROOM: u64 = 24 * MIB;
/// The guest's volume, all of which it has written.
const GUEST_BLOCKS: usize = 256;
/// How long anything may take before the test gives up: a restart of the node is the longest.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How much longer than a plain writer the guest may wait for a block while the node is not restarted.
const UNDISTURBED: Duration = Duration::from_secs(5);
/// The node is stopped and started at each step whose number is a multiple of this.
const RESTART_EVERY: usize = 4;
/// Exit code of a command for which there is no space.
const NO_SPACE: i32 = 6;
/// What no message says to people.
const INTERNAL: [&str; 6] = ["NoSpace", "token", "Some(", "::", "ErrorCode", "lineage"];

/// How often a command was done and refused, and the most free space at which it was refused.
#[derive(Debug, Default)]
struct Outcomes {
    done: u32,
    refused: u32,
    refused_up_to: u64,
}

struct Sweep {
    files: FileSystem,
    node: Node,
    control: Control,
    guest: Rewriter,
    witness: Witness,
    open: Disk,
    outcomes: BTreeMap<&'static str, Outcomes>,
    longest: Duration,
}

/// All commands, in an order in which each has what it needs, and at whose end there is nothing new.
fn script() -> Vec<(&'static str, Command)> {
    let mut script = vec![
        ("list", Command::List),
        ("info", Command::Info { name: "open" }),
        ("pool list", Command::Pools),
        ("pool info", Command::Pool),
        ("node status", Command::Status),
    ];
    let (size, larger) = (64 * MIB, 96 * MIB);
    script.extend([
        ("create", Command::Create { name: "new", size }),
        (
            "resize",
            Command::Resize {
                name: "new",
                size: larger,
            },
        ),
        (
            "set",
            Command::Set {
                name: "new",
                on_full: OnFull::Report,
            },
        ),
        (
            "label",
            Command::Label {
                name: "new",
                label: "ganeti.disk=0",
                unset: None,
            },
        ),
        (
            "label, another for one",
            Command::Label {
                name: "new",
                label: "ganeti.instance=web",
                unset: Some("ganeti.disk"),
            },
        ),
        (
            "rename",
            Command::Rename {
                old: "new",
                new: "volume",
            },
        ),
        ("attach", Command::Attach { name: "volume" }),
        ("detach", Command::Detach { name: "volume" }),
        (
            "snapshot, closed",
            Command::Snapshot {
                volume: "volume",
                name: "snapshot",
            },
        ),
        (
            "snapshot, open",
            Command::Snapshot {
                volume: "open",
                name: "other-snapshot",
            },
        ),
        (
            "clone",
            Command::Clone {
                source: "snapshot",
                name: "clone",
            },
        ),
        (
            "export",
            Command::Export {
                name: "other-snapshot",
            },
        ),
        ("import", Command::Import { name: "image" }),
        ("doctor", Command::Doctor),
        ("remove, image", Command::Remove { name: "image" }),
        ("remove, clone", Command::Remove { name: "clone" }),
        ("remove, snapshot", Command::Remove { name: "snapshot" }),
        (
            "remove, snapshot of an open volume",
            Command::Remove {
                name: "other-snapshot",
            },
        ),
        ("remove, volume", Command::Remove { name: "volume" }),
    ]);
    script
}

/// The free spaces that `$SWEEP` asks for, if it does.
fn asked() -> Option<Vec<u64>> {
    let asked = std::env::var("SWEEP").ok()?;
    let kib = |text: &str| text.parse::<u64>().ok().map(|kib| kib * 1024 / BLOCK);
    let (first, last) = match asked.split_once('-') {
        Some((from, to)) => (kib(from)?, kib(to)?),
        None if asked == "all" => (0, END / BLOCK),
        None => return None,
    };
    Some((first..=last).map(|block| block * BLOCK).collect())
}

/// Free spaces to try.
fn steps(seed: u64, some: u64) -> Vec<u64> {
    if let Some(asked) = asked() {
        return asked;
    }
    let blocks = END / BLOCK;
    let mut random = Random::new(seed);
    let mut chosen: Vec<u64> = (0..some).map(|_| random.below(blocks)).collect();
    // Edges: none, what a page or two are enough for, and the end.
    chosen.extend([0, 1, 2, 3, 4, 8, 16, blocks]);
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|block| block * BLOCK).collect()
}

/// Free spaces to try where they cannot be set to the block.
fn coarse() -> Vec<u64> {
    asked().unwrap_or_else(|| (0..=8).map(|step| step * END / 8).collect())
}

/// What a refusal says to people.
fn check_words(said: &str) -> Result<()> {
    let internal = INTERNAL.iter().find(|word| said.contains(**word));
    ensure!(internal.is_none(), "internal words: {said}");
    let number = said
        .split(|letter: char| !letter.is_ascii_hexdigit())
        .find(|digits| digits.len() > 9);
    ensure!(number.is_none(), "an id for nobody: {said}");
    ensure!(
        said.contains("full") || said.contains("space"),
        "nothing about space: {said}"
    );
    Ok(())
}

/// What a block of the open volume holds.
fn content(block: u64) -> [u8; rewriter::BLOCK] {
    [u8::try_from(block % 251).expect("below 251") + 1; rewriter::BLOCK]
}

impl Sweep {
    fn new(kind: Kind, placement: &str, size: u64) -> Result<Option<Sweep>> {
        let files = match FileSystem::new(kind, size) {
            Ok(files) => files,
            Err(error) => {
                skip(&format!("no {kind}: {error:#}"))?;
                return Ok(None);
            }
        };
        let node = Node::builder(placement)
            .pool(&files.path().join("pool"))
            .start()?;
        let socket = node.create("guest", GUEST_BLOCKS * rewriter::BLOCK)?;
        let witness = Witness::start(&files.path())?;
        let guest = Rewriter::start(&socket, GUEST_BLOCKS, seed(), TIMEOUT)?;
        let socket = node.create("open", usize::try_from(64 * MIB)?)?;
        let open = Disk::connect(&socket, 1, rewriter::BLOCK, InFlight::Tracked, TIMEOUT)?;
        Ok(Some(Sweep {
            control: Control::new(node.root())?,
            files,
            node,
            guest,
            witness,
            open,
            outcomes: BTreeMap::new(),
            longest: Duration::ZERO,
        }))
    }

    fn note(&mut self, what: &'static str, free: u64, done: bool) {
        let outcomes = self.outcomes.entry(what).or_default();
        if done {
            outcomes.done += 1;
        } else {
            outcomes.refused += 1;
            outcomes.refused_up_to = outcomes.refused_up_to.max(free);
        }
    }

    /// Writes a block of the open volume; there is room.
    fn write(&mut self, block: u64) -> Result<()> {
        self.open.fill(0, &content(block))?;
        let at = block % 64 * BLOCK;
        self.open.run(Op::Write, at, rewriter::BLOCK, TIMEOUT)?;
        self.read(block)
    }

    /// Reads the block that was written last.
    fn read(&mut self, block: u64) -> Result<()> {
        let at = block % 64 * BLOCK;
        self.open.run(Op::Read, at, rewriter::BLOCK, TIMEOUT)?;
        let mut read = [0; rewriter::BLOCK];
        self.open.take(0, &mut read)?;
        ensure!(
            read == content(block),
            "block {block} of `open` is not what was written"
        );
        Ok(())
    }

    /// `ask` does `command` with `free` bytes left: done or refused, the catalogue shows which; done with room again.
    fn attempt(
        &mut self,
        what: &'static str,
        command: &Command,
        free: u64,
        ask: &dyn Fn(&Sweep, &Command) -> Result<Option<String>>,
    ) -> Result<()> {
        let before = self.control.list()?;
        let mut after = before.clone();
        command.apply(&mut after)?;
        self.files.leave(free)?;
        let refused = ask(self, command)?;
        self.note(what, free, refused.is_none());
        if let Some(said) = refused {
            ensure!(
                !command.needs_no_space(),
                "refused, though it makes nothing: {said}"
            );
            check_words(&said)?;
            self.listed(&before)?;
            self.files.leave(ROOM)?;
            let again = ask(self, command)?;
            ensure!(again.is_none(), "with {ROOM} bytes free: {again:?}");
        }
        self.listed(&after)
    }

    fn listed(&self, expected: &Listing) -> Result<()> {
        let found = self.control.list()?;
        ensure!(found == *expected, "{found:?} is listed, not {expected:?}");
        Ok(())
    }

    /// Everything at `free` bytes.
    fn step(
        &mut self,
        free: u64,
        ask: &dyn Fn(&Sweep, &Command) -> Result<Option<String>>,
    ) -> Result<()> {
        self.files.leave(ROOM)?;
        self.write(free / BLOCK)?;
        for (what, command) in script() {
            self.attempt(what, &command, free, ask)
                .with_context(|| format!("{what} with {free} bytes free"))?;
        }
        self.guest.check()?;
        let (longest, witnessed) = (self.guest.longest(), self.witness.longest());
        ensure!(
            longest < UNDISTURBED + witnessed,
            "the guest waited for {longest:?} with {free} bytes free, a plain writer for {witnessed:?}"
        );
        self.longest = self.longest.max(longest);
        self.files.leave(ROOM)?;
        self.write(free / BLOCK + 1)?;
        self.open.run(Op::Flush, 0, 0, TIMEOUT)?;
        self.nothing_left()
            .with_context(|| format!("after {free} bytes free"))
    }

    /// Waits until the objects of what was removed are gone.
    fn nothing_left(&self) -> Result<()> {
        let left = || "objects of nobody are left".to_owned();
        wait_until(TIMEOUT, left, || {
            let report = self.control.check()?;
            ensure!(report.clean, "{report:?}");
            Ok((!orphans(&report)).then_some(()))
        })
    }

    /// Stops and starts the node with `free` bytes left.
    fn restart(&mut self, free: u64) -> Result<()> {
        let before = self.control.list()?;
        for what in ["stop", "start"] {
            self.files.leave(free)?;
            self.node
                .call(&["node", what])
                .with_context(|| format!("{what} with {free} bytes free"))?;
            self.note(what, free, true);
        }
        self.listed(&before)?;
        self.read(free / BLOCK + 1)
            .with_context(|| format!("after a restart with {free} bytes free"))?;
        // A session that has no room to begin reads and does not write.
        self.files.leave(ROOM)?;
        let done = self.guest.done();
        let unserved = || format!("no guest is served: restarted with {free} bytes free");
        wait_until(TIMEOUT, unserved, || {
            self.guest.check()?;
            Ok((self.guest.done() >= done + 2).then_some(()))
        })?;
        let _restart = (self.guest.longest(), self.witness.longest());
        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "the figures of a run")]
    fn finish(self) -> Result<()> {
        for (what, outcomes) in &self.outcomes {
            let Outcomes {
                done,
                refused,
                refused_up_to,
            } = outcomes;
            let up_to = match refused {
                0 => String::new(),
                _ => format!(" up to {} KiB", refused_up_to / 1024),
            };
            println!(
                "{}: {what}: {done} done, {refused} refused{up_to}",
                self.files.kind()
            );
        }
        println!(
            "{}: the guest did {} requests, the longest took {:?}",
            self.files.kind(),
            self.guest.done(),
            self.longest
        );
        self.guest.finish()?;
        self.witness.finish()?;
        drop(self.open);
        self.node.call(&["node", "stop"])?;
        // A repair deletes what provably nobody needs.
        let report = self.node.call(&["--json", "doctor", "--repair"])?;
        ensure!(
            report.contains("\"repaired\":[]"),
            "orphaned objects: {report}"
        );
        self.files.finish()
    }
}

/// By the API.
fn by_api(sweep: &Sweep, command: &Command) -> Result<Option<String>> {
    match sweep.control.run(command) {
        Ok(()) => Ok(None),
        Err(error) => {
            ensure!(error.code == ErrorCode::NoSpace, "{error:?}");
            Ok(Some(format!("{}; {}", error.message, error.hint)))
        }
    }
}

/// By the command.
fn by_command(sweep: &Sweep, command: &Command) -> Result<Option<String>> {
    let dir: &Path = sweep.node.root();
    let arguments = command.arguments(dir)?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = sweep.node.output(&arguments)?;
    let said = String::from_utf8(output.stderr)?;
    match output.status.code() {
        Some(0) => Ok(None),
        Some(NO_SPACE) => Ok(Some(said)),
        other => bail!("{arguments:?} ended with {other:?}: {said}"),
    }
}

fn sweep(kind: Kind, placement: &str, size: u64, steps: &[u64]) -> Result<()> {
    let Some(mut sweep) = Sweep::new(kind, placement, size)? else {
        return Ok(());
    };
    for (index, free) in steps.iter().enumerate() {
        sweep.step(*free, &by_api)?;
        if index % RESTART_EVERY == 0 {
            sweep.restart(*free)?;
        }
    }
    sweep.finish()
}

/// The same by the command, at some edges.
fn sweep_by_command(kind: Kind, placement: &str, size: u64) -> Result<()> {
    let Some(mut sweep) = Sweep::new(kind, placement, size)? else {
        return Ok(());
    };
    for free in [0, BLOCK, 64 << 10, MIB, END] {
        sweep.step(free, &by_command)?;
        sweep.restart(free)?;
    }
    sweep.finish()
}

#[test]
fn on_tmpfs_every_command_is_done_or_refused_in_words() -> Result<()> {
    sweep(Kind::Tmpfs, "fused", 96 * MIB, &steps(seed(), 48))
}

#[test]
fn on_ext4_every_command_is_done_or_refused_in_words() -> Result<()> {
    sweep(Kind::Ext4, "split", 128 * MIB, &steps(seed(), 24))
}

#[test]
fn on_xfs_every_command_is_done_or_refused_in_words() -> Result<()> {
    sweep(Kind::Xfs, "fused", 320 * MIB, &coarse())
}

#[test]
fn on_btrfs_every_command_is_done_or_refused_in_words() -> Result<()> {
    sweep(Kind::Btrfs, "split", 320 * MIB, &coarse())
}

#[test]
fn the_command_says_by_its_exit_code_and_in_words_that_there_is_no_space() -> Result<()> {
    sweep_by_command(Kind::Tmpfs, "split", 96 * MIB)
}
