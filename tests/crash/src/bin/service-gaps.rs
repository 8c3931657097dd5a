//! How long a guest waits when a process of ours is killed, with a hundred volumes in use: the product as it is. A program
//! and no test, since it measures: two minutes on an idle machine.
//!
//!     service-gaps [fused|split]

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "figures")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use archipelago_crash_tests::loaded_volumes::LoadedVolumes;
use archipelago_crash_tests::node::Node;
use archipelago_crash_tests::seed;
use archipelago_crash_tests::verifier::Load;

/// Volumes that are kept busy, and those that are in use: a request of one block, a rest, and so on.
const BUSY: usize = 4;
const IN_USE: usize = 96;
const SIZE: usize = 8 << 20;
const REST: Duration = Duration::from_millis(100);
/// Requests of each busy volume after which it counts as served again.
const SERVED: u64 = 64;
/// Requests of a volume in use between two kills: with its rests more than a second, for which a process has to live
/// until its supervisor starts its successor at once.
const BETWEEN: u64 = 12;
/// Kills of each process.
const ROUNDS: usize = 2;
const AIM: Duration = Duration::from_millis(500);

#[expect(clippy::disallowed_methods, reason = "measures other processes")]
fn now() -> Instant {
    Instant::now()
}

fn gaps(placement: &str, victims: &[&str]) -> Result<()> {
    let seed = seed();
    let node = Node::start(placement)?;
    let busy = Load {
        sectors_max: 128,
        ..Load::default()
    };
    let in_use = Load {
        depth: 1,
        sectors_max: 8,
        rest: REST,
        ..Load::default()
    };
    let mut others = LoadedVolumes::named(&node, "used", IN_USE, SIZE, in_use, seed + 1)?;
    let mut volumes = LoadedVolumes::named(&node, "busy", BUSY, SIZE, busy, seed)?;
    println!(
        "{placement}, {} volumes in use: gap of a busy volume, and until all are served again, ms",
        BUSY + IN_USE
    );
    let mut all = Vec::new();
    for victim in victims {
        let mut gaps = Vec::new();
        for _round in 0..ROUNDS {
            others.served(BETWEEN)?;
            let pid = match *victim {
                "daemon" => node.daemon()?,
                role => node.process_of(role)?,
            };
            volumes.begin();
            let killed = now();
            Node::kill(pid)?;
            if *victim == "daemon" {
                node.restart()?;
            }
            let gap = volumes
                .served(SERVED)
                .with_context(|| format!("after a kill of the {victim}"))?;
            others.served(2)?;
            gaps.push((gap, killed.elapsed()));
        }
        let texts: Vec<String> = gaps
            .iter()
            .map(|(gap, until)| format!("{:>5} {:>6}", gap.as_millis(), until.as_millis()))
            .collect();
        println!("  {victim:<10} {}", texts.join("   "));
        all.extend(gaps.into_iter().map(|(gap, _)| gap));
    }
    volumes.finish()?;
    others.finish()?;
    all.sort_unstable();
    let (median, worst) = (all[all.len() / 2], all[all.len() - 1]);
    println!(
        "  median {} ms, worst {} ms, aim {} ms",
        median.as_millis(),
        worst.as_millis(),
        AIM.as_millis()
    );
    Ok(())
}

fn main() -> Result<()> {
    let wanted = std::env::args().nth(1);
    let victims = [
        ("fused", &["endpoint", "daemon"][..]),
        ("split", &["endpoint", "mapper", "blocker", "daemon"][..]),
    ];
    for (placement, victims) in victims {
        if wanted.as_deref().is_none_or(|wanted| wanted == placement) {
            gaps(placement, victims)?;
        }
    }
    Ok(())
}
