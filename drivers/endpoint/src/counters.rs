//! Figures of one endpoint.
//!
//! Invariant: only the data thread adds, so an addition is a load and a store, not a locked instruction.

use std::sync::atomic::{AtomicU64, Ordering};

/// A figure that one thread changes and others read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// The figure now.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Relaxed: figures order nothing.
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `amount`; called by one thread only.
    pub fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// Makes it `figure`; called by the same thread only.
    pub fn set(&self, figure: u64) {
        // Relaxed: figures order nothing.
        self.0.store(figure, Ordering::Relaxed);
    }
}

/// Declares a driver's figures once: `Metrics`, which its data thread counts, and `Counters`, their values at one moment.
#[macro_export]
macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// Live figures, shared between the data thread and their readers.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[$doc])* pub(crate) $name: $crate::counters::Counter,)* }

        /// Figures at one moment, counted since the endpoint was attached.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub struct Counters { $($(#[$doc])* pub $name: u64,)* }

        impl Metrics {
            /// The figures now.
            #[must_use]
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.get(),)* }
            }
        }

        impl Counters {
            /// Each figure with its name, in the order of their declaration.
            #[must_use]
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

#[cfg(test)]
mod tests {
    #![expect(unreachable_pub, reason = "a driver's figures are public")]

    counters! {
        /// Reads.
        reads,
        /// In flight now.
        in_flight,
    }

    #[test]
    fn figures_have_the_names_and_the_order_of_their_declaration() {
        let metrics = Metrics::default();
        metrics.reads.add(2);
        metrics.reads.add(3);
        metrics.in_flight.set(7);
        assert_eq!(metrics.read().named(), [("reads", 5), ("in_flight", 7)]);
    }
}
