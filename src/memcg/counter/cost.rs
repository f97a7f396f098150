//! The number of bytes that is charged for an area.

use crate::placement::GRANULE_SIZE;

/// The cost of areas on a machine with some number of possible CPUs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AreaCost {
    nr_possible: usize,
}

impl AreaCost {
    pub(crate) fn new(nr_possible: usize) -> Self {
        AreaCost { nr_possible }
    }

    /// The bytes charged for an area of `size` bytes: its copies on all possible CPUs, and its
    /// slots in the owners' vector.
    ///
    /// It is the kernel's `pcpu_obj_full_size` since 5.18. Charge, uncharge and statistic all use
    /// it.
    #[inline]
    pub(crate) fn full_size(&self, size: usize) -> u64 {
        let slots = size / GRANULE_SIZE * size_of::<*const ()>();
        (size * self.nr_possible + slots) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_size_is_all_copies_and_the_owner_slots() {
        // Four CPUs, as in the worked examples of the specification.
        let cost = AreaCost::new(4);
        assert_eq!(cost.full_size(8), 48);
        assert_eq!(cost.full_size(1024), 6144);
        assert_eq!(AreaCost::new(8).full_size(32768), 327_680);
    }
}
