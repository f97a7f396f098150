//! Reading and watching the events of a cgroup.

use std::time::Duration;

use crate::memcg::handle::memcg::Memcg;
use crate::memcg::notify::counts::MemcgEvents;
use crate::memcg::notify::tree_watch::TreeWatch;
use crate::memcg::notify::watch::EventWatch;

impl Memcg {
    /// How often each event happened in this cgroup and its descendants. The kernel's
    /// `memory.events`.
    pub fn events(&self) -> MemcgEvents {
        self.node().events.snapshot()
    }

    /// How often each event happened in this cgroup itself. The kernel's `memory.events.local`.
    pub fn events_local(&self) -> MemcgEvents {
        self.node().events.snapshot_local()
    }

    /// Creates a watch that waits for events of this cgroup and its descendants, and for the removal
    /// of this cgroup.
    ///
    /// Wait in a thread with [`EventWatch::wait_timeout`], or in a task with
    /// [`EventWatch::changed`]; see there for examples.
    ///
    /// # Examples
    ///
    /// ```
    /// use percpu_memcg::{Limit, PerCpuAllocator};
    /// use std::time::Duration;
    ///
    /// let pcpu = PerCpuAllocator::new()?;
    /// let tenant = pcpu.root().create("tenant")?;
    /// tenant.set_max(Limit::bytes(1000))?;
    /// assert!(tenant.try_charge(2000).is_err());
    /// let mut watch = tenant.watch_events(); // before what it is to see: the first refusal is over
    /// assert!(watch.wait_timeout(Duration::ZERO).is_none());
    /// assert!(tenant.try_charge(2000).is_err());
    /// assert_eq!(watch.wait_timeout(Duration::ZERO).map(|events| events.max), Some(2)); // since creation
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn watch_events(&self) -> EventWatch {
        self.node().events.watch()
    }

    /// Creates a watch of the events of this cgroup and of all below it, with the paths of the cgroups and
    /// the kinds of the events, in batches that are at least `interval` apart.
    ///
    /// For one monitor of a whole service, which does not know the cgroups that come and go: the root's
    /// watch tells of all. See [`TreeWatch`] for an example, and for what happens when this cgroup is
    /// removed.
    pub fn watch_tree(&self, interval: Duration) -> TreeWatch {
        let watches = self.node().shared.tree_watches.get_or_init();
        watches.watch(self.node().events.observed(), interval)
    }
}
