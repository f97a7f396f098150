//! Operations on the tree, in the system and in the model.

use percpu_memcg::error::TreeError;
use percpu_memcg::{AllocError, Limit, Memcg};
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseResult;

use crate::op::Max;
use crate::shadow_tree::ROOT;
use crate::world::{World, pick, same_refusal};

/// 1 to 255 bytes; no slash, newline or zero; not "." or "..".
fn is_legal(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.contains(['/', '\n', '\0'])
        && name != "."
        && name != ".."
}

impl World {
    pub(crate) fn create(&mut self, parent: Index, name: &str) -> TestCaseResult {
        let (id, parent) = self.cgroup(parent);
        let possible =
            is_legal(name) && !self.tree.cgroups[id].removed && self.tree.child(id, name).is_none();
        // Only a create that nothing else stands against charges the parent.
        let cost = self.tree.statistics_charge(id).filter(|_| possible);
        let granted = cost.map_or(Ok(()), |(payer, bytes)| self.may_charge(payer, bytes, false));
        match parent.create(name) {
            Ok(child) => {
                prop_assert!(possible && granted.is_ok(), "{child:?} was created all the same");
                self.note_if(cost.is_some(), "cgroup with charged statistics");
                let id = self.tree.create(id, name);
                prop_assert_eq!(child.path(), self.tree.path(id));
                prop_assert_eq!((child.name(), child.max()), (name, Limit::MAX));
                self.handles.push((id, child));
            }
            Err(error) => self.cannot_create(id, name, &error, granted.err())?,
        }
        Ok(())
    }

