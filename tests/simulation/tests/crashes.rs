//! Crash images in numbers. A failure prints the command that replays it.
//!
//! | variable | what |
//! |---|---|
//! | `SEED` | only this run of the random ones, with more images |
//! | `STEPS` | operations in a random run |
//! | `SEQUENCE` | only this one of the enumerated ones |
//! | `RUNS` | random runs, for a longer search |

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use archipelago_blocker::simulated::Random;
    use archipelago_protocol::error::ErrorCode;
    use archipelago_simulation::crashes::{Depth, Inspector};
    use archipelago_simulation::plan;

    /// Images that a check takes at least: 26 s with optimisation, so fewer without.
    const IMAGES_MIN: u64 = if cfg!(debug_assertions) {
        5_000
    } else {
        100_000
    };

    fn variable<T: FromStr>(name: &str) -> Option<T> {
        std::env::var(name).ok()?.parse().ok()
    }

    fn random_run(seed: u64, steps: usize, depth: Depth) -> u64 {
        let mut inspector = Inspector::new(depth);
        let plan = plan::random(&mut Random::new(seed), steps);
        if let Err(what) = inspector.run(seed, &plan) {
            let replay = format!(
                "SEED={seed} STEPS={steps} cargo test --release -p archipelago-simulation random"
            );
            panic!("{what}\nplan: {plan:?}\nreplay: {replay}");
        }
        inspector.images
    }

    #[test]
    fn random_runs_keep_the_promises_after_a_crash_at_every_call() {
        let steps = variable("STEPS").unwrap_or(20);
        if let Some(seed) = variable("SEED") {
            println!("{} images", random_run(seed, steps, Depth::CHECK));
            return;
        }
        let runs = variable("RUNS").unwrap_or(u64::MAX);
        let mut images = 0;
        for seed in 0..runs {
            images += random_run(seed, steps, Depth::CHECK);
            if runs == u64::MAX && images >= IMAGES_MIN {
                break;
            }
        }
        println!("{images} images");
    }

    #[test]
    fn a_failure_of_any_call_is_survived() {
        let codes = [
            ErrorCode::Io,
            ErrorCode::SyncFailed,
            ErrorCode::NoSpace,
            ErrorCode::Unavailable,
        ];
        let mut inspector = Inspector::new(Depth::CHECK);
        let only = variable("SEED");
        for seed in only.map_or(0..40, |only| only..only + 1) {
            let plan = plan::random(&mut Random::new(seed), 12);
            for call in 1..60_u64 {
                let code = codes[usize::try_from((seed + call) % 4).expect("small")];
                if let Err(what) = inspector.run_with_fault(seed, &plan, call, code) {
                    let test =
                        "cargo test --release -p archipelago-simulation a_failure_of_any_call";
                    panic!("{what}\nplan: {plan:?}\nreplay: SEED={seed} {test}");
                }
            }
        }
        println!("{} images", inspector.images);
    }

    #[test]
    fn every_short_sequence_keeps_the_promises_after_a_crash_at_every_call() {
        let only: Option<usize> = variable("SEQUENCE");
        let len = variable("LENGTH").unwrap_or(3);
        let depth = Depth {
            power_cuts: 1,
            kills: 1,
            second_crash_of: 0,
        };
        let mut inspector = Inspector::new(depth);
        for number in only.map_or(0..usize::MAX, |only| only..only + 1) {
            let Some(plan) = plan::nth(len, number) else {
                break;
            };
            if let Err(what) = inspector.run(number as u64, &plan) {
                let test = "cargo test --release -p archipelago-simulation every_short";
                panic!("{what}\nplan: {plan:?}\nreplay: SEQUENCE={number} LENGTH={len} {test}");
            }
        }
        println!("{} images", inspector.images);
    }
}
