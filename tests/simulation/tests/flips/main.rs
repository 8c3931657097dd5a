//! A bit of every byte of every metadata object of a small pool, flipped one at a time: a check reports it by the object's name, what
//! needs it refuses, and nothing else is ever served. What may change unnoticed is listed in `free`. Besides, the sectors of
//! the last batch of each log that is replayed, garbled in several ways: as no torn append leaves them.
//!
//! | variable | what |
//! |---|---|
//! | `FLIP` | only this one: an object as it is printed, a colon, the bit |
//! | `FLIPS` | `all`: every bit |
//!
//! Of heads, packs and what logs hold every seventh bit: one of each byte, and of eight bytes in a row each place in the byte.
//! Of log space that holds nothing, where all bits are alike: the same where a batch would begin, and every 61st bit elsewhere.
//! Without optimisation every 1009th of these only.

#![forbid(unsafe_code)]

#[cfg(test)]
mod free;
#[cfg(test)]
mod repairs;
#[cfg(test)]
mod world;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use archipelago_doubles::SimulatedBackend;
    use archipelago_protocol::check::{FindingKind, Report};
    use archipelago_protocol::error::ErrorCode;
    use archipelago_protocol::ids::Lineage;
    use archipelago_protocol::object::{ObjectId, ObjectKind};
    use xseg::Region;

    use crate::free::{self, Free, SECTOR};
    use crate::world::{IMAGE, Served, World, small_pool};

    /// Bits from one flip to the next. It is odd, so all places in a byte are reached.
    const STEP: usize = if cfg!(debug_assertions) { 1009 } else { 7 };
    /// The same in log space that holds nothing.
    const EMPTY_STEP: usize = if cfg!(debug_assertions) {
        61 * 1009
    } else {
        61
    };
    const THREADS: usize = 2;

    /// As the mapper calls it.
    fn name_of(id: ObjectId) -> String {
        let owner = match id.lineage {
            Lineage::CATALOGUE => "the catalogue".to_owned(),
            lineage => lineage.to_string(),
        };
        match id.kind {
            ObjectKind::Head => format!("head of {owner}"),
            ObjectKind::Log => format!("log {} of {owner}", id.number),
            ObjectKind::Pack => format!("pack {} of {owner}", id.number),
            other => panic!("{other:?} is no metadata"),
        }
    }

    /// What became of a flip.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Fate {
        /// Refused where it is needed, reported by the check; both name the object.
        Refused,
        /// The check says that it is damaged; nothing needs it now.
        Reported,
        /// Nobody notices, and nobody needs to.
        Free(free::Reason),
    }

    struct Pool {
        backend: SimulatedBackend,
        region: Region,
        served: Served,
        report: Report,
        free: BTreeMap<ObjectId, Free>,
    }

    impl Pool {
        fn new() -> Pool {
            let backend = small_pool();
            let region = Region::anonymous(256 << 10).unwrap();
            let served = World::started(backend.clone(), region.clone()).serve();
            let report = World::on(backend.clone(), region.clone()).checked(false);
            let free = free::of(&backend);
            Pool {
                backend,
                region,
                served,
                report,
                free,
            }
        }

        fn flip(&self, id: ObjectId, bit: usize) -> Result<Fate, String> {
            let mut flipped = self.backend.clone();
            flipped.flip(id, bit as u64 / 8, 1 << (bit % 8));
            self.fate_of(flipped, id, bit / 8)
        }

        /// What becomes of the pool after its object was damaged at this byte.
        fn fate_of(
            &self,
            flipped: SimulatedBackend,
            id: ObjectId,
            at: usize,
        ) -> Result<Fate, String> {
            let name = name_of(id);
            let damaged = flipped.bytes(id);
            let mut checker = World::on(flipped.clone(), self.region.clone());
            let report = checker.checked(false);
            if checker.backend.bytes(id) != damaged {
                return Err("the check wrote to it".to_owned());
            }
            let mut server = World::started(flipped, self.region.clone());
            let served = server.serve();
            let mut refused = false;
            let mut different = Vec::new();
            for (lineage, expected) in &self.served {
                // Without a catalogue nothing is served.
                let found = served
                    .get(lineage)
                    .or_else(|| served.get(&Lineage::CATALOGUE));
                match found {
                    Some(Err((ErrorCode::Damaged, why))) if why.contains(&name) => refused = true,
                    Some(Err((code, why))) => return Err(format!("{lineage}: {code:?} {why}")),
                    Some(Ok(_)) if served.get(lineage) == Some(expected) => {}
                    _ => different.push(*lineage),
                }
            }
            if served
                .keys()
                .any(|lineage| *lineage != Lineage::CATALOGUE && !self.served.contains_key(lineage))
            {
                return Err(format!("something else is served: {served:?}"));
            }
            if refused && server.backend.bytes(id) != damaged {
                return Err("it was refused, and then written".to_owned());
            }
            let finding = report
                .findings
                .iter()
                .find(|finding| finding.message.contains(&name));
            let kind = finding.map(|finding| finding.kind);
            let free = &self.free[&id];
            match (refused, kind.is_some_and(FindingKind::is_damage), kind) {
                (true, true, _) if different.is_empty() => Ok(Fate::Refused),
                (false, true, _) if different.is_empty() && !free.is_replayed(at) => {
                    Ok(Fate::Reported)
                }
                (false, false, None) if different.is_empty() && report == self.report => {
                    match free.reason(at) {
                        Some(reason) => Ok(Fate::Free(reason)),
                        None => Err("nobody notices".to_owned()),
                    }
                }
                _ => Err(format!(
                    "refused {refused}, served otherwise {different:?}, {report:?}"
                )),
            }
        }
    }

    type Fates = BTreeMap<(String, Fate), u64>;

    fn fate_of(pool: &Pool, id: ObjectId, bit: usize) -> Fate {
        let outcome = catch_unwind(AssertUnwindSafe(|| pool.flip(id, bit)));
        let failed = |why: &str| {
            let flip = format!("{}:{bit}", name_of(id));
            panic!(
                "{flip}: {why}\nreplay: FLIP='{flip}' cargo test --release -p archipelago-simulation --test flips"
            )
        };
        match outcome {
            Ok(Ok(fate)) => fate,
            Ok(Err(why)) => failed(&why),
            Err(_panic) => failed("it panics"),
        }
    }

    fn part(thread: usize) -> Fates {
        let pool = Pool::new();
        let mut fates = Fates::new();
        let all = std::env::var("FLIPS").is_ok_and(|flips| flips == "all");
        for (id, free) in &pool.free {
            let bits = pool.backend.bytes(*id).unwrap().len() * 8;
            let chosen = (0..bits).filter(|bit| {
                let step = match free.is_empty_space(bit / 8) {
                    _ if all => 1,
                    true => EMPTY_STEP,
                    false => STEP,
                };
                bit % step == 0
            });
            for bit in chosen.skip(thread).step_by(THREADS) {
                let fate = fate_of(&pool, *id, bit);
                *fates.entry((name_of(*id), fate)).or_default() += 1;
            }
            println!("thread {thread}: {}", name_of(*id));
        }
        fates
    }

    #[test]
    fn a_flipped_bit_of_any_byte_is_reported_and_refused_or_provably_free() {
        let pool = Pool::new();
        println!("{:?}", pool.report);
        assert!(pool.report.clean, "{:?}", pool.report);
        assert!(pool.served.values().all(Result::is_ok), "{:?}", pool.served);
        assert_eq!(pool.served.len(), 5);
        if let Ok(flip) = std::env::var("FLIP") {
            let (name, bit) = flip.rsplit_once(':').expect("object:bit");
            let id = pool.free.keys().find(|id| name_of(**id) == name);
            let fate = fate_of(&pool, *id.expect("an object"), bit.parse().unwrap());
            println!("{flip}: {fate:?}");
            return;
        }
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| std::thread::spawn(move || part(thread)))
            .collect();
        let mut all = Fates::new();
        for thread in threads {
            for (key, count) in thread.join().expect("a flip was noticed by nobody") {
                *all.entry(key).or_default() += count;
            }
        }
        let mut kinds: BTreeMap<Fate, u64> = BTreeMap::new();
        for ((name, fate), count) in &all {
            println!("{count:>8} bits of {name}: {fate:?}");
            *kinds.entry(*fate).or_default() += count;
            // An image is found through the catalogue; its head was needed while it was filled.
            let fit = match name == &name_of(ObjectId::head(IMAGE)) {
                true => Fate::Reported,
                false => Fate::Refused,
            };
            let of_head = name.starts_with("head");
            assert!(!of_head || *fate == fit, "{name}: {fate:?}");
        }
        println!("{} flips: {kinds:?}", kinds.values().sum::<u64>());
        for fate in [Fate::Refused, Fate::Reported] {
            assert!(kinds.contains_key(&fate), "no flip was {fate:?}: {kinds:?}");
        }
    }

    /// Ways to garble a sector of a log, and what is there then.
    fn garbled(log: &[u8], at: usize) -> [(&'static str, Vec<u8>); 5] {
        let sector = &log[at..at + SECTOR];
        let next = (at + SECTOR) % log.len();
        // Nobody's bytes: the sector's own, drawn through a generator.
        let mut state = at as u64 + 1;
        let random = sector.iter().map(|byte| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            byte ^ (state >> 56) as u8
        });
        [
            ("random bytes", random.collect()),
            ("zeros", vec![0; SECTOR]),
            ("ones", vec![0xff; SECTOR]),
            ("its neighbour", log[next..next + SECTOR].to_vec()),
            (
                "its bytes moved by one",
                [&sector[1..], &sector[..1]].concat(),
            ),
        ]
    }

    #[test]
    fn the_last_batch_of_a_log_is_refused_if_a_sector_of_it_is_garbled() {
        let pool = Pool::new();
        let mut rounds = 0;
        for (id, free) in &pool.free {
            let Some(last) = free.last_batch.clone() else {
                continue;
            };
            let log = pool.backend.bytes(*id).unwrap();
            for at in last.clone().step_by(SECTOR) {
                for (how, bytes) in garbled(&log, at) {
                    let mut backend = pool.backend.clone();
                    for (offset, new) in (at..).zip(&bytes) {
                        backend.flip(*id, offset as u64, log[offset] ^ new);
                    }
                    let fate = pool.fate_of(backend, *id, at);
                    let what = format!("{how} at byte {at} of {}", name_of(*id));
                    assert_eq!(fate, Ok(Fate::Refused), "{what}");
                    rounds += 1;
                }
            }
        }
        println!("{rounds} garbled sectors");
        assert!(
            rounds >= 2 * 8 * 5,
            "the catalogue and the clone have a log each"
        );
    }
}
