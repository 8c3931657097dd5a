//! The power fails at every sync of a guest's file system: files as promised, and nothing for the checker to repair.
//!
//! | variable | says |
//! |---|---|
//! | `POWER_CUT_SEED` | which steps, and what each cut leaves |
//! | `POWER_CUT_MARKS` | syncs to be looked at in all, shared by the file systems |
//! | `POWER_CUT_RECORDING`, `POWER_CUT_FILE_SYSTEM`, `POWER_CUT_POINT` | of `replay`: what a failure printed |

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
        println!("skipped: this test mounts images: {obstacle}");
        return Ok(());
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
        let figures = replay(kind, seed, &file, None)?;
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

fn replay(kind: FileSystem, seed: u64, file: &Path, only: Option<u64>) -> Result<Figures> {
    let mut recording = BufReader::new(File::open(file)?);
    Replay::new(kind, seed)?
        .run(&mut recording, only)
        .map_err(|failure| {
            let kept = keep(kind, seed, file).unwrap_or_else(|_error| file.to_owned());
            anyhow!(
                "{} seed {seed}, point {}: {:#}\nreplay: POWER_CUT_RECORDING={} POWER_CUT_FILE_SYSTEM={} POWER_CUT_SEED={seed} \
                 POWER_CUT_POINT={} cargo test --release -p archipelago-power-cut-tests --test power_cut replay -- --ignored --nocapture",
                kind.name(),
                failure.point,
                failure.error,
                kept.display(),
                kind.name(),
                failure.point
            )
        })
}

/// Copies a recording to where it stays.
fn keep(kind: FileSystem, seed: u64, file: &Path) -> Result<PathBuf> {
    let programs = Path::new(PROGRAMS.daemon).parent().context("a directory")?;
    let kept = programs.join(format!("power-cut-{}-{seed}.recording", kind.name()));
    if kept != file {
        fs::copy(file, &kept)?;
    }
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

#[test]
#[ignore = "replays what a failure printed"]
fn replay_a_recording() -> Result<()> {
    let file = std::env::var("POWER_CUT_RECORDING").context("POWER_CUT_RECORDING")?;
    let kind = std::env::var("POWER_CUT_FILE_SYSTEM").context("POWER_CUT_FILE_SYSTEM")?;
    let kind = FileSystem::named(&kind).context("no such file system")?;
    let point = std::env::var("POWER_CUT_POINT").ok();
    let only = point.map(|point| point.parse()).transpose()?;
    let figures = replay(kind, number("POWER_CUT_SEED", 1), Path::new(&file), only)?;
    println!("{figures:?}");
    Ok(())
}
