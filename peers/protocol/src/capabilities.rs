//! The capabilities of a backend, which spare its clients work.

/// The answer to [`ObjectOp::Capabilities`](crate::object::ObjectOp::Capabilities): a set of bits. A client ignores unknown bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

impl Capabilities {
    /// Nothing beyond the contract.
    pub const NONE: Capabilities = Capabilities(0);
    /// A range of one object can be made to share the storage of another's.
    pub const CLONE_RANGE: Capabilities = Capabilities(1);
    /// Several writes to one object can be one atomic change.
    pub const ATOMIC_WRITES: Capabilities = Capabilities(1 << 1);
    /// The pool is locked against others as long as its blocker runs, or requests that the blocker had in flight are not finished.
    pub const EXCLUSIVE_LOCK: Capabilities = Capabilities(1 << 2);
    /// Another client can be excluded from the pool for good, with its requests in flight.
    pub const FENCING: Capabilities = Capabilities(1 << 3);
    /// Each completed write is durable: there is nothing to sync.
    pub const DURABLE: Capabilities = Capabilities(1 << 4);

    /// The set in the bits of a reply.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Capabilities(bits)
    }

    /// The bits for a reply.
    #[must_use]
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The union with `others`.
    #[must_use]
    pub fn with(self, others: Capabilities) -> Self {
        Capabilities(self.0 | others.0)
    }

    /// Whether the set contains all of `others`.
    #[must_use]
    pub fn has(self, others: Capabilities) -> bool {
        self.0 & others.0 == others.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_capability_has_its_bit() {
        let all = [
            Capabilities::CLONE_RANGE,
            Capabilities::ATOMIC_WRITES,
            Capabilities::EXCLUSIVE_LOCK,
            Capabilities::FENCING,
            Capabilities::DURABLE,
        ];
        assert_eq!(all.map(Capabilities::bits), [1, 2, 4, 8, 16]);
        let two = all[0].with(all[4]);
        assert!(two.has(all[0]) && two.has(all[4]) && !two.has(all[1]));
        assert!(!two.has(all[0].with(all[1])) && two.has(Capabilities::NONE));
        assert_eq!(Capabilities::from_bits(two.bits()), two);
    }
}
