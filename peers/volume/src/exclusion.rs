//! Which writes of a volume may be in flight together.
//!
//! - A merge reads a block, changes a part and writes the whole. It would undo a write of another part, or a clear, that completed in
//!   between. So a merge is the only writer of its block: it starts when no other write or clear of the block is in flight, and later ones
//!   wait until the merge has been reported to the mapper.
//! - A write into a block that is not owned completes first and is reported to the mapper later. If the block were cleared in between, the
//!   report would map whatever is stored at that place by then: perhaps another write, answered and cleared long ago. So a clear starts
//!   when no write to its blocks is in flight, and later writes wait for the clear.
//! - Writes do not exclude one another, and neither do clears. They change only the range that they were sent for, and the data at a
//!   reported place was written by one of the writes in flight, or by a later one.
//! - If a write finds that it must merge, it releases its range before it waits; and a clear holds nothing while it waits. So two never
//!   wait for each other.
//!
//! Reads exclude nothing and are not recorded here.
//!
//! | [`Hold`] | active | clears | merges | blocked | becomes |
//! |---|---|---|---|---|---|
//! | Nothing | | | | if it waits | Announced (clear), Active (write), Merging |
//! | Announced | | yes | | yes | Active |
//! | Active | yes | if a clear | | | Nothing, Merging |
//! | Merging | | | yes | | Exclusive |
//! | Exclusive | | | yes | | Nothing |

use std::ops::Range;

use crate::blocks::{block_start, share_a_block, touches};
use crate::limits::{MERGES_MAX, PIECES_PER_VOLUME};
use crate::slab::{Linked, Queue, Slab};

/// The purpose for which a range is acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Write,
    Clear,
}

/// What a claim holds of its range. Only [`Exclusion`] changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hold {
    #[default]
    Nothing,
    /// A clear that waits; later writes wait for it.
    Announced,
    /// In flight, at this index of the active ones.
    Active(usize),
    /// Waits to become the only writer of its block.
    Merging,
    /// The only writer of its block.
    Exclusive,
}

/// A claim to a range of the volume.
pub(crate) trait Claim: Linked {
    /// Purpose of the claim.
    fn access(&self) -> Access;
    /// The claimed bytes.
    fn range(&self) -> Range<u64>;
    /// What the claim holds; only [`Exclusion`] uses it.
    fn hold(&mut self) -> &mut Hold;
}

/// A block, and the claim that is its only writer or waits to become that.
#[derive(Debug, Clone, Copy)]
struct Merge {
    block: u64,
    claim: u32,
}

/// Which ranges of one volume are being written, and which claims wait. Claims are slots of a slab that is passed to each call.
#[derive(Debug)]
pub(crate) struct Exclusion {
    active: Vec<u32>,
    /// Clears that are active or wait.
    clears: Vec<u32>,
    /// In the order of their claims.
    merges: Vec<Merge>,
    /// Claims that try again at each release.
    blocked: Queue,
}

impl Default for Exclusion {
    fn default() -> Self {
        Exclusion {
            active: Vec::with_capacity(PIECES_PER_VOLUME as usize),
            clears: Vec::with_capacity(PIECES_PER_VOLUME as usize),
            merges: Vec::with_capacity(MERGES_MAX),
            blocked: Queue::default(),
        }
    }
}

impl Exclusion {
    /// Acquires the range of claim `p`. Returns whether `p` has the range; if not, a later release grants it.
    pub(crate) fn acquire<C: Claim>(&mut self, claims: &mut Slab<C>, p: u32) -> bool {
        let (access, range) = (claims[p].access(), claims[p].range());
        if access == Access::Clear && *claims[p].hold() == Hold::Nothing {
            *claims[p].hold() = Hold::Announced;
            self.clears.push(p);
        }
        let overlaps = |other: &u32| share_a_block(&range, &claims[*other].range());
        let merged = self.merges.iter().any(|merge| touches(&range, merge.block));
        let excluded = merged
            || match access {
                Access::Clear => self
                    .active
                    .iter()
                    .any(|other| claims[*other].access() == Access::Write && overlaps(other)),
                Access::Write => self.clears.iter().any(overlaps),
            };
        if excluded {
            self.blocked.push(claims, p);
            return false;
        }
        *claims[p].hold() = Hold::Active(self.active.len());
        self.active.push(p);
        true
    }

    /// Releases the range of claim `p`, which now waits to become the only writer of its first block. Returns the claims that have acquired
    /// what they waited for: perhaps also `p`.
    ///
    /// If there are too many merges, `p` waits until any of them ends, and then acquires its range again.
    pub(crate) fn acquire_block<C: Claim>(&mut self, claims: &mut Slab<C>, p: u32) -> Queue {
        self.leave_active(claims, p);
        if self.merges.len() < MERGES_MAX {
            *claims[p].hold() = Hold::Merging;
            self.merges.push(Merge {
                block: block_start(claims[p].range().start),
                claim: p,
            });
            return self.grant(claims);
        }
        let granted = self.grant(claims);
        self.blocked.push(claims, p);
        granted
    }

    /// Releases what claim `p` holds. Returns the claims that have acquired what they waited for.
    pub(crate) fn release<C: Claim>(&mut self, claims: &mut Slab<C>, p: u32) -> Queue {
        match *claims[p].hold() {
            Hold::Nothing => return Queue::default(),
            Hold::Announced | Hold::Active(_) => {
                self.leave_active(claims, p);
                if claims[p].access() == Access::Clear {
                    self.clears.retain(|clear| *clear != p);
                }
            }
            Hold::Merging | Hold::Exclusive => self.merges.retain(|merge| merge.claim != p),
        }
        *claims[p].hold() = Hold::Nothing;
        self.grant(claims)
    }

