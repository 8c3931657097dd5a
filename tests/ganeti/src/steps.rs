//! Steps of a scenario: named, timed, and with the logs if one fails.

use anyhow::{Context, Result};
use archipelago_bench::waiting::now;

use crate::cluster::Cluster;

/// One step of the scenario on `cluster`: prints `name` and how long it took.
///
/// # Errors
/// Those of `does`, with the step's name; the ends of the logs are printed.
pub fn step<T>(cluster: &Cluster, name: &str, does: impl FnOnce() -> Result<T>) -> Result<T> {
    let began = now();
    let done = does();
    let seconds = began.elapsed().as_secs_f64();
    match &done {
        Ok(_) => eprintln!("  ok     {seconds:5.1} s  {name}"),
        Err(error) => eprintln!(
            "  FAILED {seconds:5.1} s  {name}: {error:#}\n{}",
            cluster.logs()
        ),
    }
    done.with_context(|| name.to_owned())
}
