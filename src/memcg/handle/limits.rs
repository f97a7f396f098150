//! Limits and protection, set while others charge.

use crate::memcg::charge::oom;
use crate::memcg::charge::reclaim::{self, RETRIES};
use crate::memcg::counter::Bound;
use crate::memcg::counter::amount::Limit;
use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::notify::callbacks::ReclaimReason;
use crate::memcg::notify::counts::EventKind;

impl Memcg {
    /// The limit; [`Limit::MAX`] at first. The kernel's `memory.max`.
    pub fn max(&self) -> Limit {
        self.node().counter().get(Bound::Max)
    }

    /// Sets the limit for this cgroup with its descendants. Usage may be equal to it.
    ///
    /// A limit below the present usage is legal, and holds at once: charges are refused until usage
    /// has come down. Stocks are emptied, hooks asked to reclaim, and then OOM callbacks to free,
    /// until usage is within the limit or nothing helps.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_max(&self, max: Limit) -> Result<(), TreeError> {
        self.set(Bound::Max, max)?;
        let node = self.node();
        let above = || node.counter().usage().saturating_sub(self.max().number());
        if above() > 0 {
            // T4.
            node.drain();
        }
        while above() > 0 {
            if self.reclaim_until(ReclaimReason::Max, above) {
                break;
            }
            node.raise(EventKind::Oom);
            if !oom::ask(node, 0) {
                break;
            }
            node.drain();
        }
        Ok(())
    }

    /// The amount above which charges are slowed down; [`Limit::MAX`] at first. The kernel's
    /// `memory.high`.
    pub fn high(&self) -> Limit {
        self.node().counter().get(Bound::High)
    }

    /// Sets the amount above which charges are slowed down (see [`throttle`](Memcg::throttle)), and
    /// has hooks reclaim what is above. It never refuses anything.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_high(&self, high: Limit) -> Result<(), TreeError> {
        self.set(Bound::High, high)?;
        let node = self.node();
        let above = || node.counter().usage().saturating_sub(self.high().number());
        if above() > 0 {
            // T4.
            node.drain();
            self.reclaim_until(ReclaimReason::High, above);
        }
        Ok(())
    }

    /// Has hooks reclaim until nothing is above, or nothing comes. Returns whether nothing is above.
    fn reclaim_until(&self, reason: ReclaimReason, above: impl Fn() -> u64) -> bool {
        for _ in 0..RETRIES {
            let bytes = above();
            if bytes == 0 {
                return true;
            }
            if reclaim::run(self.node(), bytes, reason, || above() == 0) == 0 {
                break;
            }
            self.node().drain();
        }
        above() == 0
    }

    /// Usage up to which this cgroup is reclaimed from only when nothing else is left; 0 at first.
    /// The kernel's `memory.low`.
    pub fn low(&self) -> Limit {
        self.node().counter().get(Bound::Low)
    }

    /// Sets the protection by `low`. What it amounts to depends on that of the ancestors and
    /// siblings.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_low(&self, low: Limit) -> Result<(), TreeError> {
        self.set(Bound::Low, low)
    }

    /// Usage up to which this cgroup is never reclaimed from; 0 at first. The kernel's `memory.min`.
    pub fn min(&self) -> Limit {
        self.node().counter().get(Bound::Min)
    }

    /// Sets the protection by `min`, as [`set_low`](Memcg::set_low).
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_min(&self, min: Limit) -> Result<(), TreeError> {
        self.set(Bound::Min, min)
    }

    fn set(&self, bound: Bound, limit: Limit) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        self.node().counter().set(bound, limit);
        Ok(())
    }

    pub(crate) fn check_can_be_set(&self) -> Result<(), TreeError> {
        if self.is_root() {
            return Err(TreeError::IsRoot);
        }
        self.check_lives()
    }

    pub(crate) fn check_lives(&self) -> Result<(), TreeError> {
        match self.is_removed() {
            true => Err(TreeError::Removed { path: self.path() }),
            false => Ok(()),
        }
    }
}
