//! What is set for a cgroup beside its limits: `oom.group`, and bounds on what is created below.

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::sync::atomic::Ordering;

impl Memcg {
    /// True when this cgroup and its descendants are ended as a whole by an OOM; see
    /// [`OomEvent::record_kill`](crate::OomEvent::record_kill). The kernel's `memory.oom.group`.
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
}

fn bound(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}
