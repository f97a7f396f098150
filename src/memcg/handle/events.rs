//! What happened in a cgroup.

use crate::memcg::handle::memcg::Memcg;
use crate::memcg::notify::counts::MemcgEvents;
use crate::memcg::notify::watch::EventWatch;

impl Memcg {
    /// Events of this cgroup and its descendants. The kernel's `memory.events`.
    pub fn events(&self) -> MemcgEvents {
        self.node().events.snapshot()
    }

    /// Events of this cgroup itself. The kernel's `memory.events.local`.
    pub fn events_local(&self) -> MemcgEvents {
        self.node().events.snapshot_local()
    }

    /// Waits for events, in async code or blocking.
    pub fn watch_events(&self) -> EventWatch {
        self.node().events.watch()
    }
}
