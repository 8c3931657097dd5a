//! Looks at one point of a recording again, or at all: what a failed test printed.
//!
//!     power-cut-replay RECORDING FILE-SYSTEM SEED [POINT]

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "what was found")]

use std::fs::File;
use std::io::BufReader;

use anyhow::{Context, Result, anyhow};
use archipelago_power_cut_tests::medium::FileSystem;
use archipelago_power_cut_tests::replay::Replay;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || {
        arguments
            .next()
            .context("RECORDING FILE-SYSTEM SEED [POINT]")
    };
    let recording = File::open(next()?)?;
    let kind = FileSystem::named(&next()?).context("no such file system")?;
    let seed = next()?.parse()?;
    let only = next().ok().map(|point| point.parse()).transpose()?;
    let figures = Replay::new(kind, seed)?
        .run(&mut BufReader::new(recording), only)
        .map_err(|failure| anyhow!("point {}: {:#}", failure.number, failure.error))?;
    println!("{figures:?}");
    Ok(())
}