    fn cannot_create(
        &mut self,
        parent: usize,
        name: &str,
        error: &TreeError,
        refusal: Option<crate::shadow_tree::Refusal>,
    ) -> TestCaseResult {
        let operations = self.pcpu.machine().faults().operations();
        match error {
            TreeError::InvalidName { name: said } => {
                prop_assert!(!is_legal(name) && said == name, "{error}");
                self.note("illegal name");
            }
            TreeError::Removed { path } => {
                prop_assert!(self.tree.cgroups[parent].removed, "{error}");
                prop_assert_eq!(path, &self.tree.path(parent));
                self.note("create below a removed cgroup");
            }
            TreeError::Exists { .. } => {
                prop_assert!(error.is_exists() && self.tree.child(parent, name).is_some());
                self.note("name taken");
            }
            TreeError::Statistics { source: AllocError::Limit(error), .. } => {
                let Some(refusal) = refusal else {
                    return Err(TestCaseError::fail(format!("there is room: {error}")));
                };
                same_refusal(error, &refusal)?;
                self.note("statistics refused");
            }
            TreeError::Statistics { source: AllocError::Memory(error), .. } => {
                prop_assert!(refusal.is_none(), "a limit stands against it, not {error}");
                self.faults.explain(error, operations)?;
                self.note("no memory for statistics");
            }
            _ => return Err(TestCaseError::fail(format!("unexpected: {error}"))),
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, index: Option<Index>, keep_handle: bool) -> TestCaseResult {
        let (id, cgroup) = self.any_or_payer(index);
        let result = cgroup.remove();
        if id == ROOT {
            prop_assert_eq!(result, Err(TreeError::IsRoot));
            return Ok(());
        }
        let (children, threads) = (self.tree.children(id), self.tree.threads(id));
        if self.tree.cgroups[id].removed {
            prop_assert_eq!(result, Ok(()), "removing again does nothing");
        } else if children > 0 || threads > 0 {
            let path = self.tree.path(id);
            prop_assert_eq!(result, Err(TreeError::Busy { path, children, threads }));
            self.note(if threads > 0 { "busy with a thread" } else { "busy with children" });
        } else {
            prop_assert_eq!(result, Ok(()));
            let orphans = self.tree.remove(id);
            self.note_if(orphans.any, "objects outlive their cgroup");
            self.note_if(orphans.inherited, "objects outlive two cgroups");
            self.note_if(self.tree.scopes.contains(&Some(id)), "scope outlives its cgroup");
            if !keep_handle {
                self.drop_handle(id);
            }
        }
        Ok(())
    }

    pub(crate) fn drop_handle(&mut self, id: usize) {
        self.tree.cgroups[id].handle = false;
        self.handles.retain(|(held, _)| *held != id);
    }

    pub(crate) fn forget(&mut self, index: Index) -> TestCaseResult {
        let (id, _) = self.cgroup(index);
        if self.tree.cgroups[id].removed {
            self.drop_handle(id);
        }
        Ok(())
    }

    pub(crate) fn set_max(&mut self, index: Option<Index>, max: Max) -> TestCaseResult {
        let (id, cgroup) = self.any_or_payer(index);
        let usage = self.tree.usage(id);
        let max = match max {
            Max::None => None,
            Max::Bytes(bytes) => Some(bytes),
            Max::Usage(more) => Some(usage.saturating_add_signed(more)),
            Max::Fits { size, areas, slack } => {
                let room = areas * self.tree.full_size(size);
                Some((usage + room).saturating_add_signed(slack))
            }
        };
        let result = cgroup.set_max(max.map_or(Limit::MAX, Limit::bytes));
        if id == ROOT {
            prop_assert_eq!(result, Err(TreeError::IsRoot));
        } else if self.tree.cgroups[id].removed {
            prop_assert_eq!(result, Err(TreeError::Removed { path: self.tree.path(id) }));
        } else {
            prop_assert_eq!(result, Ok(()));
            self.tree.cgroups[id].max = max;
            self.note_if(max.is_some_and(|max| max < usage), "limit below usage");
        }
        Ok(())
    }

    pub(crate) fn find(&mut self, from: Index, to: Index, slashes: usize) -> TestCaseResult {
        let ((id, start), (target, _)) = (self.cgroup(from), self.cgroup(to));
        let path = self.tree.path(target).replace('/', &"/".repeat(slashes));
        self.found(self.pcpu.cgroup(&path), target)?;
        if self.tree.is_below(target, id) {
            let mut names: Vec<&str> = self
                .tree
                .ancestry(target)
                .into_iter()
                .take_while(|&between| between != id)
                .map(|between| &*self.tree.cgroups[between].name)
                .collect();
            names.reverse();
            self.found(start.find(&names.join("/")), target)?;
        }
        Ok(())
    }

    /// A removed cgroup's path may have passed to a new one.
    fn found(&self, found: Result<Memcg, TreeError>, target: usize) -> TestCaseResult {
        let path = self.tree.path(target);
        let is_it = |id: &usize| !self.tree.cgroups[*id].removed && self.tree.path(*id) == path;
        match ((0..self.tree.cgroups.len()).find(is_it), found) {
            (Some(id), Ok(found)) => {
                let handle = self.handles.iter().find(|(held, _)| *held == id);
                prop_assert_eq!(handle.map(|(_, handle)| handle), Some(&found));
            }
            (None, Err(error)) => prop_assert!(error.is_not_found(), "{error}"),
            (expected, found) => {
                prop_assert!(false, "{path}: {found:?}, the model says {expected:?}");
            }
        }
        Ok(())
    }

    pub(crate) fn find_missing(&mut self, from: Index) -> TestCaseResult {
        let (_, from) = self.cgroup(from);
        let found = from.find("nobody/is/here");
        prop_assert!(matches!(&found, Err(error) if error.is_not_found()), "{found:?}");
        Ok(())
    }

    pub(crate) fn enter(&mut self, index: Index) -> TestCaseResult {
        let (id, cgroup) = self.cgroup(index);
        self.guards.push(cgroup.enter());
        self.tree.scopes.push(Some(id));
        Ok(())
    }

    pub(crate) fn enter_stranger(&mut self) -> TestCaseResult {
        self.guards.push(self.stranger.1.enter());
        self.tree.scopes.push(None);
        Ok(())
    }

    pub(crate) fn leave(&mut self, scope: Index, innermost: bool) -> TestCaseResult {
        let Some(any) = pick(scope, self.guards.len()) else { return Ok(()) };
        let scope = if innermost { self.guards.len() - 1 } else { any };
        self.note_if(scope + 1 < self.guards.len(), "scope left out of order");
        drop(self.guards.remove(scope));
        self.tree.scopes.remove(scope);
        Ok(())
    }

    pub(crate) fn attach(&mut self, index: Index) -> TestCaseResult {
        let (id, cgroup) = self.cgroup(index);
        let result = cgroup.attach_thread();
        if self.tree.cgroups[id].removed {
            prop_assert_eq!(result, Err(TreeError::Removed { path: self.tree.path(id) }));
        } else {
            prop_assert_eq!(result, Ok(()));
            self.tree.attached = Some(id).filter(|&id| id != ROOT);
        }
        Ok(())
    }
}
