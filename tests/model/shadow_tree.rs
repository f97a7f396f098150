//! The naive tree: plain integers, everything recomputed from its definition.
//!
//! A cgroup's usage is not kept but summed over all live charges whose payer lies in its subtree;
//! only limits and peaks are stored. Written from the documentation, not from the code under test.

use std::collections::BTreeMap;

/// A cgroup, live or removed; 0 is the root.
pub(crate) type CgroupId = usize;
/// A live charge.
pub(crate) type ChargeId = u64;

pub(crate) const ROOT: CgroupId = 0;

/// Bytes of a cgroup's own statistics on one CPU, charged to its parent.
const STATISTICS_SIZE: usize = 16;

#[derive(Debug)]
pub(crate) struct Cgroup {
    pub(crate) name: String,
    pub(crate) parent: Option<CgroupId>,
    pub(crate) removed: bool,
    /// Somebody holds a handle.
    pub(crate) handle: bool,
    pub(crate) max: Option<u64>,
    pub(crate) peak: u64,
    /// What stocks at or below it may hold. Until the next charge of a step they get only what is
    /// released: bytes are charged ahead where that makes no peak, and used first by the next
    /// charge of the same payer.
    pub(crate) cached: u64,
    /// The peak, if all that stocks may have held counted at every charge.
    pub(crate) highest_peak: u64,
    /// What the parent is charged for this cgroup's statistics.
    statistics: Option<ChargeId>,
}

/// A refused charge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) cgroup: String,
    pub(crate) requested: u64,
    pub(crate) usage: u64,
    pub(crate) max: u64,
}

#[derive(Clone, Copy, Debug)]
struct Charge {
    payer: CgroupId,
    bytes: u64,
    /// The payer took over from a removed cgroup.
    inherited: bool,
}

/// What a removed cgroup left behind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orphans {
    pub(crate) any: bool,
    /// Some were left to that cgroup by another.
    pub(crate) inherited: bool,
}

#[derive(Debug)]
pub(crate) struct ShadowTree {
    pub(crate) cgroups: Vec<Cgroup>,
    charges: BTreeMap<ChargeId, Charge>,
    next_charge: ChargeId,
    nr_possible: u64,
    /// Innermost last; none is a scope of another tree.
    pub(crate) scopes: Vec<Option<CgroupId>>,
    pub(crate) attached: Option<CgroupId>,
}

impl ShadowTree {
    pub(crate) fn new(nr_possible: usize) -> Self {
        let mut tree = ShadowTree {
            cgroups: Vec::new(),
            charges: BTreeMap::new(),
            next_charge: 0,
            nr_possible: nr_possible as u64,
            scopes: Vec::new(),
            attached: None,
        };
        tree.push("", None, None);
        tree
    }

    fn push(&mut self, name: &str, parent: Option<CgroupId>, statistics: Option<ChargeId>) {
        self.cgroups.push(Cgroup {
            name: name.into(),
            parent,
            removed: false,
            handle: true,
            max: None,
            peak: 0,
            cached: 0,
            highest_peak: 0,
            statistics,
        });
    }

    /// What an area of `size` bytes costs.
    pub(crate) fn full_size(&self, size: usize) -> u64 {
        let granules = size.div_ceil(4) as u64;
        granules * 4 * self.nr_possible + granules * 8
    }

    // Relations.

    pub(crate) fn ancestry(&self, id: CgroupId) -> Vec<CgroupId> {
        std::iter::successors(Some(id), |&id| self.cgroups[id].parent).collect()
    }

    pub(crate) fn is_below(&self, id: CgroupId, ancestor: CgroupId) -> bool {
        id != ancestor && self.ancestry(id).contains(&ancestor)
    }

