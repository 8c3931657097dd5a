//! Every call of the file blocker on its file system, with every fault, below the real node.

#![expect(
    clippy::tests_outside_test_module,
    reason = "an integration test is all test"
)]

use anyhow::{Result, ensure};
use archipelago_crash_tests::skip;
use archipelago_fault_tests::disk::Disk;
use archipelago_fault_tests::matrix::{cases, record, run};

/// `FAULTS_ONLY=<part of a case's name>` runs only the cases whose names contain that.
#[test]
fn every_fault_at_every_call_is_survived() -> Result<()> {
    if let Err(error) = Disk::mount() {
        return skip(&format!("a FUSE file system cannot be mounted: {error:#}"));
    }
    let wanted = std::env::var("FAULTS_ONLY").unwrap_or_default();
    let sites = record()?;
    let mut cases = cases(&sites.all);
    println!(
        "{} call sites, {} of them in every recording; {} cases",
        sites.all.len(),
        sites.always.len(),
        cases.len()
    );
    cases.retain(|(site, fault)| format!("{site} {fault}").contains(&wanted));
    let matrix = run(&cases, &sites.always);
    println!("{}", matrix.table());
    for (site, fault) in &matrix.missed {
        println!("never happened: {site} {fault}");
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
        matrix.missed.is_empty() && matrix.outcomes.len() + matrix.by_chance == cases.len(),
        "{} of {} cases were run",
        matrix.outcomes.len(),
        cases.len()
    );
    Ok(())
}
