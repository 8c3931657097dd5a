//! Two and three nodes on one pool. A failure prints the command that replays it.
//!
//! | variable | what |
//! |---|---|
//! | `SEED` | only this run |
//! | `RUNS` | as many runs, for a longer search |
//! | `FIRST_SEED` | where runs begin |

#![forbid(unsafe_code)]

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use archipelago_protocol::catalogue::{CatalogueReply, CatalogueRequest};
    use archipelago_protocol::ids::Lineage;
    use archipelago_simulation::nodes::run::{Counts, run};
    use archipelago_simulation::nodes::world::World;

    /// Runs of a check; without optimisation a little of all.
    const RUNS: u64 = if cfg!(debug_assertions) { 200 } else { 15_000 };

    fn variable(name: &str) -> Option<u64> {
        std::env::var(name).ok()?.parse().ok()
    }

    fn nodes(seed: u64) -> usize {
        if seed.is_multiple_of(2) { 2 } else { 3 }
    }

    #[test]
    fn nodes_that_work_against_each_other_see_one_history() {
        let first = variable("FIRST_SEED").unwrap_or(0);
        let seeds = match variable("SEED") {
            Some(seed) => seed..seed + 1,
            None => first..first + variable("RUNS").unwrap_or(RUNS),
        };
        println!("seeds {seeds:?}");
        let next = AtomicU64::new(seeds.start);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let add = |all: &mut Counts, counts: Counts| {
            all.refused += counts.refused;
            all.checkpoints += counts.checkpoints;
            all.crashes += counts.crashes;
            all.fenced += counts.fenced;
            all.opened += counts.opened;
            all.in_use += counts.in_use;
        };
        let work = || {
            let mut all = Counts::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds.end {
                    return all;
                }
                match run(seed, nodes(seed)) {
                    Ok(counts) => add(&mut all, counts),
                    Err(what) => {
                        next.store(seeds.end, Ordering::Relaxed);
                        let test = "cargo test --release -p archipelago-simulation --test nodes";
                        panic!("{what}\nreplay: SEED={seed} {test}");
                    }
                }
            }
        };
        let mut all = Counts::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                match thread.join() {
                    Ok(counts) => add(&mut all, counts),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
        });
        println!("{all:?}");
        if variable("SEED").is_none() {
            let Counts {
                refused,
                crashes,
                fenced,
                opened,
                in_use,
                ..
            } = all;
            assert!(
                [refused, crashes, fenced, opened, in_use]
                    .iter()
                    .all(|count| *count > 10)
            );
        }
    }

    /// Calls take turns, as if each took the same time.
    #[test]
    fn a_node_that_changes_one_thing_is_not_kept_waiting_by_nodes_that_change_all_the_time() {
        for busy in 1..=3 {
            let mut world = World::new(busy + 1, 1);
            let mut lineage = 1 << 64;
            let mut create = |node: usize| {
                lineage += 1;
                let number = lineage;
                self::create(number, node)
            };
            let mut asked: Vec<u64> = Vec::new();
            for node in 0..=busy {
                let request = create(node);
                asked.push(world.nodes[node].ask(request));
            }
            let (mut done, mut late) = (0, 0);
            while late < 5 {
                world.send();
                for (node, asked) in asked.iter_mut().enumerate() {
                    let Some(reply) = world.nodes[node].answer(*asked) else {
                        continue;
                    };
                    assert!(matches!(reply, CatalogueReply::Entry(_)), "{reply:?}");
                    if node == busy {
                        late += 1;
                        // Of the busy ones, as many changes each.
                        assert!(done < 200 * busy, "{done} changes of the others before");
                        done = 0;
                    } else {
                        done += 1;
                    }
                    let request = create(node);
                    *asked = world.nodes[node].ask(request);
                }
                assert!(world.complete_first());
                assert!(done < 1000, "the last node waits for ever");
            }
        }
    }

    fn create(number: u128, node: usize) -> CatalogueRequest {
        CatalogueRequest::Create {
            name: format!("n{node}-{number}").parse().unwrap(),
            lineage: Lineage(number),
            kind: archipelago_protocol::catalogue::Kind::Volume,
            size: 512,
            object_size: archipelago_protocol::ids::ObjectSize::MIN,
            created: 0,
            on_full: archipelago_protocol::on_full::OnFull::default(),
            labels: archipelago_protocol::labels::Labels::default(),
        }
    }
}
