//! What must hold after every step, and at the end.

use percpu_memcg::placement::ChunkName;
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestCaseResult};

use crate::world::{Tally, World};

/// The figures of a cgroup, from the system or from the model.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    path: String,
    current: u64,
    /// Equal to `current`: nothing but per-CPU memory is charged.
    percpu: u64,
    max: Option<u64>,
    descendants: usize,
    dying: usize,
    threads: usize,
}

impl World {
    /// Everything that can be read is as the model says, and every invariant holds.
    pub(crate) fn check(&self) -> TestCaseResult {
        self.pcpu.verify().map_err(TestCaseError::fail)?;
        for (id, handle) in &self.handles {
            let cgroup = &self.tree.cgroups[*id];
            prop_assert_eq!(handle.is_removed(), cgroup.removed, "{:?}", handle);
            if cgroup.removed {
                prop_assert_eq!(handle.stat().percpu, 0, "{:?} was removed", handle);
                continue;
            }
            let system = Figures {
                path: handle.path(),
                current: handle.current(),
                percpu: handle.stat().percpu,
                max: handle.max().get(),
                descendants: handle.nr_descendants(),
                dying: handle.nr_dying_descendants(),
                threads: handle.nr_threads(),
            };
            let usage = self.tree.usage(*id);
            let most = if self.drains { cgroup.peak } else { cgroup.highest_peak };
            let (peak, possible) = (handle.peak(), cgroup.peak..=most);
            prop_assert!(possible.contains(&peak), "peak {} in {:?}", peak, possible);
            let model = Figures {
                path: self.tree.path(*id),
                current: usage,
                percpu: usage,
                max: cgroup.max,
                descendants: self.tree.nr_descendants(*id),
                dying: self.tree.nr_dying(*id),
                threads: self.tree.threads(*id),
            };
            prop_assert_eq!(system, model, "system and model");
            prop_assert_eq!(handle.children().len(), self.tree.children(*id));
        }
        self.check_current()?;
        self.check_areas()
    }

    fn check_current(&self) -> TestCaseResult {
        let (system, model) = (self.pcpu.root().of_this_thread(), self.tree.current());
        prop_assert_eq!(system.path(), self.tree.path(model), "current cgroup");
        prop_assert_eq!(system.is_removed(), self.tree.cgroups[model].removed, "current cgroup");
        Ok(())
    }

    fn check_areas(&self) -> TestCaseResult {
        let stats = self.pcpu.stats();
        let live_bytes: usize = self.areas.iter().map(|area| area.place.size).sum();
        prop_assert_eq!(
            (stats.nr_cur_alloc, stats.live_bytes),
            (self.areas.len() as u64, live_bytes as u64),
            "live areas and bytes"
        );
        if self.is_cached {
            // What CPUs keep is live to the placement.
            return Ok(());
        }
        let chunks = self.pcpu.chunks();
        let numbered = chunks.iter().filter(|chunk| chunk.name != ChunkName::Reserved).count();
        prop_assert_eq!(stats.nr_chunks, numbered as u64, "chunks");
        self.space.check(&chunks)
    }

    /// Ends all scopes, frees all areas, removes all cgroups: every counter must be zero.
    pub(crate) fn finish(mut self) -> Result<Tally, TestCaseError> {
        self.pcpu.machine().faults().clear();
        while !self.guards.is_empty() {
            // From both ends in turn.
            let scope = if self.guards.len().is_multiple_of(2) { self.guards.len() - 1 } else { 0 };
            drop(self.guards.remove(scope));
            self.tree.scopes.remove(scope);
            self.check_current()?;
        }
        let detached = self.pcpu.root().attach_thread();
        prop_assert_eq!(detached, Ok(()));
        self.tree.attached = None;
        while !self.areas.is_empty() {
            self.free(self.areas.len() / 2)?;
            self.check()?;
        }
        // Youngest first: children before their parents.
        while self.handles.len() > 1 {
            let Some((id, handle)) = self.handles.pop() else { break };
            if !self.tree.cgroups[id].removed {
                let figures = (handle.current(), handle.stat().percpu, handle.nr_descendants());
                prop_assert_eq!(figures, (0, 0, 0), "{:?} at the end", handle);
                let removed = handle.remove();
                prop_assert_eq!(removed, Ok(()));
                self.tree.remove(id);
            }
            self.tree.cgroups[id].handle = false;
            drop(handle);
            self.check()?;
        }
        self.check_zero()?;
        Ok(self.tally)
    }

    fn check_zero(&self) -> TestCaseResult {
        let (root, stats) = (self.pcpu.root(), self.pcpu.stats());
        prop_assert_eq!((root.current(), root.stat().percpu), (0, 0));
        prop_assert_eq!((root.nr_descendants(), root.nr_dying_descendants()), (0, 0));
        prop_assert_eq!((root.nr_threads(), root.children().len()), (0, 0));
        prop_assert_eq!((stats.nr_cur_alloc, stats.live_bytes), (0, 0));
        prop_assert!(root.of_this_thread().is_root());
        self.pcpu.trim();
        prop_assert_eq!(self.pcpu.stats().nr_cached, 0);
        prop_assert!(self.pcpu.chunks().iter().all(|chunk| chunk.nr_alloc == 0));
        self.pcpu.balance();
        self.pcpu.verify().map_err(TestCaseError::fail)
    }
}
