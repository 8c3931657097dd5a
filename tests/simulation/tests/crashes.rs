//! Crash images in numbers. A failure prints the command that replays it.
//!
//! | variable | what |
//! |---|---|
//! | `SEED` | only this run of the random ones |
//! | `STEPS` | operations in a random run |
//! | `SEQUENCE` | only this one of the enumerated ones: letters of the alphabet, with commas between |
//! | `LENGTH` | of the enumerated ones, at most |
//! | `IMAGES` | images to be taken at least, for a longer search |
//! | `FIRST_SEED` | where random runs begin, and how enumerated ones interleave |
//! | `THREADS` | that look at images together; otherwise one for each processor |

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::str::FromStr;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    use archipelago_doubles::simulated::Random;
    use archipelago_protocol::error::ErrorCode;
    use archipelago_simulation::crashes::{Depth, Inspector};
    use archipelago_simulation::plan::{self, ALPHABET, Op};

    /// Without optimisation a check looks at a little of all.
    const SMALL: bool = cfg!(debug_assertions);
    /// Images of a check at least; whatever the enumeration does not give comes from random runs.
    const IMAGES_MIN: u64 = if SMALL { 5_000 } else { 1_000_000 };
    /// Of these, from random runs at least.
    const RANDOM_MIN: u64 = if SMALL { 2_000 } else { 150_000 };
    /// Images of a pool whose completed writes are durable, at least.
    const DURABLE_MIN: u64 = if SMALL { 1_000 } else { 100_000 };
    /// Plans in which each of the first calls fails: at 40, a snapshot that lacked acknowledged writes was not found.
    const SEEDS_WITH_A_FAILURE: u64 = 400;
    /// Letters of the longest enumerated sequences.
    const LENGTH: usize = if SMALL { 2 } else { 4 };
    /// Random runs that found something, beyond those that a check comes to.
    const FOUND: [u64; 9] = [22, 253, 356, 393, 483, 499, 745, 1834, 2032];
    /// Images between two lines of progress.
    const PROGRESS: u64 = 100_000;

    fn variable<T: FromStr>(name: &str) -> Option<T> {
        std::env::var(name).ok()?.parse().ok()
    }

    /// What the threads of a check share.
    #[derive(Default)]
    struct Search {
        images: AtomicU64,
        random: AtomicU64,
        sequences: AtomicU64,
        next: AtomicUsize,
        stop: AtomicBool,
        failures: Mutex<Vec<String>>,
    }

    impl Search {
        fn count(&self, images: u64) {
            let before = self.images.fetch_add(images, Ordering::Relaxed);
            if before / PROGRESS != (before + images) / PROGRESS {
                println!("{} images, no promise broken", before + images);
            }
        }

        fn fail(&self, what: String) {
            self.stop.store(true, Ordering::Relaxed);
            self.failures
                .lock()
                .expect("no panic while it was held")
                .push(what);
        }

        fn stopped(&self) -> bool {
            self.stop.load(Ordering::Relaxed)
        }

        /// Does `work` with numbers from 0 on, in all threads, until it says that there are no more.
        fn share(&self, work: impl Fn(usize) -> bool + Sync) {
            self.next.store(0, Ordering::Relaxed);
            let one = std::thread::available_parallelism().map_or(1, usize::from);
            let threads = variable("THREADS").unwrap_or(one);
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| {
                        while !self.stopped() && work(self.next.fetch_add(1, Ordering::Relaxed)) {}
                    });
                }
            });
        }

        fn finish(self, what: &str) {
            let failures = self.failures.into_inner().expect("all threads ended");
            let images = self.images.into_inner();
            assert!(
                failures.is_empty(),
                "{what}\nfound after {images} images\n{}",
                failures.join("\n")
            );
            println!("{what}: {images} images, no promise broken");
        }

        /// `letters` and every longer sequence that begins with them, as far as each letter has something to do.
        fn enumerate(
            &self,
            inspector: &mut Inspector,
            letters: &mut Vec<usize>,
            seed: u64,
            len: usize,
        ) {
            if self.stopped() {
                return;
            }
            let plan = plan::spelled(letters, seed);
            let before = inspector.images;
            let extended = inspector.extend(seed, &plan);
            self.count(inspector.images - before);
            self.sequences.fetch_add(1, Ordering::Relaxed);
            match extended {
                Ok(false) => {}
                Ok(true) if letters.len() >= len => {}
                Ok(true) => {
                    for letter in 0..ALPHABET.len() {
                        letters.push(letter);
                        self.enumerate(inspector, letters, seed, len);
                        letters.pop();
                    }
                }
                Err(what) => {
                    let spelled: Vec<String> = letters.iter().map(usize::to_string).collect();
                    let test =
                        "cargo test --release -p archipelago-simulation every_short -- --nocapture";
                    let replay = format!("SEQUENCE={} FIRST_SEED={seed} {test}", spelled.join(","));
                    self.fail(format!("{what}\nplan: {plan:?}\nreplay: {replay}"));
                }
            }
        }

        fn random_run(&self, seed: u64, steps: usize) {
            let mut inspector = Inspector::new(Depth::RANDOM);
            let plan = plan::random(&mut Random::new(seed), steps);
            let result = inspector.run(seed, &plan);
            self.count(inspector.images);
            self.random.fetch_add(inspector.images, Ordering::Relaxed);
            if let Err(what) = result {
                let test = "cargo test --release -p archipelago-simulation random -- --nocapture";
                let replay = format!("SEED={seed} STEPS={steps} {test}");
                self.fail(format!("{what}\nplan: {plan:?}\nreplay: {replay}"));
            }
        }
    }

    /// Both kinds in one test: their threads would take turns otherwise.
    #[test]
    fn every_short_sequence_and_random_ones_keep_the_promises_after_a_crash_at_every_call() {
        let search = Search::default();
        let first = variable("FIRST_SEED").unwrap_or(0);
        let steps = variable("STEPS").unwrap_or(20);
        if let Some(seed) = variable("SEED") {
            search.random_run(seed, steps);
            return search.finish("one run");
        }
        if let Some(sequence) = variable::<String>("SEQUENCE") {
            let letters = sequence
                .split(',')
                .map(|letter| letter.parse().expect("a number"));
            let mut letters: Vec<usize> = letters.collect();
            let (mut inspector, len) = (Inspector::new(Depth::ENUMERATED), letters.len());
            search.enumerate(&mut inspector, &mut letters, first, len);
            return search.finish("one sequence");
        }
        for seed in FOUND {
            search.random_run(seed, 20);
        }
        let len = variable("LENGTH").unwrap_or(LENGTH);
        let letters = ALPHABET.len();
        search.share(|number| {
            // One after another, so that both ends of a small count are the same sequences everywhere.
            let Some(second) = number.checked_rem(letters) else {
                return false;
            };
            if number >= letters * letters || len == 0 {
                return false;
            }
            let mut inspector = Inspector::new(Depth::ENUMERATED);
            let mut sequence = vec![number / letters];
            if second == 0 {
                search.enumerate(&mut inspector, &mut sequence, first, 1);
            }
            if len > 1 {
                sequence.push(second);
                search.enumerate(&mut inspector, &mut sequence, first, len);
            }
            true
        });
        let sequences = search.sequences.load(Ordering::Relaxed);
        let images = search.images.load(Ordering::Relaxed);
        println!("{sequences} sequences of up to {len} operations: {images} images");
        let (images_min, random_min) = match variable("IMAGES") {
            Some(images) => (images, 0),
            None => (IMAGES_MIN, RANDOM_MIN),
        };
        search.share(|number| {
            search.random_run(first + number as u64, steps);
            search.random.load(Ordering::Relaxed) < random_min
                || search.images.load(Ordering::Relaxed) < images_min
        });
        search.finish("in all");
    }

    #[test]
    fn a_pool_whose_writes_are_durable_keeps_the_promises_without_a_sync() {
        let search = Search::default();
        let only = variable("SEED");
        let first = only.or(variable("FIRST_SEED")).unwrap_or(0);
        let images_min = variable("IMAGES").unwrap_or(DURABLE_MIN);
        search.share(|number| {
            let seed = first + number as u64;
            let mut inspector = Inspector::new(Depth::RANDOM).of_durable_pools();
            let plan = plan::random(&mut Random::new(seed), 20);
            let result = inspector.run(seed, &plan);
            search.count(inspector.images);
            if let Err(what) = result {
                let test = "cargo test --release -p archipelago-simulation durable -- --nocapture";
                search.fail(format!(
                    "{what}\nplan: {plan:?}\nreplay: SEED={seed} {test}"
                ));
            }
            only.is_none() && search.images.load(Ordering::Relaxed) < images_min
        });
        search.finish("durable pools");
    }

    #[test]
    fn a_failure_of_any_call_is_survived() {
        fail_each_call(SEEDS_WITH_A_FAILURE, || Inspector::new(Depth::RANDOM));
    }

    #[test]
    fn a_failure_of_any_call_to_a_durable_pool_is_survived() {
        fail_each_call(SEEDS_WITH_A_FAILURE / 4, || {
            Inspector::new(Depth::RANDOM).of_durable_pools()
        });
    }

    /// Plans of so many seeds, in which each of the first calls fails.
    fn fail_each_call(seeds: u64, inspector: impl Fn() -> Inspector) {
        let codes = [
            ErrorCode::Io,
            ErrorCode::SyncFailed,
            ErrorCode::NoSpace,
            ErrorCode::Unavailable,
        ];
        let mut inspector = inspector();
        let only = variable("SEED");
        for seed in only.map_or(0..seeds, |only| only..only + 1) {
            // One failure at a time: two that meet are the matter of the random runs.
            let mut plan = plan::random(&mut Random::new(seed), 12);
            plan.retain(|(op, _)| {
                !matches!(op, Op::FailedSync { .. } | Op::MapperDeath | Op::TakeOver)
            });
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
}
