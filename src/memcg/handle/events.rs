//! Reading and watching the events of a cgroup.

use crate::memcg::handle::memcg::Memcg;
use crate::memcg::notify::counts::MemcgEvents;
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
    pub fn watch_events(&self) -> EventWatch {
        self.node().events.watch()
    }
}
