//! A run: a plan carried out on a machine, with a look at what each crash point leaves.
//!
//! Invariants
//! - Names, lineages and stamps are counted, so a run depends on its seed and nothing else.
//! - Writes, zeroes, flushes and snapshots are in flight together, whatever they touch. What changes names or opens and
//!   closes volumes begins alone; only a disturbance begins before it has ended, and the removal of a snapshot goes on beside
//!   those.
//! - After a disturbance all tasks end, well or not, and the run finds out what is there before it goes on.

use std::ops::Range;
use std::rc::Rc;

use archipelago_protocol::ids::{Lineage, Name};

use crate::machine::{CrashPoint, Link, Machine};
use crate::memory::MemoryPool;
use crate::oracle::{Thing, Value};
use crate::plan::{BLOCKS, FILLER, Op, Target};
use crate::tasks::{self, FILLING_VALUES, Guest, Open, SECTORS_PER_BLOCK};
use crate::trouble::Trouble;
use crate::wiring::Wiring;

/// Volumes at most, so that an image is read in no time.
const VOLUMES_MAX: usize = 3;
/// Snapshots at most.
const SNAPSHOTS_MAX: usize = 3;
/// Sectors of a volume at most: twice those of a new one.
const SECTORS_MAX: usize = 384;
const _: () = assert!(SECTORS_MAX as u64 == 2 * BLOCKS * SECTORS_PER_BLOCK as u64);
/// Tasks that can be refused after one failure, generously.
const REFUSALS_MAX: usize = 100;

/// Numbers that are used once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    names: u64,
    stamps: Value,
}

/// What is done with every crash point on the way.
pub type Look<'a> = dyn FnMut(CrashPoint, Counters) -> Result<(), Trouble> + 'a;

/// A machine with its open volumes.
#[derive(Debug)]
pub struct Run {
    machine: Machine,
    link: Link,
    open: Open,
    counters: Counters,
    /// Something that others wait for may be under way.
    alone: bool,
    /// A snapshot may be under way.
    snapping: bool,
    /// Something was made to fail since everything was looked at.
    disturbed: bool,
    /// A sync was made to fail since everything was looked at.
    failing: bool,
    /// A sync was made to fail at any time.
    failed: bool,
    /// Objects may be left behind: what removes them was made to fail.
    untidy: bool,
}

impl Run {
    /// Starts the processes on what is left; [`Run::settle`] reads and checks everything.
    #[must_use]
    pub fn start(point: CrashPoint, memory: &MemoryPool, counters: Counters, seed: u64) -> Run {
        let machine = Machine::start(point, memory, seed);
        let link = machine.link();
        Run {
            machine,
            link,
            open: Open::default(),
            counters,
            alone: false,
            snapping: false,
            disturbed: false,
            failing: false,
            failed: false,
            untidy: false,
        }
    }

