//! The matrix: every call site of a life, with every fault, several to a life, each in a phase of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::disk::{Call, Class, Fault, Kind, Site};
use crate::life::{Outcome, Placement, Report, live};
use crate::oracle::WRONG_DATA;
use crate::watch::Checks;

/// A call site and what becomes of its call.
pub type Case = (Site, Fault);

/// Lives at a time: most of a life is waiting.
const THREADS: usize = 8;
/// The same where a life waits for a deadline of the product.
const HANGING_THREADS: usize = 24;
/// Faults in one life at most.
const FAULTS_MAX: usize = 8;
/// Lives that are recorded without a fault: background work falls into one phase or another.
const RECORDINGS: usize = 6;
/// How often a fault is tried whose call each recording had: few are left after the second.
const ROUNDS: usize = 16;
/// How often one is tried whose call only some recordings had.
const ROUNDS_BY_CHANCE: usize = 2;

/// In the text of a missed deadline of the test: with many lives beside it, a life can also miss one because of them.
const LATE: &str = "HANG: ";
/// Lives that may have missed a deadline beside others and none alone: all of one time, thrice.
const DISTURBED_MAX: usize = 3 * THREADS;

/// What came of all cases.
#[derive(Debug, Default)]
pub struct Matrix {
    /// What recovery took.
    pub outcomes: BTreeMap<Case, Outcome>,
    /// Broken promises.
    pub failures: Vec<String>,
    /// Faults that never happened, though each recording had their call.
    pub missed: Vec<Case>,
    /// Faults that never happened, of calls that background work makes in one phase or another.
    pub by_chance: usize,
    /// Lives that were lived.
    pub lives: usize,
    /// Lives that missed a deadline beside others, and none when they were lived again alone: why.
    pub disturbed: Vec<String>,
    /// Calls that were held, and what was checked meanwhile.
    pub checked: usize,
}

impl Matrix {
    /// The result of a life with `faults`. One that missed a deadline beside others is lived again alone: what a fault
    /// delays is late then, too.
    fn again_alone(
        &mut self,
        result: Result<Report>,
        placement: Placement,
        checks: Checks,
        faults: &[Case],
    ) -> Result<Report> {
        let Err(error) = result else { return result };
        let text = format!("{error:#}");
        let is_late = text.contains(LATE) && !text.contains(WRONG_DATA);
        if !is_late || self.disturbed.len() == DISTURBED_MAX {
            return Err(error);
        }
        let alone = live(placement, checks, faults);
        if alone.is_ok() {
            self.disturbed.push(text.clone());
        }
        alone.with_context(|| format!("beside others: {text}\nand alone"))
    }

    /// How many cases came to which outcome.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut counts: BTreeMap<Outcome, usize> = BTreeMap::new();
        for outcome in self.outcomes.values() {
            *counts.entry(*outcome).or_default() += 1;
        }
        let (cases, lives) = (self.outcomes.len(), self.lives);
        let (failed, missed, by_chance) = (self.failures.len(), self.missed.len(), self.by_chance);
        format!(
            "{cases} cases in {lives} lives: {counts:?}; {} calls held and checked; {failed} lives failed, {} were late beside \
             others and not alone, {missed} cases missed, {by_chance} of calls that are made by chance did not happen again",
            self.checked,
            self.disturbed.len()
        )
    }

    /// The worst outcome of each call with each fault, over all phases, in the form of the documentation.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows: BTreeMap<(Kind, Class), BTreeMap<Fault, Outcome>> = BTreeMap::new();
        let mut sites: BTreeMap<(Kind, Class), BTreeSet<Site>> = BTreeMap::new();
        for ((site, fault), outcome) in &self.outcomes {
            let row = rows.entry((site.kind, site.class)).or_default();
            let worst = row.entry(*fault).or_insert(*outcome);
            *worst = (*worst).max(*outcome);
            sites
                .entry((site.kind, site.class))
                .or_default()
                .insert(*site);
        }
        let faults = Fault::of(Kind::Write);
        let names: Vec<String> = faults.iter().map(Fault::to_string).collect();
        let mut text = format!("| call | phases | {} |\n", names.join(" | "));
        text += &format!("|---|--:|{}\n", ":-:|".repeat(faults.len()));
        for ((kind, class), row) in &rows {
            let cells: Vec<String> = faults
                .iter()
                .map(|fault| {
                    row.get(fault)
                        .map_or(' ', |outcome| outcome.letter())
                        .to_string()
                })
                .collect();
            let phases = sites.get(&(*kind, *class)).map_or(0, BTreeSet::len);
            text += &format!(
                "| {kind:?} {class:?} | {phases} | {} |\n",
                cells.join(" | ")
            );
        }
        text
    }
}

fn in_parallel<T: Send>(threads: usize, count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = work(index);
                    done.lock().expect("no thread panics here").push(result);
                }
            });
        }
    });
    done.into_inner().expect("no thread panics here")
}

/// The call sites of some lives without a fault.
#[derive(Debug, Default)]
pub struct Sites {
    /// All.
    pub all: BTreeSet<Site>,
    /// Those that each life had: their faults must happen.
    pub always: BTreeSet<Site>,
    /// The last calls of sites that are called several times: how many there are varies.
    pub last: BTreeSet<Site>,
}