    /// Whether another active claim shares a block with claim `p`.
    pub(crate) fn overlaps_another<C: Claim>(&self, claims: &Slab<C>, p: u32) -> bool {
        let range = claims[p].range();
        self.active
            .iter()
            .any(|other| *other != p && share_a_block(&range, &claims[*other].range()))
    }

    /// Removes all claims from here. The caller drops them.
    pub(crate) fn clear(&mut self) {
        self.active.clear();
        self.clears.clear();
        self.merges.clear();
        self.blocked = Queue::default();
    }

    fn leave_active<C: Claim>(&mut self, claims: &mut Slab<C>, p: u32) {
        if let Hold::Active(at) = *claims[p].hold() {
            *claims[p].hold() = Hold::Nothing;
            self.active.swap_remove(at);
            if let Some(moved) = self.active.get(at) {
                *claims[*moved].hold() = Hold::Active(at);
            }
        }
    }

    /// Grants merges whose block is free now, then claims that waited for something else.
    fn grant<C: Claim>(&mut self, claims: &mut Slab<C>) -> Queue {
        let mut granted = Queue::default();
        for index in 0..self.merges.len() {
            let merge = self.merges[index];
            let earlier = self.merges[..index]
                .iter()
                .any(|other| other.block == merge.block);
            let waits = *claims[merge.claim].hold() == Hold::Merging;
            let busy = || {
                self.active
                    .iter()
                    .any(|p| touches(&claims[*p].range(), merge.block))
            };
            if waits && !earlier && !busy() {
                *claims[merge.claim].hold() = Hold::Exclusive;
                granted.push(claims, merge.claim);
            }
        }
        let mut blocked = std::mem::take(&mut self.blocked);
        while let Some(p) = blocked.pop(claims) {
            if self.acquire(claims, p) {
                granted.push(claims, p);
            }
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::NONE;

    #[derive(Debug)]
    struct Asked {
        access: Access,
        range: Range<u64>,
        hold: Hold,
        next: u32,
    }

    impl Linked for Asked {
        fn link(&mut self) -> &mut u32 {
            &mut self.next
        }
    }

    impl Claim for Asked {
        fn access(&self) -> Access {
            self.access
        }

        fn range(&self) -> Range<u64> {
            self.range.clone()
        }

        fn hold(&mut self) -> &mut Hold {
            &mut self.hold
        }
    }

    struct Rig {
        exclusion: Exclusion,
        claims: Slab<Asked>,
    }

    impl Rig {
        fn new() -> Self {
            Rig {
                exclusion: Exclusion::default(),
                claims: Slab::new(256),
            }
        }

        fn ask(&mut self, access: Access, range: Range<u64>) -> (u32, bool) {
            let asked = Asked {
                access,
                range,
                hold: Hold::Nothing,
                next: NONE,
            };
            let p = self.claims.insert(asked).unwrap();
            (p, self.exclusion.acquire(&mut self.claims, p))
        }

        fn list(&mut self, mut granted: Queue) -> Vec<u32> {
            std::iter::from_fn(|| granted.pop(&mut self.claims)).collect()
        }

        fn merge(&mut self, p: u32) -> Vec<u32> {
            let granted = self.exclusion.acquire_block(&mut self.claims, p);
            self.list(granted)
        }

        fn release(&mut self, p: u32) -> Vec<u32> {
            let granted = self.exclusion.release(&mut self.claims, p);
            self.list(granted)
        }
    }

    #[test]
    fn writes_go_together_and_a_clear_waits_for_them_and_is_waited_for() {
        let mut rig = Rig::new();
        let (one, active) = rig.ask(Access::Write, 0..512);
        assert!(active);
        let (two, active) = rig.ask(Access::Write, 512..1024);
        assert!(active && rig.exclusion.overlaps_another(&rig.claims, two));
        let (clear, active) = rig.ask(Access::Clear, 0..8192);
        assert!(!active);
        let (late, active) = rig.ask(Access::Write, 4096..8192);
        assert!(!active);
        assert!(rig.ask(Access::Write, 8192..12288).1);
        assert_eq!(rig.release(one), Vec::<u32>::new());
        assert_eq!(rig.release(two), [clear]);
        let (other, active) = rig.ask(Access::Clear, 4096..8192);
        assert!(active, "clears do not exclude one another");
        assert_eq!(rig.release(other), Vec::<u32>::new());
        assert_eq!(rig.release(clear), [late]);
    }

    #[test]
    fn a_merge_is_the_only_writer_of_its_block() {
        let mut rig = Rig::new();
        let (one, _) = rig.ask(Access::Write, 0..512);
        let (two, _) = rig.ask(Access::Write, 512..1024);
        assert_eq!(rig.merge(one), Vec::<u32>::new());
        assert_eq!(rig.merge(two), [one], "in the order of asking");
        let (late, active) = rig.ask(Access::Write, 1024..2048);
        assert!(!active);
        assert_eq!(rig.release(one), [two]);
        assert_eq!(rig.release(two), [late]);
    }

    #[test]
    fn one_merge_too_many_asks_again_when_another_one_ends() {
        let mut rig = Rig::new();
        let block = |number: u64| number * 4096..number * 4096 + 512;
        let merging: Vec<u32> = (0..MERGES_MAX as u64)
            .map(|number| {
                let (p, _) = rig.ask(Access::Write, block(number));
                assert_eq!(rig.merge(p), [p]);
                p
            })
            .collect();
        let (over, active) = rig.ask(Access::Write, block(200));
        assert!(active);
        assert_eq!(rig.merge(over), Vec::<u32>::new());
        assert_eq!(rig.release(merging[3]), [over]);
        assert_eq!(rig.merge(over), [over]);
    }
}
