//! All calls of a dozen volumes hang at once: their neighbour is served, and what hung is done when the disk answers.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use archipelago_bench::disk::Op;
use archipelago_crash_tests::disk::{Disk as Guest, InFlight};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::Disk;
use archipelago_fault_tests::neighbour::{NEIGHBOUR_DEADLINE, Neighbour, answers};
use archipelago_fault_tests::server::{Answer, DEADLINE, Server, wait_until};

/// More than io_uring has workers on two processors, and than the file blocker keeps threads.
const VOLUMES: usize = 12;
/// Requests of each in flight.
const SLOTS: usize = 64;
const BLOCK: usize = 4096;
/// How often the neighbour does its work meanwhile.
const ROUNDS: usize = 40;

fn done(answer: Answer) -> Result<String> {
    match answer {
        Answer::Done(text) => Ok(text),
        Answer::Refused(code, text) => bail!("{code}: {text}"),
    }
}

/// A volume in use, and the name of its directory.
fn volume(server: &Server, number: usize) -> Result<(Guest, String)> {
    let name = format!("disk-{number}");
    let create = ["--json", "volume", "create", &name, "--size", "1048576"];
    let made: serde_json::Value = serde_json::from_str(&done(server.call(&create)?)?)?;
    let lineage = made["lineage"].as_str().context("a lineage")?.to_owned();
    let socket = PathBuf::from(done(server.call(&["volume", "attach", &name])?)?);
    let guest = Guest::connect(&socket, SLOTS, BLOCK, InFlight::Tracked, DEADLINE)?;
    Ok((guest, lineage))
}

fn offset(slot: usize) -> u64 {
    (slot * BLOCK) as u64
}

fn finish(guest: &mut Guest, mut left: usize) -> Result<()> {
    while left > 0 {
        match guest.next_done()? {
            Some(done) => {
                ensure!(done.result == 0, "a request ended with {}", done.result);
                left -= 1;
            }
            None => _ = guest.wait(DEADLINE)?,
        }
    }
    Ok(())
}

fn a_dozen_hang(placement: &str) -> Result<()> {
    let disk = match Disk::mount() {
        Ok(disk) => disk,
        Err(error) => return skip(&format!("a FUSE file system cannot be mounted: {error:#}")),
    };
    let server = Server::new()?;
    let pool = disk.path().join("pool");
    let pool = pool.to_str().context("a path in UTF-8")?;
    let init = ["init", "--placement", placement, "--pool-dir", pool];
    done(server.call(&init)?)?;
    done(server.start()?)?;
    let mut neighbour = Neighbour::make(&server, &disk)?;
    let made = (0..VOLUMES).map(|number| volume(&server, number));
    let (mut guests, lineages): (Vec<Guest>, Vec<String>) =
        made.collect::<Result<Vec<_>>>()?.into_iter().unzip();
    for guest in &mut guests {
        for slot in 0..SLOTS {
            guest.submit(slot, Op::Write, offset(slot), BLOCK)?;
        }
        guest.kick()?;
        finish(guest, SLOTS)?;
        guest.run(Op::Flush, 0, 0, DEADLINE)?;
        // Something to be synced.
        guest.run(Op::Write, 0, BLOCK, DEADLINE)?;
    }
    disk.freeze(lineages);
    for guest in &mut guests {
        guest.submit(0, Op::Flush, 0, 0)?;
        for slot in 1..SLOTS {
            guest.submit(slot, Op::Write, offset(slot), BLOCK)?;
        }
        guest.kick()?;
    }
    wait_until("what hangs", || disk.held() >= VOLUMES)
        .with_context(|| format!("{} held, {:?}", disk.held(), disk.injected()))?;
    for round in 0..ROUNDS {
        let worked = neighbour.work().and_then(|()| answers(&server));
        worked.with_context(|| format!("STALLED in round {round}, {} held", disk.held()))?;
    }
    let mut shown = serde_json::Value::Null;
    wait_until("a report of the wait", || {
        let status = server.call_within(&["--json", "node", "status"], NEIGHBOUR_DEADLINE);
        if let Ok(Answer::Done(text)) = status {
            shown = serde_json::from_str(&text).unwrap_or_default();
        }
        shown["waits"][0]["seconds"].as_u64() > Some(0)
    })?;
    let volume = shown["waits"][0]["volume"].as_str().unwrap_or_default();
    ensure!(volume.starts_with("disk-"), "reported: {}", shown["waits"]);
    disk.release();
    for guest in &mut guests {
        finish(guest, SLOTS)?;
    }
    neighbour.work()?;
    drop(guests);
    done(server.stop()?)?;
    Ok(())
}

#[test]
fn a_neighbour_is_served_while_all_calls_of_a_dozen_volumes_hang_fused() -> Result<()> {
    a_dozen_hang("fused")
}

#[test]
fn a_neighbour_is_served_while_all_calls_of_a_dozen_volumes_hang_split() -> Result<()> {
    a_dozen_hang("split")
}
