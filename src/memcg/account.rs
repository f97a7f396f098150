//! What an area costs, and giving the charge back.

use crate::arena::Freed;
use crate::memcg::node::ObjCgroup;
use crate::memcg::{ChargeError, Gfp};
use crate::placement::GRANULE_SIZE;

/// The rule by which areas are charged on one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    nr_possible: usize,
}

impl Account {
    pub(super) fn new(nr_possible: usize) -> Self {
        Account { nr_possible }
    }

    /// Bytes charged for an area of `size` bytes: its copies on all possible CPUs and its slots
    /// in the owners' vector. The kernel's full size since 5.18; the one formula for charge,
    /// uncharge and statistic.
    pub(super) fn full_size(&self, size: usize) -> u64 {
        let slots = size / GRANULE_SIZE * size_of::<*const ObjCgroup>();
        (size * self.nr_possible + slots) as u64
    }

    /// Charges an area of `size` bytes to whom `objcg` stands for.
    pub(super) fn charge(
        &self,
        objcg: &ObjCgroup,
        size: usize,
        gfp: Gfp,
    ) -> Result<(), ChargeError> {
        objcg.node().charge(self.full_size(size), gfp)
    }

    /// Takes the charge for an area of `size` bytes back.
    pub(super) fn uncharge(&self, objcg: &ObjCgroup, size: usize) {
        objcg.node().uncharge(self.full_size(size));
    }

    /// Counts a charged area of `size` bytes that its owner now holds.
    pub(super) fn count(&self, objcg: &ObjCgroup, size: usize) {
        objcg.node().add_percpu(self.full_size(size) as i64);
    }

    /// Uncharges an area that was freed.
    pub(super) fn settle(&self, freed: Freed<ObjCgroup>) {
        if let Some(objcg) = freed.owner {
            objcg.node().add_percpu(-(self.full_size(freed.size) as i64));
            self.uncharge(&objcg, freed.size);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_size_is_all_copies_and_the_owner_slots() {
        // Four CPUs, as in the worked examples of the specification.
        let account = Account::new(4);
        assert_eq!(account.full_size(8), 48);
        assert_eq!(account.full_size(1024), 6144);
        assert_eq!(Account::new(8).full_size(32768), 327_680);
    }
}
