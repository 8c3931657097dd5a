//! Crash images: what each crash point of a run may leave, recovered and judged.

use crate::journal::Journals;
use crate::machine::CrashPoint;
use crate::memory::MemoryPool;
use crate::oracle::Crash;
use crate::plan::{self, Op};
use crate::run::{Counters, Run};
use crate::trouble::Trouble;
use archipelago_blocker::simulated::{Random, SimulatedBackend};
use archipelago_protocol::error::ErrorCode;

/// How closely a run is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Power cuts per crash point, each with another choice of what survives.
    pub power_cuts: u64,
    /// Kills per crash point.
    pub kills: u64,
    /// One of this many images goes on for some operations and crashes again. 0: none.
    pub second_crash_of: u64,
}

impl Depth {
    /// What every change is checked with.
    pub const CHECK: Depth = Depth {
        power_cuts: 3,
        kills: 1,
        second_crash_of: 5,
    };
}

/// Looks at crash images, and counts them.
#[derive(Debug)]
pub struct Inspector {
    memory: MemoryPool,
    depth: Depth,
    /// Images recovered and judged.
    pub images: u64,
}

impl Inspector {
    /// With images as `depth` says.
    #[must_use]
    pub fn new(depth: Depth) -> Self {
        Inspector {
            memory: MemoryPool::default(),
            depth,
            images: 0,
        }
    }

