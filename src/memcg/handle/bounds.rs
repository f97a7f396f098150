//! Settings of a cgroup beside its limits: `oom.group`, and bounds on cgroups created below it.

use crate::memcg::error::TreeError;
use crate::memcg::handle::memcg::Memcg;
use crate::memcg::sync::atomic::Ordering;

impl Memcg {
    /// True when an OOM is to end this cgroup and its descendants as a whole.
    ///
    /// See [`OomEvent::record_kill`](crate::cgroup::OomEvent::record_kill). The kernel's
    /// `memory.oom.group`.
    pub fn oom_group(&self) -> bool {
        self.node().is_oom_group()
    }

    /// Sets [`oom_group`](Memcg::oom_group).
    ///
    /// # Errors
    ///
    /// [`TreeError::IsRoot`] for the root, [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_oom_group(true)?; // half of its queries are of no use
    /// assert!(tenant.oom_group());
    /// assert!(pcpu.root().set_oom_group(true).unwrap_err().is_invalid());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_oom_group(&self, group: bool) -> Result<(), TreeError> {
        self.check_can_be_set()?;
        // Relaxed: a setting.
        self.node().oom_group.store(group, Ordering::Relaxed);
        Ok(())
    }

    /// How many levels of cgroups may be created below this one; `None` when there is no bound.
    ///
    /// The kernel's `cgroup.max.depth`.
    pub fn max_depth(&self) -> Option<u32> {
        bound(self.node().max_depth.load(Ordering::Relaxed)) // a setting
    }

    /// Sets [`max_depth`](Memcg::max_depth). Existing cgroups are not affected.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max_depth(Some(1))?;
    /// let query = tenant.create("query")?;
    /// assert!(query.create("operator").unwrap_err().is_bounded());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn set_max_depth(&self, depth: Option<u32>) -> Result<(), TreeError> {
        self.check_lives()?;
        // Relaxed: read under the topology lock, as a setting.
        self.node().max_depth.store(depth.unwrap_or(u32::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// How many descendants this cgroup may have; `None` when there is no bound.
    ///
    /// The kernel's `cgroup.max.descendants`.
    pub fn max_descendants(&self) -> Option<u32> {
        bound(self.node().max_descendants.load(Ordering::Relaxed)) // a setting
    }

    /// Sets [`max_descendants`](Memcg::max_descendants). Existing cgroups are not affected. Removed
    /// cgroups do not count.
    ///
    /// # Errors
    ///
    /// [`TreeError::Removed`] for a removed cgroup.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::PerCpuAllocator;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max_descendants(Some(1))?;
    /// let query = tenant.create("first")?;
    /// assert!(tenant.create("second").unwrap_err().is_bounded());
    /// query.remove()?;
    /// assert!(tenant.create("second").is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
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
