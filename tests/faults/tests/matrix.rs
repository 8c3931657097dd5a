//! The fault matrix of the file blocker, below the real node.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_fault_tests::matrix::{cases, record, run};

#[test]
fn every_fault_at_every_call_is_survived() -> Result<()> {
    let began = std::time::Instant::now();
    let sites = record()?;
    let wanted = std::env::var("FAULTS_ONLY").unwrap_or_default();
    let mut cases = cases(&sites);
    println!("{} sites, {} cases", sites.len(), cases.len());
    cases.retain(|(site, fault)| format!("{site} {fault}").contains(&wanted));
    let matrix = run(&cases);
    for ((site, fault), outcome) in &matrix.outcomes {
        println!("{site} {fault} {outcome:?}");
    }
    for missed in &matrix.missed {
        println!("MISSED {} {}", missed.0, missed.1);
    }
    for failure in &matrix.failures {
        println!("FAILED {failure}");
    }
    println!(
        "{} cases in {} lives, {} failures, {} missed, {:?}",
        matrix.outcomes.len(),
        matrix.lives,
        matrix.failures.len(),
        matrix.missed.len(),
        began.elapsed()
    );
    ensure!(matrix.failures.is_empty() && matrix.missed.is_empty());
    Ok(())
}
