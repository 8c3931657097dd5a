//! Single integers in shared memory, accessed by atomics of their own size, as a virtqueue needs.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{Access, Mapping};

/// An integer that the machine loads and stores as a unit.
pub(crate) trait Scalar: Copy {
    /// Loads it at byte `start` of `mapping`, which must be a multiple of its size and have room for it.
    fn load(mapping: &Mapping, start: usize, order: Ordering) -> Self;
    /// Stores it, under the same conditions.
    fn store(self, mapping: &Mapping, start: usize, order: Ordering);
}

macro_rules! atomic {
    ($mapping:ident, $start:ident, $integer:ty, $atomic:ty) => {{
        $mapping.check($start, size_of::<$integer>());
        assert!($start.is_multiple_of(size_of::<$integer>()), "checked by the region");
        assert!($mapping.access == Access::ReadWrite, "regions are mapped for both");
        // SAFETY: in range and aligned (both checked above; the base is page-aligned), mapped for reading and writing
        // as long as the mapping is borrowed. Others may access the same bytes in other sizes meanwhile: a guest's
        // driver, which the hardware serialises, and bulk copies, which are racy, as their documentation states.
        unsafe { <$atomic>::from_ptr($mapping.address($start).cast()) }
    }};
}
macro_rules! scalar {
    ($integer:ty, $atomic:ty) => {
        impl Scalar for $integer {
            #[inline]
            fn load(mapping: &Mapping, start: usize, order: Ordering) -> Self {
                atomic!(mapping, start, $integer, $atomic).load(order)
            }

            #[inline]
            fn store(self, mapping: &Mapping, start: usize, order: Ordering) {
                atomic!(mapping, start, $integer, $atomic).store(self, order);
            }
        }
    };
}

scalar!(u16, AtomicU16);
scalar!(u32, AtomicU32);
scalar!(u64, AtomicU64);
