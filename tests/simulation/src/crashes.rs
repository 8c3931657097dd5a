//! Crash images: what each crash point of a run may leave, recovered and checked.

use archipelago_doubles::simulated::{Random, SimulatedBackend};
use archipelago_protocol::error::ErrorCode;

use crate::journal;
use crate::machine::CrashPoint;
use crate::memory::MemoryPool;
use crate::oracle::Crash;
use crate::plan::{self, Op};
use crate::run::{Counters, Look, Run};
use crate::trouble::Trouble;

/// How closely a run is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Depth {
    /// Images per crash point, each with another choice of what survives.
    pub images: u64,
    /// One of this many is a kill, the others are power cuts.
    pub kill_of: u64,
    /// One of this many crashes again while it recovers. 0: none.
    pub recovery_of: u64,
    /// One of this many goes on for some operations and crashes again. 0: none.
    pub second_run_of: u64,
}

impl Depth {
    /// For random runs.
    pub const RANDOM: Depth = Depth {
        images: 3,
        kill_of: 4,
        recovery_of: 8,
        second_run_of: 8,
    };
    /// For enumerated ones, which are many.
    pub const ENUMERATED: Depth = Depth {
        images: 1,
        kill_of: 3,
        recovery_of: 16,
        second_run_of: 0,
    };
}

/// Looks at crash images, and counts them.
#[derive(Debug)]
pub struct Inspector {
    memory: MemoryPool,
    depth: Depth,
    /// Completed writes are durable.
    durable: bool,
    /// Images recovered and checked.
    pub images: u64,
}

fn nothing(_point: CrashPoint, _counters: Counters) -> Result<(), Trouble> {
    Ok(())
}

impl Inspector {
    /// With images as `depth` says.
    #[must_use]
    pub fn new(depth: Depth) -> Self {
        Inspector {
            memory: MemoryPool::default(),
            depth,
            durable: false,
            images: 0,
        }
    }

    /// The same, of pools whose completed writes are durable.
    #[must_use]
    pub fn of_durable_pools(mut self) -> Self {
        self.durable = true;
        self
    }

    fn backend(&self, seed: u64) -> SimulatedBackend {
        let backend = SimulatedBackend::new(seed);
        match self.durable {
            true => backend.durable(),
            false => backend,
        }
    }

    fn on_empty_pool(&self, backend: SimulatedBackend, seed: u64) -> Result<Run, Trouble> {
        let empty = CrashPoint::empty(backend);
        let mut run = Run::start(empty, &self.memory, Counters::default(), seed);
        run.settle(&mut nothing)?;
        Ok(run)
    }