    /// Finds out what is there, checks what was not read since a crash, and opens all volumes.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn settle(&mut self, look: &mut Look<'_>) -> Result<(), Trouble> {
        let told = std::mem::take(&mut self.failing);
        let settle = tasks::settle(self.link.clone(), Rc::clone(&self.open), told);
        self.machine.spawn(settle);
        self.advance(usize::MAX, look)
    }

    /// Takes crash points from now on.
    pub fn record(&mut self) {
        self.link.with(|wiring| wiring.points = Some(Vec::new()));
    }

    /// Numbers used so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What survives the processes now.
    #[must_use]
    pub fn crash_point(&self) -> CrashPoint {
        self.link.with(|wiring| wiring.crash_point())
    }

    /// Lets up to `steps` backend calls complete, showing `look` every crash point on the way.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn advance(&mut self, steps: usize, look: &mut Look<'_>) -> Result<(), Trouble> {
        for _ in 0..steps {
            let more = self.machine.step()?;
            for point in self.machine.take_points() {
                look(point, self.counters)?;
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// Lets everything end; after a disturbance, everything is looked at.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn quiesce(&mut self, look: &mut Look<'_>) -> Result<(), Trouble> {
        self.advance(usize::MAX, look)?;
        (self.alone, self.snapping) = (false, false);
        // A failed sync of the pool is told object by object, whenever each is synced.
        let failed = self.failed;
        let upset = self.link.with(|wiring| {
            wiring.filling = false;
            wiring.tolerant = false;
            wiring.fail_next_sync = false;
            std::mem::take(&mut wiring.upset)
        });
        self.failing |= upset && failed;
        if std::mem::take(&mut self.disturbed) || upset {
            self.settle(look)?;
        }
        self.link.with(|wiring| wiring.tolerant = failed);
        Ok(())
    }

    /// The end of a run: everything is read, and what was removed is gone.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn finish(&mut self, look: &mut Look<'_>) -> Result<(), Trouble> {
        self.quiesce(look)?;
        look(self.crash_point(), self.counters)?;
        self.start_op(Op::Verify)?;
        self.quiesce(look)?;
        self.check_tidy()
    }

    /// Removed things leave nothing behind, unless something failed.
    ///
    /// # Errors
    /// What is left.
    pub fn check_tidy(&self) -> Result<(), Trouble> {
        let left = self.link.with(|wiring| wiring.leftovers());
        if self.untidy || left.is_empty() {
            return Ok(());
        }
        Err(Trouble::Wrong(format!("objects of nobody: {left:?}")))
    }

    /// Ends all sessions as the protocol wants it after a failure. Whatever is refused meanwhile is expected.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn abandon(&mut self) -> Result<(), Trouble> {
        self.link.with(Wiring::abandon);
        // Each refusal ends one task; there are not many.
        for _ in 0..REFUSALS_MAX {
            match self.machine.finish() {
                Err(Trouble::Refused(..)) => {}
                other => return other,
            }
        }
        Err(Trouble::Wrong("refusals do not end".to_owned()))
    }

    /// Creates and opens the first volume.
    pub fn create(&mut self) {
        let name = self.fresh_name("v");
        let lineage = self.fresh_lineage();
        let create = tasks::create(self.link.clone(), Rc::clone(&self.open), name, lineage);
        self.machine.spawn(create);
    }

    /// Begins `op`, after what it cannot go together with has finished. Whether there was anything to do.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn begin(&mut self, op: Op, look: &mut Look<'_>) -> Result<bool, Trouble> {
        self.make_way(op, look)?;
        self.start_op(op)
    }

    /// Lets finish what `op` cannot go together with.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn make_way(&mut self, op: Op, look: &mut Look<'_>) -> Result<(), Trouble> {
        let unsettled = self.disturbed || self.link.with(|wiring| wiring.upset);
        let waits = match op {
            Op::MapperDeath | Op::TakeOver | Op::FailedSync { .. } => false,
            Op::Write { .. } | Op::Zero { .. } | Op::Flush { .. } => self.alone || unsettled,
            // Control prepares one snapshot of a volume at a time.
            Op::Snapshot { .. } => self.alone || unsettled || self.snapping,
            _ => true,
        };
        if waits { self.quiesce(look) } else { Ok(()) }
    }

    /// Starts `op`. Whether there was anything to do.
    ///
    /// # Errors
    /// What contradicts the promises.
    pub fn start_op(&mut self, op: Op) -> Result<bool, Trouble> {
        // What a removed snapshot had is given back while its volume is written.
        let shares = matches!(
            op,
            Op::Write { .. }
                | Op::Zero { .. }
                | Op::Flush { .. }
                | Op::Snapshot { .. }
                | Op::Remove(Target::Snapshot(_))
        );
        let disturbs = matches!(op, Op::MapperDeath | Op::TakeOver | Op::FailedSync { .. });
        let started = match op {
            Op::Write { .. } | Op::Zero { .. } => self.change_data(op),
            Op::Flush { volume } => self.with_guest(volume, op, |_, guest| {
                Some(async move { guest.flush().await })
            }),
            Op::Snapshot { volume } | Op::SnapshotClosed { volume } => self.snapshot(volume, op),
            Op::Clone { snapshot, grow } => self.clone_of(snapshot, usize::from(grow)),
            Op::Remove(target) => self.remove(target),
            Op::Rename(target) => self.rename(target),
            Op::Grow { volume, blocks } => self.with_guest(volume, op, |run, guest| {
                let sectors = run.sectors(guest.lineage) + usize::from(blocks) * SECTORS_PER_BLOCK;
                let resize =
                    async move { tasks::resize(&guest.link, guest.lineage, sectors).await };
                (sectors <= SECTORS_MAX).then_some(resize)
            }),
            Op::Shrink { volume, blocks } => self.with_guest(volume, op, |run, guest| {
                let before = run.sectors(guest.lineage);
                let after = before.saturating_sub(usize::from(blocks) * SECTORS_PER_BLOCK);
                let open = Rc::clone(&run.open);
                Some(guest.shrink(open, after.max(SECTORS_PER_BLOCK)))
            }),
            Op::Reopen { volume } => self.with_guest(volume, op, |run, guest| {
                Some(guest.reopen(Rc::clone(&run.open)))
            }),
            Op::Checkpoint { volume } => self.with_guest(volume, op, |run, guest| {
                if run.sectors(guest.lineage) < FILLER.0 + FILLER.1 {
                    return None;
                }
                let first = run.counters.stamps + 1;
                run.counters.stamps += FILLING_VALUES;
                run.link.with(|wiring| wiring.filling = true);
                Some(guest.checkpoint(first..first + FILLING_VALUES))
            }),
            Op::MapperDeath => {
                self.link.with(Wiring::kill_mapper);
                true
            }
            Op::TakeOver => {
                self.take_over()?;
                true
            }
            Op::FailedSync { volume } => {
                self.link.with(|wiring| wiring.fail_next_sync = true);
                self.with_guest(volume, op, |_, guest| {
                    Some(async move { guest.flush().await })
                });
                true
            }
            Op::Verify => {
                self.verify();
                true
            }
        };
        self.alone |= started && !shares;
        self.snapping |= matches!(op, Op::Snapshot { .. });
        if disturbs {
            self.disturbed = true;
            self.failing |= matches!(op, Op::FailedSync { .. });
            self.failed |= self.failing;
            self.untidy |= op != Op::TakeOver;
            self.link.with(|wiring| wiring.tolerant = true);
        }
        Ok(started)
    }

    fn with_guest<F>(
        &mut self,
        number: u8,
        op: Op,
        task: impl FnOnce(&mut Self, Guest) -> Option<F>,
    ) -> bool
    where
        F: Future<Output = Result<(), Trouble>> + 'static,
    {
        let found = {
            let open = self.open.borrow();
            let found = pick(number, open.len()).and_then(|index| open.iter().nth(index));
            found.map(|(lineage, volume)| Guest {
                link: self.link.clone(),
                lineage: *lineage,
                volume: Rc::clone(volume),
            })
        };
        let Some(task) = found.and_then(|guest| task(self, guest)) else {
            return false;
        };
        self.spawn(op, task);
        true
    }

    fn spawn(&mut self, op: Op, task: impl Future<Output = Result<(), Trouble>> + 'static) {
        self.machine.spawn(async move {
            task.await
                .map_err(|trouble| trouble.during(format_args!("{op:?}")))
        });
    }

    fn change_data(&mut self, op: Op) -> bool {
        let (Op::Write {
            volume,
            first,
            count,
            ..
        }
        | Op::Zero {
            volume,
            first,
            count,
            ..
        }) = op
        else {
            return false;
        };
        self.with_guest(volume, op, |run, guest| {
            let sectors = run.sectors(guest.lineage);
            let range = clip(usize::from(first), usize::from(count), sectors)?;
            run.counters.stamps += 1;
            let value = run.counters.stamps;
            Some(async move {
                match op {
                    Op::Zero { how, .. } => guest.zero(range, how).await,
                    Op::Write { durable, .. } => guest.write(range, value, durable).await,
                    _ => Ok(()),
                }
            })
        })
    }

    fn snapshot(&mut self, volume: u8, op: Op) -> bool {
        if self.lineages(|thing| !thing.is_live()).len() >= SNAPSHOTS_MAX {
            return false;
        }
        let (name, lineage) = (self.fresh_name("s"), self.fresh_lineage());
        let closed = matches!(op, Op::SnapshotClosed { .. });
        self.with_guest(volume, op, |run, guest| {
            let open = Rc::clone(&run.open);
            Some(async move {
                if closed {
                    guest.snapshot_closed(open, name, lineage).await
                } else {
                    guest.snapshot(name, lineage).await
                }
            })
        })
    }

    fn clone_of(&mut self, snapshot: u8, grow: usize) -> bool {
        let full = self.lineages(Thing::is_live).len() >= VOLUMES_MAX;
        let Some(source) = self.target(Target::Snapshot(snapshot)).filter(|_| !full) else {
            return false;
        };
        let (name, lineage) = (self.fresh_name("c"), self.fresh_lineage());
        let (link, open) = (self.link.clone(), Rc::clone(&self.open));
        let op = Op::Clone { snapshot, grow: 0 };
        self.spawn(op, tasks::clone(link, open, source, name, lineage, grow));
        true
    }

    fn remove(&mut self, target: Target) -> bool {
        let (Target::Volume(number) | Target::Snapshot(number)) = target;
        // Random runs keep something to work with.
        let last = number >= 2 && self.lineages(|_| true).len() < 2;
        let Some(lineage) = self.target(target).filter(|_| !last) else {
            return false;
        };
        let (link, open) = (self.link.clone(), Rc::clone(&self.open));
        self.spawn(Op::Remove(target), tasks::remove(link, open, lineage));
        true
    }

    fn rename(&mut self, target: Target) -> bool {
        let Some(lineage) = self.target(target) else {
            return false;
        };
        let to = self.fresh_name("r");
        let rename = tasks::rename(self.link.clone(), lineage, to);
        self.spawn(Op::Rename(target), rename);
        true
    }

    fn guests(&self) -> Vec<Guest> {
        let open = self.open.borrow();
        let guests = open.iter().map(|(lineage, volume)| Guest {
            link: self.link.clone(),
            lineage: *lineage,
            volume: Rc::clone(volume),
        });
        guests.collect()
    }

    /// Another node takes the pool. The one that had it flushes once more before the other begins, and goes on beside it.
    fn take_over(&mut self) -> Result<(), Trouble> {
        let old = self.guests();
        self.link.with(|wiring| wiring.tolerant = true);
        self.machine.quiet()?;
        self.machine.fence();
        for guest in old.clone() {
            self.machine.spawn(async move { guest.flush().await });
        }
        self.machine.quiet()?;
        self.link = self.machine.hand_over();
        // Not the old ones': their node has them.
        self.open = Open::default();
        for guest in old {
            self.machine.spawn(guest.haunt());
        }
        let settle = tasks::settle(self.link.clone(), Rc::clone(&self.open), false);
        self.machine.spawn(settle);
        Ok(())
    }

    fn verify(&mut self) {
        let guests = self.guests();
        let frozen = self.lineages(|thing| !thing.is_live());
        let link = self.link.clone();
        self.spawn(Op::Verify, async move {
            for guest in guests {
                guest.check().await?;
            }
            for lineage in frozen {
                tasks::read_frozen(&link, lineage).await?;
            }
            Ok(())
        });
    }

    fn fresh_name(&mut self, prefix: &str) -> Name {
        self.counters.names += 1;
        format!("{prefix}{:04}", self.counters.names)
            .parse()
            .expect("a legal name")
    }

    fn fresh_lineage(&mut self) -> Lineage {
        self.counters.names += 1;
        Lineage(u128::from(self.counters.names) << 64 | 0xa5a5)
    }

    fn lineages(&self, wanted: impl Fn(&Thing) -> bool) -> Vec<Lineage> {
        self.link.with(|wiring| {
            let things = wiring.oracle.things().iter();
            let wanted = things.filter(|(_, thing)| wanted(thing));
            wanted.map(|(lineage, _)| *lineage).collect()
        })
    }

    fn target(&self, target: Target) -> Option<Lineage> {
        let (number, all) = match target {
            Target::Volume(number) => (number, self.lineages(Thing::is_live)),
            Target::Snapshot(number) => (number, self.lineages(|thing| !thing.is_live())),
        };
        pick(number, all.len()).map(|index| all[index])
    }

    fn sectors(&self, lineage: Lineage) -> usize {
        self.link
            .with(|wiring| wiring.oracle.thing(lineage).sectors())
    }
}

/// The index that `number` means among `len`.
fn pick(number: u8, len: usize) -> Option<usize> {
    let number = usize::from(number);
    if number < 2 {
        return (number < len).then_some(number);
    }
    number.checked_rem(len)
}

fn clip(first: usize, count: usize, sectors: usize) -> Option<Range<usize>> {
    let first = first.checked_rem(sectors)?;
    Some(first..(first + count).min(sectors))
}