    /// Runs `plan` on an empty pool, with images of every crash point.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn run(&mut self, seed: u64, plan: &[(Op, usize)]) -> Result<(), Trouble> {
        let empty = CrashPoint::empty(SimulatedBackend::new(seed));
        let mut run = Run::recover(empty, &self.memory, None, Counters::default(), seed)?;
        run.record();
        run.create();
        let mut random = Random::new(seed ^ 0x0c4a_54e5);
        let mut look = |point: CrashPoint, counters| self.look(point, counters, &mut random);
        run.advance(usize::MAX, &mut look)?;
        for (op, pause) in plan {
            run.begin(*op, &mut look)?;
            run.advance(*pause, &mut look)?;
        }
        run.advance(usize::MAX, &mut look)?;
        look(run.crash_point(), run.counters())?;
        run.begin(Op::Verify, &mut look)?;
        run.advance(usize::MAX, &mut look)
    }

    /// Runs `plan` on an empty pool with call number `call` failing with `code`. The first refusal ends the run; what is
    /// there then is recovered as after a power cut, for a failed sync may have dropped what was not durable.
    ///
    /// # Errors
    /// What contradicts the promises. That something is refused is none.
    pub fn run_with_fault(
        &mut self,
        seed: u64,
        plan: &[(Op, usize)],
        call: u64,
        code: ErrorCode,
    ) -> Result<(), Trouble> {
        let mut backend = SimulatedBackend::new(seed);
        backend.fail_call(call, code);
        let empty = CrashPoint::empty(backend);
        let mut run = match Run::recover(empty, &self.memory, None, Counters::default(), seed) {
            Ok(run) => run,
            Err(Trouble::Refused(..)) => return Ok(()),
            Err(wrong) => return Err(wrong),
        };
        let outcome = run_all(&mut run, plan);
        if let Err(wrong @ Trouble::Wrong(_)) = outcome {
            return Err(wrong);
        }
        let mut random = Random::new(seed ^ call);
        let cut = crash_with(run.crash_point(), Crash::PowerCut, &mut random);
        // A kill comes after the sessions were abandoned: until then the journals speak for data that a failed sync
        // may have dropped.
        if outcome.is_err() {
            run.abandon()?;
        }
        let kill = run.crash_point();
        let kill = CrashPoint {
            backend: kill.backend.process_kill(&mut |options| options - 1),
            journals: kill.journals.snapshot(),
            ..kill
        };
        for (crash, point) in [(Crash::PowerCut, cut), (Crash::Kill, kill)] {
            self.images += 1;
            let what = format_args!("{code:?} at backend call {call}, {outcome:?}, then {crash:?}");
            Run::recover(
                point,
                &self.memory,
                Some(Crash::PowerCut),
                run.counters(),
                seed,
            )
            .map_err(|trouble| trouble.during(what))?;
        }
        Ok(())
    }

    fn look(
        &mut self,
        point: CrashPoint,
        counters: Counters,
        random: &mut Random,
    ) -> Result<(), Trouble> {
        for number in 0..self.depth.power_cuts + self.depth.kills {
            let crash = if number < self.depth.power_cuts {
                Crash::PowerCut
            } else {
                Crash::Kill
            };
            let again =
                self.depth.second_crash_of > 0 && random.below(self.depth.second_crash_of) == 0;
            let image = random.next_u64();
            let calls = point.backend.calls();
            self.image(point.clone(), counters, crash, again, image)
                .map_err(|trouble| {
                    trouble.during(format_args!(
                        "{crash:?} at backend call {calls}, image {image:#x}"
                    ))
                })?;
        }
        Ok(())
    }

    fn image(
        &mut self,
        point: CrashPoint,
        counters: Counters,
        crash: Crash,
        again: bool,
        seed: u64,
    ) -> Result<(), Trouble> {
        let mut random = Random::new(seed);
        let point = crash_with(point, crash, &mut random);
        self.images += 1;
        let mut run = Run::recover(point, &self.memory, Some(crash), counters, seed)?;
        if !again {
            return Ok(());
        }
        // Goes on from there, and crashes at one of the calls that it makes.
        run.record();
        let mut points = Vec::new();
        let mut keep = |point: CrashPoint, counters| {
            points.push((point, counters));
            Ok(())
        };
        let plan = plan::random(&mut random, 4);
        for (op, pause) in &plan {
            run.begin(*op, &mut keep)?;
            run.advance(*pause, &mut keep)?;
        }
        run.begin(Op::Verify, &mut keep)?;
        run.advance(usize::MAX, &mut keep)?;
        for _ in 0..2.min(points.len()) {
            let chosen = usize::try_from(random.below(points.len() as u64)).expect("an index");
            let (point, counters) = points[chosen].clone();
            let calls = point.backend.calls();
            let crash = if random.below(3) == 0 {
                Crash::Kill
            } else {
                Crash::PowerCut
            };
            self.image(point, counters, crash, false, random.next_u64())
                .map_err(|trouble| {
                    trouble.during(format_args!(
                        "{crash:?} again at call {calls} after {plan:?}"
                    ))
                })?;
        }
        Ok(())
    }
}

fn run_all(run: &mut Run, plan: &[(Op, usize)]) -> Result<(), Trouble> {
    let mut ignore = |_point, _counters| Ok(());
    run.create();
    run.advance(usize::MAX, &mut ignore)?;
    for (op, pause) in plan {
        run.begin(*op, &mut ignore)?;
        run.advance(*pause, &mut ignore)?;
    }
    run.advance(usize::MAX, &mut ignore)
}

fn crash_with(point: CrashPoint, crash: Crash, random: &mut Random) -> CrashPoint {
    // All lost, all kept, or anything between; most bugs show at the ends.
    let lost = [0, 1, 4, 7, 8][usize::try_from(random.below(5)).expect("small")];
    let mut chooser = |options: usize| {
        if random.below(8) < lost {
            0
        } else {
            options
                - 1
                - usize::try_from(random.below(2))
                    .expect("small")
                    .min(options - 1)
        }
    };
    match crash {
        // Its own journals: the same point may be looked at again.
        Crash::Kill => CrashPoint {
            backend: point.backend.process_kill(&mut chooser),
            journals: point.journals.snapshot(),
            ..point
        },
        Crash::PowerCut => CrashPoint {
            backend: point.backend.power_cut(&mut chooser),
            journals: Journals::default(),
            ..point
        },
    }
}
