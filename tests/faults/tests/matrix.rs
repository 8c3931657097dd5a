//! Every call of the file blocker on its file system, with every fault, below the real node.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, ensure};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::Disk;
use archipelago_fault_tests::life::Placement;
use archipelago_fault_tests::matrix::{
    Case, Matrix, cases, hang, hanging_cases, main_cases, record, run,
};

/// Taken by a matrix: two at once only keep each other waiting.
static MATRIX: Mutex<()> = Mutex::new(());

/// Whether there can be a disk that fails.
fn can_mount() -> Result<bool> {
    if let Err(error) = Disk::mount() {
        skip(&format!("a FUSE file system cannot be mounted: {error:#}"))?;
        return Ok(false);
    }
    Ok(true)
}

/// `FAULTS_ONLY=<part of a case's name>` runs only the cases whose names contain that.
fn is_wanted(case: &Case) -> bool {
    let wanted = std::env::var("FAULTS_ONLY").unwrap_or_default();
    format!("{} {}", case.0, case.1).contains(&wanted)
}

#[expect(clippy::print_stdout, reason = "the report of a test")]
fn check_matrix(matrix: &Matrix, cases: usize) -> Result<()> {
    println!("{}", matrix.table());
    for (site, fault) in &matrix.missed {
        println!("never happened: {site} {fault}");
    }
    for late in &matrix.disturbed {
        println!("late, and not when lived again alone: {late}");
    }
    for failure in &matrix.failures {
        println!("failed: {failure}replay with FAULTS_ONLY='<one of these>'\n");
    }
    println!("{}", matrix.summary());
    ensure!(
        matrix.failures.is_empty(),
        "{} lives failed",
        matrix.failures.len()
    );
    ensure!(
        matrix.missed.is_empty() && matrix.outcomes.len() + matrix.by_chance == cases,
        "{} of {cases} cases were run",
        matrix.outcomes.len()
    );
    Ok(())
}

#[test]
fn every_fault_at_every_call_is_survived() -> Result<()> {
    if !can_mount()? {
        return Ok(());
    }
    let _alone = MATRIX.lock().unwrap_or_else(PoisonError::into_inner);
    let sites = record(Placement::Fused)?;
    let mut cases = cases(&sites.all);
    cases.extend(main_cases(&sites.last));
    println!(
        "{} call sites, {} of them in every recording, {} called several times; {} cases",
        sites.all.len(),
        sites.always.len(),
        sites.last.len(),
        cases.len()
    );
    cases.retain(is_wanted);
    let matrix = run(Placement::Fused, &cases, &sites.always);
    check_matrix(&matrix, cases.len())
}

#[test]
fn a_call_that_fails_or_does_not_return_is_survived_in_split_placement() -> Result<()> {
    if !can_mount()? {
        return Ok(());
    }
    let _alone = MATRIX.lock().unwrap_or_else(PoisonError::into_inner);
    let sites = record(Placement::Split)?;
    let mut cases = main_cases(&sites.all);
    cases.retain(is_wanted);
    let matrix = run(Placement::Split, &cases, &sites.always);
    check_matrix(&matrix, cases.len())
}

#[test]
fn while_a_call_does_not_return_whoever_waits_is_told_and_the_node_can_be_stopped() -> Result<()> {
    if !can_mount()? {
        return Ok(());
    }
    // Side by side: it is all waiting.
    let lived = std::thread::scope(|scope| {
        [Placement::Fused, Placement::Split]
            .map(|placement| scope.spawn(move || stop_and_start(placement)))
            .map(|thread| thread.join().expect("no thread panics"))
    });
    lived.into_iter().collect()
}

fn stop_and_start(placement: Placement) -> Result<()> {
    let sites: BTreeSet<_> = record(placement)?.always;
    let mut cases = hanging_cases(&sites);
    cases.retain(is_wanted);
    check_matrix(&hang(placement, &cases), cases.len())
}