/// Lives without a fault.
///
/// # Errors
/// If such a life fails.
pub fn record(placement: Placement) -> Result<Sites> {
    let mut counts: BTreeMap<Site, usize> = BTreeMap::new();
    let mut calls: BTreeMap<Site, u64> = BTreeMap::new();
    let record = |_| live(placement, Checks::Beside, &[]);
    for report in in_parallel(THREADS, RECORDINGS, record) {
        let report = report?;
        ensure!(
            report.reported.is_empty(),
            "failed without a fault: {:?}",
            report.reported
        );
        for (site, times) in report.seen {
            *counts.entry(site).or_default() += 1;
            let fewest = calls.entry(site).or_insert(times);
            *fewest = times.min(*fewest);
        }
    }
    let always = counts.iter().filter(|(_, count)| **count == RECORDINGS);
    let several = calls.into_iter().filter(|(_, times)| *times > 1);
    Ok(Sites {
        last: several
            .map(|(site, times)| Site {
                call: Call::Number(times),
                ..site
            })
            .collect(),
        always: always.map(|(site, _)| *site).collect(),
        all: counts.into_keys().collect(),
    })
}

/// All cases of `sites`.
#[must_use]
pub fn cases(sites: &BTreeSet<Site>) -> BTreeSet<Case> {
    let of = |site: &Site| {
        let site = *site;
        Fault::of(site.kind)
            .into_iter()
            .map(move |fault| (site, fault))
    };
    sites.iter().flat_map(of).collect()
}

/// The cases of `sites` with the two faults that say most: a call that fails, and one that does not return.
#[must_use]
pub fn main_cases(sites: &BTreeSet<Site>) -> BTreeSet<Case> {
    cases(sites)
        .into_iter()
        .filter(|(_, fault)| matches!(fault, Fault::Errno(libc::EIO) | Fault::Never))
        .collect()
}

/// One call of each kind that does not return, while a volume is served, at a start and at a stop.
#[must_use]
pub fn hanging_cases(sites: &BTreeSet<Site>) -> Vec<Case> {
    let mut chosen: BTreeMap<(&str, Kind), Site> = BTreeMap::new();
    for site in sites {
        let part = match site.phase {
            // A command on the file system: it waits, and can be interrupted.
            "init" => continue,
            // Before the pool is open nobody can say which call hangs, so which it is makes no difference.
            "start" | "restart" | "recover" => ("start", Kind::Lookup),
            "stop" | "stop last" => ("stop", Kind::Lookup),
            _ => ("", site.kind),
        };
        chosen.entry(part).or_insert(*site);
    }
    chosen
        .into_values()
        .map(|site| (site, Fault::Never))
        .collect()
}

/// Stops and starts the node while a call of each case does not return.
#[must_use]
pub fn hang(placement: Placement, cases: &[Case]) -> Matrix {
    let mut matrix = Matrix {
        lives: cases.len(),
        ..Matrix::default()
    };
    let lived = in_parallel(HANGING_THREADS, cases.len(), |index| {
        (
            cases[index],
            live(placement, Checks::Stop, &cases[index..=index]),
        )
    });
    for (case, result) in lived {
        match matrix.again_alone(result, placement, Checks::Stop, &[case]) {
            Ok(report) => {
                matrix.checked += report.checked;
                match report.outcomes.get(&case.0) {
                    Some(outcome) => _ = matrix.outcomes.insert(case, *outcome),
                    None => matrix.missed.push(case),
                }
            }
            Err(error) => matrix
                .failures
                .push(format!("[{} {}]: {error:#}", case.0, case.1)),
        }
    }
    matrix
}

/// Packs cases into lives: one fault to a phase, so many to a life.
#[must_use]
pub fn pack(cases: &BTreeSet<Case>) -> Vec<Vec<Case>> {
    let mut phases: BTreeMap<&str, Vec<Case>> = BTreeMap::new();
    for case in cases {
        phases.entry(case.0.phase).or_default().push(*case);
    }
    let mut lives = Vec::new();
    loop {
        // From where most is left, so that no phase is left over for itself.
        let mut longest: Vec<&mut Vec<Case>> = phases
            .values_mut()
            .filter(|left| !left.is_empty())
            .collect();
        if longest.is_empty() {
            return lives;
        }
        longest.sort_by_key(|left| std::cmp::Reverse(left.len()));
        lives.push(
            longest
                .into_iter()
                .take(FAULTS_MAX)
                .filter_map(Vec::pop)
                .collect(),
        );
    }
}

/// Runs all cases; those at sites that are `always` there until they have happened.
#[must_use]
pub fn run(placement: Placement, cases: &BTreeSet<Case>, always: &BTreeSet<Site>) -> Matrix {
    let mut matrix = Matrix::default();
    let mut left = cases.clone();
    for round in 0..ROUNDS {
        if round == ROUNDS_BY_CHANCE {
            let before = left.len();
            left.retain(|(site, _)| always.contains(site));
            matrix.by_chance = before - left.len();
        }
        let lives = pack(&left);
        matrix.lives += lives.len();
        let lived = in_parallel(THREADS, lives.len(), |index| {
            (index, live(placement, Checks::Beside, &lives[index]))
        });
        for (index, result) in lived {
            match matrix.again_alone(result, placement, Checks::Beside, &lives[index]) {
                Ok(report) => {
                    matrix.checked += report.checked;
                    for case in &lives[index] {
                        if let Some(outcome) = report.outcomes.get(&case.0) {
                            matrix.outcomes.insert(*case, *outcome);
                            left.remove(case);
                        }
                    }
                }
                Err(error) => {
                    let names: Vec<String> = lives[index]
                        .iter()
                        .map(|(site, fault)| format!("{site} {fault}"))
                        .collect();
                    matrix
                        .failures
                        .push(format!("[{}]: {error:#}", names.join(", ")));
                    left.retain(|case| !lives[index].contains(case));
                }
            }
        }
        if left.is_empty() {
            break;
        }
    }
    matrix.missed = left.into_iter().collect();
    matrix
}
