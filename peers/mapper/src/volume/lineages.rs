//! The numbers by which answers name lineages: a client asks once for the lineage of a number.
//!
//! Invariants
//! - The own lineage has number 0, the others follow in the order of their first use.
//! - A number keeps its meaning until [`LineageNumbers::restart`].
//! - A look-up takes the same few steps however many ancestors a clone has, and allocates nothing.

use std::hash::Hash;

use archipelago_protocol::Lineage;
use rustc_hash::FxHashMap;

/// Numbers of lineages, by first use. `L` is another type in a test, which counts comparisons.
#[derive(Debug)]
pub(crate) struct LineageNumbers<L = Lineage> {
    by_number: Vec<L>,
    /// Those of the others: most volumes have no ancestor.
    others: FxHashMap<L, u32>,
}

impl<L: Copy + Eq + Hash> LineageNumbers<L> {
    pub(crate) fn new(own: L) -> Self {
        LineageNumbers {
            by_number: vec![own],
            others: FxHashMap::default(),
        }
    }

    /// The number of `lineage`, a new one at its first use.
    pub(crate) fn number(&mut self, lineage: L) -> u32 {
        if lineage == self.by_number[0] {
            return 0;
        }
        *self.others.entry(lineage).or_insert_with(|| {
            self.by_number.push(lineage);
            u32::try_from(self.by_number.len() - 1).expect("fewer than 2^32 ancestors")
        })
    }

    /// The lineage that has `number`.
    pub(crate) fn get(&self, number: u64) -> Option<L> {
        let index = usize::try_from(number).ok()?;
        self.by_number.get(index).copied()
    }

    /// For another client, which has asked for none yet.
    pub(crate) fn restart(&mut self) {
        self.by_number.truncate(1);
        self.others.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::hash::Hasher;

    use proptest::prelude::*;

    use super::*;

    thread_local! {
        static COMPARISONS: Cell<u64> = const { Cell::new(0) };
    }

    /// A lineage whose comparisons are counted.
    #[derive(Debug, Clone, Copy)]
    struct Counted(u128);

    impl PartialEq for Counted {
        fn eq(&self, other: &Counted) -> bool {
            COMPARISONS.set(COMPARISONS.get() + 1);
            self.0 == other.0
        }
    }

    impl Eq for Counted {}

    impl Hash for Counted {
        fn hash<H: Hasher>(&self, hasher: &mut H) {
            Lineage(self.0).hash(hasher);
        }
    }

    #[test]
    fn a_look_up_takes_the_same_few_steps_at_any_depth() {
        for depth in [10_u128, 1_000, 100_000] {
            // Spread as the random ids of lineages are.
            let id = |number: u128| {
                Counted(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
            };
            let mut numbers = LineageNumbers::new(id(0));
            for ancestor in 1..depth {
                numbers.number(id(ancestor));
            }
            COMPARISONS.set(0);
            let looked_up = 1_000;
            for step in 0..looked_up {
                let ancestor = step * 7919 % depth;
                assert_eq!(u128::from(numbers.number(id(ancestor))), ancestor);
            }
            let each = COMPARISONS.get() as f64 / looked_up as f64;
            assert!(each < 3.0, "{each} comparisons each, {depth} lineages");
        }
    }

    proptest! {
        #[test]
        fn numbers_are_positions_in_the_order_of_first_use(used in prop::collection::vec(0_u128..40, 0..200)) {
            let own = Lineage(7);
            let mut numbers = LineageNumbers::new(own);
            let mut list = vec![own];
            for id in used {
                let lineage = Lineage(id);
                let position = list.iter().position(|known| *known == lineage).unwrap_or_else(|| {
                    list.push(lineage);
                    list.len() - 1
                });
                prop_assert_eq!(numbers.number(lineage) as usize, position);
            }
            for (number, lineage) in (0..).zip(&list) {
                prop_assert_eq!(numbers.get(number), Some(*lineage));
            }
            prop_assert_eq!(numbers.get(list.len() as u64), None);
            numbers.restart();
            prop_assert_eq!((numbers.get(0), numbers.get(1)), (Some(own), None));
            prop_assert_eq!(numbers.number(Lineage(50)), 1);
        }
    }
}
