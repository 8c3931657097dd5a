//! The power fails at every sync of a guest's file system: files as promised, and nothing for the checker to repair.
//!
//! | variable | says |
//! |---|---|
//! | `POWER_CUT_SEED` | which steps, and what each cut leaves |
//! | `POWER_CUT_MARKS` | syncs to be looked at in all, shared by the file systems |

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]
#![expect(clippy::print_stdout, reason = "figures, and how to replay")]

use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use archipelago_crash_tests::skip;
use archipelago_power_cut_tests::medium::{FileSystem, Medium};
use archipelago_power_cut_tests::record::{Programs, record};
use archipelago_power_cut_tests::replay::{Figures, Replay};

const PROGRAMS: Programs = Programs {
    daemon: env!("CARGO_BIN_EXE_archipelagod-recording"),
    workload: env!("CARGO_BIN_EXE_power-cut-workload"),
};
/// Marks when nobody says how many.
const MARKS: u64 = 2_000;
const FILE_SYSTEMS: u64 = 2;
/// Flushes of one recording at most: what fails is then replayed in a minute or so.
const FLUSHES_MAX: u64 = 5_000;

fn number(variable: &str, or: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(or)
}

#[expect(clippy::disallowed_methods, reason = "a figure for people")]
fn now() -> Instant {
    Instant::now()
}

fn survives(kind: FileSystem) -> Result<()> {
    if let Some(obstacle) = Medium::new(kind)?.obstacle()? {
        return skip(&format!("this test mounts images: {obstacle}"));
    }
    let marks = number("POWER_CUT_MARKS", MARKS) / FILE_SYSTEMS;
    let first = number("POWER_CUT_SEED", 1);
    let (mut seed, mut done) = (first, 0);
    while done < marks {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("recording");
        let began = now();
        record(PROGRAMS, kind, seed, (marks - done).min(FLUSHES_MAX), &file)?;
        let recorded = began.elapsed();
        let began = now();
        let figures = replay(kind, seed, &file)?;
        let replayed = began.elapsed();
        println!(
            "{} seed {seed}: {} marks, {} reports, {} MiB written; recorded in {} s, replayed in {} s: {} ms a point",
            kind.name(),
            figures.marks,
            figures.reports,
            figures.bytes >> 20,
            recorded.as_secs(),
            replayed.as_secs(),
            replayed.as_millis() / u128::from(figures.points().max(1))
        );
        ensure!(figures.marks > 0, "a recording without marks");
        done += figures.marks;
        seed += 1;
    }
    println!("{}: {done} marks", kind.name());
    Ok(())
}

fn replay(kind: FileSystem, seed: u64, file: &Path) -> Result<Figures> {
    let mut recording = BufReader::new(File::open(file)?);
    Replay::new(kind, seed)?
        .run(&mut recording, None)
        .map_err(|failure| {
            let (name, point) = (kind.name(), failure.number);
            let kept = keep(kind, seed, file).unwrap_or_else(|_error| file.to_owned());
            anyhow!(
                "{name} seed {seed}, point {point}: {:#}\nreplay: cargo run --release -p archipelago-power-cut-tests \
                 --bin power-cut-replay -- {} {name} {seed} {point}",
                failure.error,
                kept.display(),
            )
        })
}

/// Copies a recording to where it stays.
fn keep(kind: FileSystem, seed: u64, file: &Path) -> Result<PathBuf> {
    let programs = Path::new(PROGRAMS.daemon).parent().context("a directory")?;
    let kept = programs.join(format!("power-cut-{}-{seed}.recording", kind.name()));
    fs::copy(file, &kept)?;
    Ok(kept)
}

#[test]
fn ext4_survives_a_power_cut_at_every_mark() -> Result<()> {
    survives(FileSystem::Ext4)
}

#[test]
fn xfs_survives_a_power_cut_at_every_mark() -> Result<()> {
    survives(FileSystem::Xfs)
}