    fn below(&self, ancestor: CgroupId) -> impl Iterator<Item = CgroupId> + '_ {
        (0..self.cgroups.len()).filter(move |&id| self.is_below(id, ancestor))
    }

    pub(crate) fn children(&self, id: CgroupId) -> usize {
        self.cgroups.iter().filter(|child| !child.removed && child.parent == Some(id)).count()
    }

    pub(crate) fn child(&self, id: CgroupId, name: &str) -> Option<CgroupId> {
        let is_it =
            |child: &Cgroup| !child.removed && child.parent == Some(id) && child.name == name;
        self.cgroups.iter().position(is_it)
    }

    pub(crate) fn path(&self, id: CgroupId) -> String {
        match self.cgroups[id].parent {
            None => "/".into(),
            Some(_) => {
                let names = self.ancestry(id).into_iter().rev().skip(1);
                names.map(|id| format!("/{}", self.cgroups[id].name)).collect()
            }
        }
    }

    // Figures.

    pub(crate) fn usage(&self, id: CgroupId) -> u64 {
        let counts = |charge: &&Charge| charge.payer == id || self.is_below(charge.payer, id);
        self.charges.values().filter(counts).map(|charge| charge.bytes).sum()
    }

    pub(crate) fn nr_descendants(&self, id: CgroupId) -> usize {
        self.below(id).filter(|&id| !self.cgroups[id].removed).count()
    }

    /// Removed descendants that a handle refers to, directly or by way of a child.
    pub(crate) fn nr_dying(&self, id: CgroupId) -> usize {
        let referred = |id: CgroupId| self.cgroups[id].handle;
        self.below(id)
            .filter(|&id| self.cgroups[id].removed)
            .filter(|&id| referred(id) || self.below(id).any(referred))
            .count()
    }

    pub(crate) fn threads(&self, id: CgroupId) -> usize {
        usize::from(self.attached == Some(id))
    }

    // Who pays.

    /// The cgroup that the thread has entered or is attached to, removed or not.
    pub(crate) fn entered(&self) -> CgroupId {
        let innermost = self.scopes.iter().rev().copied().flatten().next();
        innermost.or(self.attached).unwrap_or(ROOT)
    }

    /// The cgroup the thread is in: of a removed one, the nearest ancestor that is not.
    pub(crate) fn current(&self) -> CgroupId {
        let live = self.ancestry(self.entered()).into_iter().find(|&id| !self.cgroups[id].removed);
        live.unwrap_or(ROOT)
    }

    /// The thread is in a scope, but of another tree, and has neither scope nor attachment in this one.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let is_here = self.scopes.iter().any(Option::is_some);
        let is_attached = self.attached.is_some_and(|id| id != ROOT);
        !self.scopes.is_empty() && !is_here && !is_attached
    }

    /// Who pays for an accounted area now; nobody when that would be the root.
    pub(crate) fn payer(&self) -> Option<CgroupId> {
        self.payer_for(self.current())
    }

    fn payer_for(&self, id: CgroupId) -> Option<CgroupId> {
        let live = self.ancestry(id).into_iter().find(|&id| !self.cgroups[id].removed);
        live.filter(|&id| id != ROOT)
    }

    /// The lowest cgroup from `payer` upwards that has no room for `bytes`.
    pub(crate) fn refusal(&self, payer: CgroupId, bytes: u64) -> Option<Refusal> {
        self.ancestry(payer).into_iter().find_map(|id| {
            let (usage, max) = (self.usage(id), self.cgroups[id].max?);
            let refusal = || Refusal { cgroup: self.path(id), requested: bytes, usage, max };
            (usage + bytes > max).then(refusal)
        })
    }

    /// A granted charge stays, and shows in the peaks.
    pub(crate) fn hold(&mut self, payer: CgroupId, bytes: u64) -> ChargeId {
        self.charges.insert(self.next_charge, Charge { payer, bytes, inherited: false });
        for id in self.ancestry(payer) {
            let usage = self.usage(id);
            let cgroup = &mut self.cgroups[id];
            cgroup.peak = usage.max(cgroup.peak);
            cgroup.highest_peak = (usage + cgroup.cached).max(cgroup.highest_peak);
        }
        self.next_charge += 1;
        self.next_charge - 1
    }

    pub(crate) fn release(&mut self, charge: ChargeId) {
        let Charge { payer, bytes, .. } =
            self.charges.remove(&charge).expect("a charge is released once");
        for id in self.ancestry(payer) {
            self.cgroups[id].cached += bytes;
        }
    }

    // Changes of the tree.

    /// Who pays for the statistics of a child of `parent`, and how much.
    pub(crate) fn statistics_charge(&self, parent: CgroupId) -> Option<(CgroupId, u64)> {
        Some((self.payer_for(parent)?, self.full_size(STATISTICS_SIZE)))
    }

    /// Adds a cgroup whose statistics were granted.
    pub(crate) fn create(&mut self, parent: CgroupId, name: &str) -> CgroupId {
        let charge = self.statistics_charge(parent);
        let statistics = charge.map(|(payer, bytes)| self.hold(payer, bytes));
        self.push(name, Some(parent), statistics);
        self.cgroups.len() - 1
    }

    /// Removes a cgroup without children and threads; its parent pays from here on.
    pub(crate) fn remove(&mut self, id: CgroupId) -> Orphans {
        let parent = self.cgroups[id].parent.expect("the root stays");
        self.cgroups[id].removed = true;
        if let Some(charge) = self.cgroups[id].statistics.take() {
            self.release(charge);
        }
        let mut orphans = Orphans { any: false, inherited: false };
        for charge in self.charges.values_mut().filter(|charge| charge.payer == id) {
            orphans.any = true;
            orphans.inherited |= charge.inherited;
            *charge = Charge { payer: parent, inherited: true, ..*charge };
        }
        orphans
    }
}
