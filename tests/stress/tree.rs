//! Steps that create and remove cgroups.

use std::sync::atomic::Ordering::Relaxed;

use percpu_memcg::Memcg;
use percpu_memcg::error::TreeError;

use crate::sane;
use crate::steps::Hand;
use crate::world::{MOST_CGROUPS, World, count};

/// A name that no other cgroup of this tree has or had.
pub(crate) fn new_name(world: &World) -> String {
    format!("c{}", world.next_name.fetch_add(1, Relaxed))
}

impl Hand {
    /// Where a cgroup may be created, unless there are enough.
    fn parent(&mut self) -> Option<Memcg> {
        let parent = self.cgroup();
        let depth = parent.path().matches('/').count();
        let present = self.world.pcpu.root().nr_descendants();
        (present < MOST_CGROUPS && depth < 5).then_some(parent)
    }

    fn note_tree_error(&self, error: &TreeError) {
        let is_limit = matches!(error, TreeError::Statistics { .. });
        assert!(is_limit || error.is_removed() || error.is_bounded(), "{error}");
    }

    pub(crate) fn create(&mut self) {
        let Some(parent) = self.parent() else { return };
        match parent.create(&new_name(&self.world)) {
            Ok(child) => {
                assert_eq!(child.parent().as_ref(), Some(&parent));
                self.world.cgroups.lock().push(child);
                count(&self.world.done.created);
            }
            Err(error) => self.note_tree_error(&error),
        }
    }

    pub(crate) fn create_scoped(&mut self) {
        if self.scopes.len() > 2 {
            let nth = self.choices.below(self.scopes.len());
            let scope = self.scopes.swap_remove(nth);
            // What is below may be busy, and stay.
            drop(scope);
            self.forget_removed();
            return;
        }
        let Some(parent) = self.parent() else { return };
        match parent.create_scoped(&new_name(&self.world)) {
            Ok(child) => {
                self.world.cgroups.lock().push((*child).clone());
                self.scopes.push(child);
                count(&self.world.done.created);
            }
            Err(error) => self.note_tree_error(&error),
        }
    }

    /// Takes removed cgroups from those that threads choose from.
    fn forget_removed(&self) {
        let mut removed = Vec::new();
        let mut cgroups = self.world.cgroups.lock();
        cgroups.retain(|cgroup| {
            let is_removed = cgroup.is_removed();
            if is_removed {
                removed.push(cgroup.clone());
            }
            !is_removed
        });
        drop(cgroups);
        // The last handle of some, perhaps, and then the callbacks of these are dropped: here, under
        // no lock.
        drop(removed);
    }

    pub(crate) fn remove(&mut self) {
        let memcg = self.cgroup();
        let before = memcg.is_removed();
        match memcg.remove() {
            Ok(()) => {
                assert!(memcg.is_removed());
                assert_eq!(memcg.current(), 0, "what is charged is the parent's");
                if !before {
                    count(&self.world.done.removed);
                }
                self.forget_removed();
            }
            Err(error) => assert!(error.is_busy() || memcg.is_root(), "{error}"),
        }
    }

    pub(crate) fn remove_with_report(&mut self) {
        let memcg = self.cgroup();
        match memcg.remove_with_report() {
            Ok(report) => {
                sane(report.percpu);
                sane(report.charged);
                assert_eq!(report.cgroup, memcg.path());
                count(&self.world.done.removed);
                self.forget_removed();
            }
            Err(error) => assert!(error.is_busy() || memcg.is_root(), "{error}"),
        }
    }
}
