//! Limits, protection and bounds, set while others charge.

use std::sync::atomic::Ordering;

use super::counter::Bound;
use super::events::EventKind;
use super::reclaim::{RETRIES, Reason};
use super::{EventWatch, Limit, Memcg, MemcgEvents, Registration, TreeError};

impl Memcg {
    /// The limit; [`Limit::MAX`] at first. The kernel's `memory.max`.
    pub fn max(&self) -> Limit {
        self.node().counter.get(Bound::Max)
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
        let above = || node.counter.usage().saturating_sub(self.max().number());
        if above() > 0 {
            node.stock().retire(node);
        }
        while above() > 0 {
            if self.reclaim_until(Reason::Max, above) {
                break;
            }
            node.raise(EventKind::Oom);
            if !node.out_of_memory(0) {
                break;
            }
            node.stock().drain(node);
        }
        Ok(())
    }

    /// The amount above which charges are slowed down; [`Limit::MAX`] at first. The kernel's
    /// `memory.high`.
    pub fn high(&self) -> Limit {
        self.node().counter.get(Bound::High)
    }

    /// Sets the amount above which charges are slowed down (see [`throttle`](Memcg::throttle)), and
    /// has hooks reclaim what is above. It never refuses anything.
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_high(&self, high: Limit) -> Result<(), TreeError> {
        self.set(Bound::High, high)?;
        let above = || self.current().saturating_sub(self.high().number());
        if above() > 0 {
            self.reclaim_until(Reason::High, above);
        }
        Ok(())
    }

    /// Has hooks reclaim until nothing is above, or nothing comes. Returns whether nothing is above.
    fn reclaim_until(&self, reason: Reason, above: impl Fn() -> u64) -> bool {
        for _ in 0..RETRIES {
            let bytes = above();
            if bytes == 0 {
                return true;
            }
            if self.node().reclaim(bytes, reason, || above() == 0) == 0 {
                break;
            }
            self.node().stock().drain(self.node());
        }
        above() == 0
    }

    /// Usage up to which this cgroup is reclaimed from only when nothing else is left; 0 at first.
    /// The kernel's `memory.low`.
    pub fn low(&self) -> Limit {
        self.node().counter.get(Bound::Low)
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
        self.node().counter.get(Bound::Min)
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
        self.node().counter.set(bound, limit);
        Ok(())
    }

    fn check_can_be_set(&self) -> Result<(), TreeError> {
        if self.is_root() {
            return Err(TreeError::IsRoot);
        }
        self.check_lives()
    }

    fn check_lives(&self) -> Result<(), TreeError> {
        match self.is_removed() {
            true => Err(TreeError::Removed { path: self.path() }),
            false => Ok(()),
        }
    }

    /// True when this cgroup and its descendants are ended as a whole by an OOM; see
    /// [`Oom::kill`](super::Oom::kill). The kernel's `memory.oom.group`.
    pub fn oom_group(&self) -> bool {
        self.node().is_oom_group()
    }

    /// Sets [`oom_group`](Memcg::oom_group).
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`], [`TreeError::Removed`].
    pub fn set_oom_group(&self, group: bool) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        // Relaxed: a setting.
        self.node().oom_group.store(group, Ordering::Relaxed);
        Ok(())
    }

    /// How deep cgroups may be created below this one; `None` when there is no bound. The kernel's
    /// `cgroup.max.depth`.
    pub fn max_depth(&self) -> Option<u32> {
        bound(self.node().max_depth.load(Ordering::Relaxed)) // a setting
    }

    /// Sets [`max_depth`](Memcg::max_depth). Cgroups that exist stay.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`].
    pub fn set_max_depth(&self, depth: Option<u32>) -> Result<(), TreeError> {
        self.check_lives()?;
        // Relaxed: read under the topology lock, as a setting.
        self.node().max_depth.store(depth.unwrap_or(u32::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// How many descendants may be created; `None` when there is no bound. The kernel's
    /// `cgroup.max.descendants`.
    pub fn max_descendants(&self) -> Option<u32> {
        bound(self.node().max_descendants.load(Ordering::Relaxed)) // a setting
    }

    /// Sets [`max_descendants`](Memcg::max_descendants). Cgroups that exist stay; removed ones do
    /// not count.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`].
    pub fn set_max_descendants(&self, descendants: Option<u32>) -> Result<(), TreeError> {
        self.check_lives()?;
        // Relaxed: read under the topology lock, as a setting.
        self.node().max_descendants.store(descendants.unwrap_or(u32::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// Events of this cgroup and its descendants. The kernel's `memory.events`.
    pub fn events(&self) -> MemcgEvents {
        self.node().events.snapshot()
    }

    /// Events of this cgroup itself. The kernel's `memory.events.local`.
    pub fn events_local(&self) -> MemcgEvents {
        self.node().events.snapshot_local()
    }

    /// Calls `callback` when something happened in this cgroup or below, with the present counts.
    ///
    /// At most once in 10 ms: further events are told together, by a call from a timer thread of the
    /// process, so that the last call always has the final counts. The first call comes from the
    /// thread that raised the event. A panic of the callback harms nobody.
    pub fn on_event(
        &self,
        callback: impl Fn(&MemcgEvents) + Send + Sync + 'static,
    ) -> Registration {
        self.node().events.subscribe(callback)
    }

    /// Waits for events, in async code or blocking.
    pub fn watch_events(&self) -> EventWatch {
        self.node().events.watch()
    }
}

fn bound(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}