    /// Runs `plan` on an empty pool, with images of every crash point.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn run(&mut self, seed: u64, plan: &[(Op, usize)]) -> Result<(), Trouble> {
        let mut run = self.on_empty_pool(self.backend(seed), seed)?;
        run.record();
        run.create();
        let mut random = Random::new(seed ^ 0x0c4a_54e5);
        let mut look = |point: CrashPoint, counters| self.look(&point, counters, &mut random);
        run.advance(usize::MAX, &mut look)?;
        for (op, pause) in plan {
            run.begin(*op, &mut look)?;
            run.advance(*pause, &mut look)?;
        }
        run.finish(&mut look)
    }

    /// Runs `plan` on an empty pool, with images of the crash points that its last operation adds: those before are the
    /// crash points of shorter plans. `false`: the last operation had nothing to do.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn extend(&mut self, seed: u64, plan: &[(Op, usize)]) -> Result<bool, Trouble> {
        let mut run = self.on_empty_pool(self.backend(seed), seed)?;
        run.create();
        run.advance(usize::MAX, &mut nothing)?;
        let Some(((last, _), before)) = plan.split_last() else {
            return Ok(true);
        };
        for (op, pause) in before {
            run.begin(*op, &mut nothing)?;
            run.advance(*pause, &mut nothing)?;
        }
        run.make_way(*last, &mut nothing)?;
        run.record();
        if !run.start_op(*last)? {
            return Ok(false);
        }
        let mut random = Random::new(seed ^ 0x0c4a_54e5);
        let mut look = |point: CrashPoint, counters| self.look(&point, counters, &mut random);
        run.finish(&mut look)?;
        Ok(true)
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
        let mut backend = self.backend(seed);
        backend.fail_call(call, code);
        let mut run = match self.on_empty_pool(backend, seed) {
            Ok(run) => run,
            Err(Trouble::Refused(..)) => return Ok(()),
            Err(wrong) => return Err(wrong),
        };
        let outcome = run_all(&mut run, plan);
        if let Err(wrong @ Trouble::Wrong(_)) = outcome {
            return Err(wrong);
        }
        let mut random = Random::new(seed ^ call);
        let cut = crash_with(&run.crash_point(), Crash::PowerCut, &mut random);
        // A kill comes after the sessions were abandoned: until then the journals speak for data that a failed sync
        // may have dropped.
        if outcome.is_err() {
            run.abandon()?;
        }
        let mut kill = run.crash_point();
        kill.backend = kill.backend.process_kill(&mut |options| options - 1);
        kill.oracle.crash(Crash::PowerCut);
        for (crash, point) in [(Crash::PowerCut, cut), (Crash::Kill, kill)] {
            self.images += 1;
            let what = format_args!("{code:?} at backend call {call}, {outcome:?}, then {crash:?}");
            Run::start(point, &self.memory, run.counters(), seed)
                .settle(&mut nothing)
                .map_err(|trouble| trouble.during(what))?;
        }
        Ok(())
    }

    fn look(
        &mut self,
        point: &CrashPoint,
        counters: Counters,
        random: &mut Random,
    ) -> Result<(), Trouble> {
        for _ in 0..self.depth.images {
            let crash = kill_or_cut(random, self.depth.kill_of);
            self.image(point, counters, crash, random.next_u64(), Again::Perhaps)?;
        }
        Ok(())
    }

    fn image(
        &mut self,
        point: &CrashPoint,
        counters: Counters,
        crash: Crash,
        seed: u64,
        again: Again,
    ) -> Result<(), Trouble> {
        let calls = point.backend.calls();
        self.recover(point, counters, crash, seed, again)
            .map_err(|trouble| {
                trouble.during(format_args!(
                    "{crash:?} at backend call {calls}, image {seed:#x}"
                ))
            })
    }

    fn recover(
        &mut self,
        point: &CrashPoint,
        counters: Counters,
        crash: Crash,
        seed: u64,
        again: Again,
    ) -> Result<(), Trouble> {
        let mut random = Random::new(seed);
        let point = crash_with(point, crash, &mut random);
        self.images += 1;
        let mut run = Run::start(point, &self.memory, counters, seed);
        let mut one_of =
            |share: u64| again == Again::Perhaps && share > 0 && random.below(share) == 0;
        let (recovery, second_run) = (
            one_of(self.depth.recovery_of),
            one_of(self.depth.second_run_of),
        );
        if recovery {
            run.record();
        }
        let mut points = Vec::new();
        let mut keep = |point: CrashPoint, counters| {
            points.push((point, counters));
            Ok(())
        };
        run.settle(&mut keep)?;
        run.check_tidy()?;
        let mut plan = Vec::new();
        if second_run {
            // Goes on from there, and crashes at one of the calls that it makes.
            run.record();
            plan = plan::random(&mut random, 4);
            carry_out(&mut run, &plan, &mut keep)
                .map_err(|trouble| trouble.during(format_args!("then {plan:?}")))?;
        }
        for _ in 0..2.min(points.len()) {
            let chosen = usize::try_from(random.below(points.len() as u64)).expect("an index");
            let (point, counters) = &points[chosen];
            let crash = kill_or_cut(&mut random, 3);
            self.image(point, *counters, crash, random.next_u64(), Again::Never)
                .map_err(|trouble| trouble.during(format_args!("again, after {plan:?}")))?;
        }
        Ok(())
    }
}

/// Whether an image may crash again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    Perhaps,
    Never,
}

fn run_all(run: &mut Run, plan: &[(Op, usize)]) -> Result<(), Trouble> {
    run.create();
    run.advance(usize::MAX, &mut nothing)?;
    carry_out(run, plan, &mut nothing)
}

fn carry_out(run: &mut Run, plan: &[(Op, usize)], look: &mut Look<'_>) -> Result<(), Trouble> {
    for (op, pause) in plan {
        run.begin(*op, look)?;
        run.advance(*pause, look)?;
    }
    run.quiesce(look)
}

fn crash_with(point: &CrashPoint, crash: Crash, random: &mut Random) -> CrashPoint {
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
    let mut point = point.clone();
    // Its own journals: the same point may be looked at again.
    point.journals = match crash {
        Crash::Kill if !point.doubtful => point.journals.snapshot(),
        _ => journal::journals(),
    };
    point.oracle.crash(if point.doubtful {
        Crash::PowerCut
    } else {
        crash
    });
    point.backend = match crash {
        Crash::Kill => point.backend.process_kill(&mut chooser),
        Crash::PowerCut => point.backend.power_cut(&mut chooser),
    };
    point.doubtful = false;
    point
}

/// One of so many crashes is a kill.
fn kill_or_cut(random: &mut Random, kill_of: u64) -> Crash {
    if random.below(kill_of) == 0 {
        Crash::Kill
    } else {
        Crash::PowerCut
    }
}
